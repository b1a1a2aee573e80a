"""What happens when a sweep ends: its report, and, of a comparison, a table on the screen and a picture.

Every sweep has a `Summary` under ``hydra.callbacks``; an experiment that is a comparison names its sweep and a `Comparison` too. They
read the runs that lie in the sweep's folder, so a run that failed is a line of the table, and not the end of it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lowerbound import plots, study_plots, sweep_report
from lowerbound.devices import check_sweep
from lowerbound.folder import FIGURES
from lowerbound.report import pixels_of
from lowerbound.runs import Run, read_runs
from lowerbound.wording import say


@final
class Summary(Callback):
    """The report of a sweep. A run that fails says why when it fails; the others go on, and the command ends with exit code 1."""

    def __init__(self) -> None:
        self._has_failed = False  # also of a run whose folder has the results of another one

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse runs of several processes before the first of them."""
        try:
            check_sweep(config.trainer, config.hydra.launcher)
        except ValueError as error:  # of which Hydra makes a warning here
            print("\n  ".join(f"lowerbound-train: {error}".splitlines()), file=sys.stderr)
            raise SystemExit(2) from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say why a run failed, and keep the sweep going to its end: Hydra would end it without a report.

        The sweeper is told that the run has come to its end, with no value: a grid needs none, and for a search the trial has failed.
        """
        if job_return.status is not JobStatus.FAILED or config.debug or "num" not in config.hydra.job:
            return
        try:
            _ = job_return.return_value  # raises what the run raised, and names the run
        except Exception as error:
            lines = (str(error) or type(error).__name__).splitlines()
            print("\n  ".join(["", *lines[:2], "debug=true shows the whole traceback."]).lstrip("\n"), file=sys.stderr)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        self._has_failed = True

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report; exit code 1 if a run failed."""
        folder = Path(config.hydra.sweep.dir)
        has_failed = self._has_failed or any(run.results is None for run in read_runs(folder))
        try:
            *_, finished, place = sweep_report.summarize(folder)
            say([finished, place])
        except (ValueError, OSError) as error:
            say(f"no report: {error}".splitlines(), sys.stderr)
        finally:  # Hydra makes a warning of any other error here, and the exit code 0
            if has_failed:
                raise SystemExit(1)


class Comparison(Callback, ABC):
    """A table of the sweep's runs, and a picture. Implement `draw`; inherit the rest.

    `columns` are headings and the keys of results.json below them, `note` is a sentence to print under the table, `name` the
    picture's.
    """

    def __init__(self, name: str, columns: Mapping[str, str], note: str = "") -> None:
        self.name, self.columns, self.note = name, dict(columns), note

    @abstractmethod
    def draw(self, runs: Sequence[Run]) -> Figure:
        """The picture of runs that have results, of which there is at least one."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the picture."""
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        say(["", self.name, *table(runs, self.columns), *self.note.splitlines()])
        if finished := [run for run in runs if run.results is not None]:
            self._save_picture(finished, folder / f"{self.name}.png")

    def _save_picture(self, runs: Sequence[Run], path: Path) -> None:
        try:
            figure = self.draw(runs)
        except (ValueError, OSError) as error:
            say(f"no picture: {error}".splitlines())
        else:
            plots.save(figure, path)
            print(f"picture: {path}")


def table(runs: Sequence[Run], columns: Mapping[str, str]) -> list[str]:
    """The runs as aligned lines under the headings, a run each; what it has no number for is a dash."""
    lines = [["", *columns], *([run.name, *(_cell(run, key) for key in columns.values())] for run in runs)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    return ["  ".join(["", line[0].ljust(first), *map(str.rjust, line[1:], others)]).rstrip() for line in lines]


def _cell(run: Run, key: str) -> str:
    value = run.number(key)
    if value is None:
        return "failed" if run.results is None else "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2g}"


@final
class Bars(Comparison):
    """A panel of bars for each column."""

    def draw(self, runs: Sequence[Run]) -> Figure:
        """The columns as bars."""
        values = {heading: [run.number(key) for run in runs] for heading, key in self.columns.items()}
        return study_plots.bars([run.name for run in runs], values)


@final
class RateDistortion(Comparison):
    """Distortion against rate for each beta."""

    def draw(self, runs: Sequence[Run]) -> Figure:
        """The curve of the runs' test data, one for each configuration.

        Raises:
            ValueError: the runs have no rate, or there is only one.
        """
        figure = sweep_report.rate_distortion(runs)
        if figure is None:
            raise ValueError("a curve takes several runs that have a rate: choose model=vae, and several objective.beta")
        return figure


@final
class Stacked(Comparison):
    """The same picture of every run, in rows of `across`, one above the other."""

    def __init__(self, name: str, columns: Mapping[str, str], picture: str, note: str = "", across: int = 1) -> None:
        super().__init__(name, columns, note)
        self.picture, self.across = picture, across

    def draw(self, runs: Sequence[Run]) -> Figure:
        """The runs' figures/<picture>.png."""
        paths = {run.name: run.folder / FIGURES / f"{self.picture}.png" for run in runs}
        return study_plots.stacked({name: pixels_of(path) for name, path in paths.items()}, self.across)
