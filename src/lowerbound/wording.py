"""How numbers are named, explained, written and set in tables: on the screen, in Markdown and in reports.

Every log-density is in nats per datum, summed over dimensions and averaged over data; `NOT_NATS` are the last words of names of
numbers that are something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import IO, Any

NOT_NATS = (
    *("accuracy", "components", "degrees", "dim", "dimensions", "error", "evaluations", "points", "ratio", "rmse", "scale", "seconds"),
    *("share", "steps", "units", "variance"),
)

MEANINGS = {
    "elbo": "the lower bound of log p(x): reconstruction minus KL, whatever was minimised",
    "log_evidence": "log p(x), exactly",
    "reconstruction": "E_q log p(x | z): the distortion with its sign turned, of a Gaussian with all constants",
    "kl": "KL(q(z | x), p(z)): the rate, what z tells of x and what q spends elsewhere",
    "loss": "what was minimised: -ELBO only of a model that has one, at beta 1, without free bits and without a prior of the parameters",
    "imputation_rmse": "root mean square error of hidden entries filled in, in units of the prepared data",
}

EVIDENCE = ("log p(x)", "nats per datum", "standard error", "bits per dimension", "data", "effective samples", "seconds")


def plain(text: str) -> str:
    """Text on one line, in which what a terminal would obey, or not show, is replaced: it may be a stranger's."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def say(lines: Iterable[str], file: IO[str] | None = None) -> None:
    """Print lines that may hold a stranger's words, on the screen or to another file."""
    print("\n".join(map(plain, lines)), file=file)


def unit(key: str) -> str:
    """What to write behind the number of that name."""
    return "" if key.replace("/", "_").rpartition("_")[2] in NOT_NATS else " nats"


def written(value: float) -> str:
    """A number in twelve places, with four decimals where they say something."""
    if not isfinite(value):
        return f"{value:>12}"
    if value == round(value) and 0 < abs(value) < 1e7:
        return f"{value:>12.0f}"
    return f"{value:>12.4f}" if value == 0 or 0.01 <= abs(value) < 1e7 else f"{value:>12.3g}"


def words(key: str) -> str:
    """A key as words."""
    return key.rpartition("/")[2].replace("_", " ").replace("elbo", "ELBO").replace("kl", "KL")


def evidence_cells(row: Mapping[str, Any]) -> list[str]:
    """An estimate of evaluation.json as the cells of a line under `EVIDENCE`."""
    bits, effective = row["bits_per_dimension"], row["effective"]
    return [
        row["quantity"],
        f"{'≥ ' if row['is_bound'] else ''}{row['mean']:.3f}",
        f"{row['standard_error']:.3f}",
        "" if bits is None else f"{bits:.4f}",
        f"{row['num_data']:,}",
        "" if effective is None else f"{effective:.1f}",
        f"{row['seconds']:.1f}",
    ]


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Aligned lines of a table, the columns numbered in `left` to the left."""
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    rule = "|".join("-" * (width + 1) + ("-" if i in left else ":") for i, width in enumerate(widths))

    def joined(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(widths[i]) if i in left else cell.rjust(widths[i]) for i, cell in enumerate(line)) + " |"

    return [joined(headings), f"|{rule}|", *map(joined, lines)]
