"""The runs of a sweep as a table: a line for each configuration, means over its seeds with their uncertainty.

    mean -/+ t s / sqrt(n)     the 95% interval of a mean over n seeds, t the 97.5% quantile of Student's t with n - 1 degrees

Configurations are what sets runs apart, but for the seed. What is best is said of numbers that measure how good a model is, and only
among runs on the same data whose log-densities are of one kind: densities and probabilities never share a ranking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit

from lowerbound.runs import Run, named

SEEDS = ("seed", "data.seed")
HIGHER = ("elbo", "log_evidence", "exact", "quadrature", "accuracy", "AIS", "IWAE")
LOWER = ("rmse", "error")
LARGEST = 1e100  # the squares of larger numbers have no sum


@dataclass(frozen=True)
class Cell:
    """A mean over runs, and half the width of its 95% interval, if there is more than one."""

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """That of a number of each run."""
        count = len(values)
        spread = float(stdtrit(count - 1, 0.975)) * stdev(values) / sqrt(count) if count > 1 else None
        return cls(fmean(values), spread, count)

    def __str__(self) -> str:
        """With as many decimals as the interval can bear."""
        if not self.half_width:
            alone = f"{self.mean:.4g}" if abs(self.mean) < 1e4 else f"{self.mean:,.0f}"
            return alone if self.half_width is None else f"{alone} ± 0"
        decimals = max(0, min(6, 1 - _magnitude(self.half_width)))
        return f"{self.mean:.{decimals}f} ± {self.half_width:.{decimals}f}"


@dataclass(frozen=True)
class Line:
    """A configuration: what sets it apart, its runs, its numbers by key, and those of them that are the best."""

    name: str
    runs: list[Run]
    cells: dict[str, Cell]
    best: frozenset[str] = frozenset()

    @property
    def failed(self) -> list[Run]:
        """The runs without results."""
        return [run for run in self.runs if run.results is None]

    @property
    def floored(self) -> list[Run]:
        """The runs whose noise ended at its floor, which alone limits their density: they are not ranked."""
        return [run for run in self.runs if run.results is not None and run.results.get("is_floored")]

    def is_ranked(self, key: str) -> bool:
        """Whether its number may be the best: all finished runs have it, as a diverged one has not, and none is at its variance floor."""
        return key in self.cells and self.cells[key].count == len(self.runs) - len(self.failed) and not self.floored


@dataclass(frozen=True)
class Table:
    """The lines of one kind of data and log-density, under the keys of their columns."""

    measure: str
    columns: list[str]
    lines: list[Line]


def tables(runs: Sequence[Run]) -> list[Table]:
    """One for each kind that the runs are of, as a rule one; runs that failed stand where their configuration's others stand, or first."""
    kinds: dict[str, list[Run]] = {}
    known = {configuration(run): _kind(run) for run in reversed(runs) if run.results is not None}
    first = next((_kind(run) for run in runs if run.results is not None), "")
    for run in runs:
        kinds.setdefault(known.get(configuration(run), first) if run.results is None else _kind(run), []).append(run)
    return [_table(own) for own in kinds.values()]


def numbers(run: Run) -> dict[str, float]:
    """The finite numbers of a run that a table shows: test means and studies, evidence if it was evaluated, and seconds."""
    results = run.results or {}
    found = {key: value for key, value in results.items() if key.startswith(("test/", "study/"))}
    for row in run.evaluation.get("evidence", []):
        found[f"evidence/{row['quantity']} of {row['num_data']:,} data"] = row["mean"]
    if units := run.evaluation.get("latent", {}).get("units"):
        found["latent/active_units"] = units["active"]
    found |= {"seconds": results["seconds"]} if "seconds" in results else {}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float) and abs(value) < LARGEST}


def rises(key: str) -> bool | None:
    """Whether more of a number is better, or less; None: neither, as of the two parts of a bound, a loss that depends on beta, a study."""
    part, _, name = key.partition("/")
    if part not in ("test", "evidence"):
        return None
    if name.startswith(HIGHER) or name.endswith(HIGHER):
        return True
    return False if name.endswith(LOWER) else None


def _table(runs: Sequence[Run]) -> Table:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(configuration(run), []).append(run)
    lines = [Line(name, own, _cells(own)) for name, own in groups.items()]
    columns = _ordered({key for line in lines for key in line.cells})
    best = {key: _best(lines, key) for key in columns}
    lines = [Line(one.name, one.runs, one.cells, frozenset(key for key in columns if best[key] == one.name)) for one in lines]
    measure = next((run.results.get("measure") for run in runs if run.results), None)
    return Table(measure or "", columns, lines)


def _cells(runs: Sequence[Run]) -> dict[str, Cell]:
    found = [numbers(run) for run in runs if run.results is not None]
    return {key: Cell.of([one[key] for one in found if key in one]) for key in dict.fromkeys(key for one in found for key in one)}


def _best(lines: Sequence[Line], key: str) -> str | None:
    """The name of the line that is best in a column, if there are several and the column ranks."""
    means = {line.name: line.cells[key].mean for line in lines if line.is_ranked(key)}
    if rises(key) is None or len(means) < 2:
        return None
    return max(means, key=lambda name: means[name] if rises(key) else -means[name])


def _ordered(keys: set[str]) -> list[str]:
    first = ("test/elbo", "test/log_evidence", "test/reconstruction", "test/kl", "test/loss")
    rank = {key: i for i, key in enumerate(first)} | {"seconds": 99}
    return sorted(keys, key=lambda key: (rank.get(key, len(first)), not key.startswith("test/"), _natural(key)))


def _natural(key: str) -> list[str | int]:
    """IWAE-10 comes before IWAE-100, and of more data before of fewer."""
    name, *counts = re.split(r"[- ](?=\d)", key)
    sample, *data = (int(re.sub(r"\D", "", count)) for count in counts or ["0"])
    return [name.removesuffix(" of"), sample, *(-count for count in data)]


def configuration(run: Run, *others: str) -> str:
    """What sets a run apart, but for its seeds and the other keys."""
    return named({key: value for key, value in run.choices.items() if key not in {*SEEDS, *others}}) or "all runs"


def _kind(run: Run) -> str:
    """What must be equal for two runs to be compared: the measure of their densities, the data and their preparation."""
    assert run.results is not None
    return json.dumps([run.results.get("measure"), run.data], sort_keys=True)


def _magnitude(value: float) -> int:
    """The place of the first digit that is not 0: -2 of 0.035."""
    return int(f"{value:e}".partition("e")[2]) if value else 0
