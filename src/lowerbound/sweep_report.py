"""The report of a sweep: a page with its tables, its overlays and what is missing, and the tables as files for a paper.

report.html   one page that needs no network; its tables sort on a click       table.csv   all numbers
table.md      the tables in Markdown                                           table.tex   the tables in LaTeX (booktabs)
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from urllib.parse import quote

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lowerbound import folder as files
from lowerbound import plots, sweep_plots
from lowerbound.errors import one
from lowerbound.instantiate import instantiate
from lowerbound.report import CAPTIONS, environment, picture, pixels_of
from lowerbound.runs import Run, not_begun, read_runs
from lowerbound.summary import Line, Table, configuration, numbers, tables
from lowerbound.sweep_plots import Curve, Point
from lowerbound.tracking import METRICS, finish, read_metrics, send_picture, send_table
from lowerbound.wording import markdown, plain, say, unit, words

TABLE = "table"
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def report(config: DictConfig) -> None:
    """`lowerbound-report`: write the report of a sweep's folder, print its tables, and give both to the loggers.

    Raises:
        ValueError: there are no runs in it.
    """
    folder = Path(one(config.folder, "folder"))
    loggers: list[Logger] = [instantiate(node, save_dir=str(folder)) for node in (config.logger or {}).values()]
    say(summarize(folder))
    found = tables(read_runs(folder))
    for logger in loggers:
        for number, table in enumerate(found, 1):
            send_table(logger, f"table {number}", headings(table), [cells(table, line) for line in table.lines])
        for path in sorted(filter(Path.is_file, folder.glob("*.png"))):
            send_picture(logger, f"figures/{path.stem}", pixels_of(path), 0)
    finish(loggers, {})


def summarize(folder: Path) -> Iterator[str]:
    """Write the report; the lines that tell of it.

    Raises:
        ValueError: there are no runs in the folder.
    """
    runs = read_runs(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. A sweep's folder looks like outputs/<sweep>.")
    if (folder / files.RESULTS).is_file():
        raise ValueError(f"{folder} is a run, and has its own {files.REPORT}; `lowerbound-report` is for the folder of a sweep")
    if not runs:
        raise ValueError(f"{folder} is the folder of no sweep: there is no run in it. A sweep's folder looks like outputs/<sweep>.")
    found, absent = tables(runs), not_begun(folder, runs)
    drawn = draw(folder, found)
    page = (
        environment()
        .get_template("sweep.html")
        .render(
            title=folder.resolve().name,
            runs=runs,
            absent=absent,
            tables=[shown(table) for table in found],
            pictures=[picture(path, caption) for path, caption in drawn],
            link=link,
        )
    )
    files.write_whole(folder / files.REPORT, page)
    files.write_whole(folder / f"{TABLE}.csv", as_csv(found))
    files.write_whole(folder / f"{TABLE}.md", "\n".join(as_markdown(found)) + "\n")
    files.write_whole(folder / f"{TABLE}.tex", "\n".join(as_latex(found)) + "\n")
    yield from as_markdown(found)
    yield from (f"{run.name}: {run.state}" for run in runs if run.results is None)
    yield from (f"{name}: not begun" for name in absent)
    yield f"{sum(run.results is not None for run in runs)} of {len(runs) + len(absent)} runs finished"
    yield f"report: {Path(os.path.relpath(folder)) / files.REPORT}"


def draw(folder: Path, found: Sequence[Table]) -> list[tuple[Path, str]]:
    """Draw the overlays of each table: where they are, with their captions, and after them the other pictures of the folder."""
    ways: dict[str, Figure | None] = {}
    for number, table in enumerate(found):
        runs, end = [run for line in table.lines for run in line.runs if run.results is not None], f"_{number + 1}" if number else ""
        ways |= {f"rate_distortion{end}": rate_distortion(runs), f"learning_curves{end}": learning_curves(runs)}
    captions = CAPTIONS | {"rate_distortion": "What z tells of x, against what it leaves untold"}
    for stale in [*folder.glob("rate_distortion*.png"), *folder.glob("learning_curves*.png")]:
        stale.unlink()
    for name, figure in ways.items():
        if figure is not None:
            plots.save(figure, folder / f"{name}.png")
    paths = sorted(filter(Path.is_file, folder.glob("*.png")), key=lambda path: (path.stem not in ways, path.stem))
    return [(path, captions.get(path.stem, words(path.stem))) for path in paths]


def rate_distortion(runs: Sequence[Run]) -> Figure | None:
    """Rate and distortion of the runs that have them, a curve over beta for each configuration; None: there is only one pair."""
    found: dict[str, dict[float, tuple[list[float], list[float]]]] = {}
    for run in runs:
        rate, reconstruction = run.number("test/kl"), run.number("test/reconstruction")
        if rate is not None and reconstruction is not None and (beta := run.beta) is not None:
            rates, distortions = found.setdefault(configuration(run, "objective.beta"), {}).setdefault(beta, ([], []))
            rates.append(rate)
            distortions.append(-reconstruction)
    if sum(map(len, found.values())) < 2:
        return None
    names = {name: name if len(found) > 1 else "" for name in found}
    return sweep_plots.rate_distortion({names[name]: [Point(b, *pair) for b, pair in own.items()] for name, own in found.items()})


def learning_curves(runs: Sequence[Run]) -> Figure | None:
    """The monitored quantity of the runs against optimizer steps; None: none of them was validated twice."""
    found: dict[str, list[Curve]] = {}
    quantities: dict[str, None] = {}
    for run in runs:
        path, quantity = run.folder / METRICS, str((run.results or {}).get("monitor"))
        columns = read_metrics(path) if path.is_file() else {}
        if "step" in columns and len(columns.get(quantity, ())) > 1:
            quantities[words(quantity)] = None
            found.setdefault(configuration(run), []).append(Curve(columns["step"], columns[quantity]))
    return sweep_plots.learning_curves(found, " and ".join(quantities)) if found else None


def headings(table: Table) -> list[str]:
    """The columns by name."""
    return ["configuration", "runs", *(f"{words(key)}{',' if unit(key) else ''}{unit(key)}" for key in table.columns)]


def cells(table: Table, line: Line) -> list[str]:
    """A line as text; what it has no number of is empty."""
    short = sum(1 for run in line.runs if run.results is not None and len(numbers(run)) < len(line.cells))
    marks = {"failed": len(line.failed), "at the variance floor": len(line.floored), "with numbers that are not finite": short}
    marked = ", ".join(f"{count} {what}" for what, count in marks.items() if count)
    count = f"{len(line.runs) - len(line.failed)}" + (f" ({marked})" if marked else "")
    return [line.name, count, *(str(line.cells[key]) if key in line.cells else "" for key in table.columns)]


def shown(table: Table) -> dict[str, object]:
    """A table for the page: cells with the values they sort by."""
    lines = []
    for line in table.lines:
        text = cells(table, line)
        means = [repr(line.cells[key].mean) if key in line.cells else "" for key in table.columns]
        values = [line.name, str(len(line.runs) - len(line.failed)), *means]
        best = [False, False, *(key in line.best for key in table.columns)]
        lines.append([{"text": a, "value": b, "best": c} for a, b, c in zip(text, values, best, strict=True)])
    return {"measure": table.measure, "headings": headings(table), "lines": lines}


def as_csv(found: Sequence[Table]) -> str:
    """A line for each configuration with means, half widths of 95% intervals, and counts of runs; not rounded."""
    keys = list(dict.fromkeys(key for table in found for key in table.columns))
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [_cell(f"{key}{end}") for key in keys for end in ("", " ± 95%", " runs")]
    writer.writerow(["measure", "configuration", "runs", "failed", "floored", *columns])
    for table in found:
        for line in table.lines:
            own = [line.cells.get(key) for key in keys]
            flat = [part for cell in own for part in (("", "", 0) if cell is None else (cell.mean, cell.half_width, cell.count))]
            writer.writerow([_cell(table.measure), _cell(line.name), len(line.runs), len(line.failed), len(line.floored), *flat])
    return text.getvalue()


def _cell(text: str) -> str:
    """Text for a cell of a spreadsheet, which takes what begins so for a formula."""
    return f"'{plain(text)}" if text.startswith(("=", "+", "-", "@")) else plain(text)


def as_markdown(found: Sequence[Table]) -> Iterator[str]:
    """The tables, the best in bold."""
    for table in found:
        yield from [_marked(table.measure), ""] if table.measure else []
        lines = [[_marked(cell) for cell in _bold(table, line, "**{}**")] for line in table.lines]
        yield from markdown([_marked(heading) for heading in headings(table)], lines, (0,))
        yield ""


def as_latex(found: Sequence[Table]) -> Iterator[str]:
    """The tables for a document that uses booktabs, the best in bold."""
    for table in found:
        names = [_escaped(name) for name in headings(table)]
        yield rf"% {_escaped(table.measure) or 'one table'}, means over seeds with half of the 95% interval; needs \usepackage{{booktabs}}"
        yield rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}"
        yield rf"\toprule {' & '.join(names)} \\ \midrule"
        yield from (" & ".join(_bold(table, line, r"\textbf{{{}}}", escape=True)) + r" \\" for line in table.lines)
        yield r"\bottomrule \end{tabular}"


def _bold(table: Table, line: Line, form: str, escape: bool = False) -> list[str]:
    text = [_escaped(cell) if escape else cell for cell in cells(table, line)]
    return [*text[:2], *(form.format(cell) if key in line.best else cell for key, cell in zip(table.columns, text[2:], strict=True))]


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in plain(text))


def _marked(text: str) -> str:
    """Text for a line of Markdown, in which it is no cell's end and no HTML."""
    return plain(text).replace("|", r"\|").replace("<", r"\<")


def link(run: Run) -> str | None:
    """Where the report of a run is, from that of its sweep; None: it has none."""
    return f"{quote(run.folder.name)}/{files.REPORT}" if (run.folder / files.REPORT).is_file() else None
