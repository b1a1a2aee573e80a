"""The runs of a sweep, as their folders tell: what sets each apart, its results, and which were asked for and are not there.

A run that failed says why in failure.txt; one that did not begin has no folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lowerbound.defaults import config_loader
from lowerbound.errors import reading
from lowerbound.folder import (
    CONFIG,
    EVALUATION,
    FAILURE,
    OVERRIDES,
    RESULTS,
    SWEEP,
    read_config,
    read_json,
    read_overrides,
    read_text,
    read_yaml,
    require_own,
)

LARGEST_BETA = 1e100  # a whole number of a YAML file may be beyond all floats
LARGEST = 100_000  # runs of a grid that are told one by one
OF_LEARNING = ("seed", "batch_size", "eval_batch_size", "storage", "memory_map", "root", "download")


@dataclass(frozen=True)
class Run:
    """A run of a sweep: its folder, its overrides, which of them set it apart, and its results (None: it failed)."""

    folder: Path
    overrides: dict[str, str]
    choices: dict[str, str]
    results: dict[str, Any] | None

    @property
    def name(self) -> str:
        """What sets it apart, as it was written on the command line."""
        return named(self.choices) or self.folder.name

    def number(self, key: str) -> float | None:
        """A number of its results, if it has it."""
        return None if self.results is None else self.results.get(key)

    @cached_property
    def config(self) -> DictConfig | None:
        """Its resolved configuration; None: it did not get so far."""
        path = self.folder / CONFIG
        return read_config(path) if path.is_file() else None

    @property
    def beta(self) -> float | None:
        """The weight of the KL that training ended with; None: it is not known."""
        return None if self.config is None else beta_at_the_end(self.config.get("objective") or {})

    @cached_property
    def data(self) -> Any:
        """The data and their preparation as they were configured, without what changes no number of a datum."""
        node = None if self.config is None else self.config.get("data")
        found = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else (self.results or {}).get("data")
        return {key: value for key, value in found.items() if key not in OF_LEARNING} if isinstance(found, dict) else found

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `lowerbound-evaluate` found; empty where it was not asked."""
        try:
            return read_json(self.folder / EVALUATION) or {}
        except ValueError:  # it is being written, or was cut short
            return {}

    @property
    def state(self) -> str:
        """Finished, or why not, in a line."""
        if self.results is not None:
            return "finished"
        path = self.folder / FAILURE
        if path.is_file():
            return f"failed: {(read_text(path, errors='replace').strip() or 'it does not say why').splitlines()[0]}"
        is_damaged = (self.folder / RESULTS).is_file()
        return f"{RESULTS} is damaged" if is_damaged else "no results: it still runs, or was stopped from outside"


def beta_at_the_end(objective: Any) -> float | None:
    """The weight of the KL that training ended with, from the configuration of the objective: 1 where it has none; None: not known."""
    if not isinstance(objective, Mapping | DictConfig):
        return None
    beta = objective.get("beta", 1.0)
    beta = beta.get("end") if isinstance(beta, Mapping | DictConfig) else beta
    return float(beta) if isinstance(beta, int | float) and abs(beta) < LARGEST_BETA else None


def named(choices: Mapping[str, str]) -> str:
    """Choices as they are written on the command line."""
    return " ".join(f"{key}={value}" for key, value in choices.items())


def read_runs(folder: Path) -> list[Run]:
    """The runs of a sweep's folder, in the order of the numbers swept over, else in that of their start."""
    require_own(folder)
    found = sorted(folder.glob(f"*/{OVERRIDES}"), key=lambda path: path.stat().st_mtime_ns)
    overrides = {path.parents[1]: _split(read_overrides(path.parents[1]) or []) for path in found}
    keys = dict.fromkeys(key for own in overrides.values() for key in own)
    varied = [key for key in keys if len({own.get(key) for own in overrides.values()}) > 1]
    runs = [Run(path, own, {key: own[key] for key in varied if key in own}, _results(path)) for path, own in overrides.items()]
    return sorted(runs, key=lambda run: [_as_number(run.choices.get(key, "")) for key in varied])


def _results(folder: Path) -> dict[str, Any] | None:
    """Those of a run that did not fail, and whose file is whole."""
    try:
        return None if (folder / FAILURE).is_file() else read_json(folder / RESULTS)
    except ValueError:
        return None


def not_begun(folder: Path, runs: list[Run]) -> list[str]:
    """The runs of the grid that the sweep was started with last, of which there is no folder; none of a sweep that is no grid."""
    wanted, there = _grid(folder / SWEEP), [run.overrides for run in runs]
    varied = [key for key in wanted[0] if len({point[key] for point in wanted}) > 1] if wanted else []
    return [named({key: point[key] for key in varied}) for point in wanted if point not in there]


def _grid(path: Path) -> list[dict[str, str]]:
    """The overrides of each run that Hydra's note tells of; of none where it is of no grid, or of one that is too large to be meant."""
    if not path.is_file():
        return []
    with reading(path):
        hydra = read_yaml(path)["hydra"]
        if not str(hydra["sweeper"]["_target_"]).endswith(BasicSweeper.__name__):
            return []
        words = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()] + hydra["overrides"]["task"]
        parser = OverridesParser.create(config_loader())  # which knows the choices that a pattern is for
        try:
            overrides = parser.parse_overrides(words)
            if prod(map(_length, overrides)) > LARGEST:
                return []
            (grid,) = BasicSweeper.split_arguments(overrides, None)
        except HydraException:
            return []
        return [_split(point) for point in grid]


def _length(override: Override) -> int:
    """How many values an override sweeps over, before any of them is made."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        return max(ceil((value.stop - value.start) / value.step), 0)
    return 1


def _split(words: list[str]) -> dict[str, str]:
    split = (word.partition("=") for word in words)
    return {key: value for key, _, value in split}


def _as_number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0  # words keep the order of the runs
