"""What the runs of one sweep say side by side: a table on the screen and a picture in the sweep's folder.

An experiment that is a comparison names its sweep and one of these under ``hydra.callbacks``. They read results.json of the
runs that lie in the sweep's folder, so a run that failed is a line of the table, and not the end of it.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from lowerbound import plots, study_plots
from lowerbound.folder import FIGURES, RESULTS

OVERRIDES = Path(".hydra") / "overrides.yaml"


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
        return " ".join(f"{key}={value}" for key, value in self.choices.items()) or self.folder.name

    def number(self, key: str) -> float | None:
        """A number of its results, if it has it."""
        return None if self.results is None else self.results.get(key)


def read_runs(folder: Path) -> list[Run]:
    """The runs of a sweep's folder, in the order of the numbers swept over, else in that of their start."""
    found = sorted(folder.glob(f"*/{OVERRIDES}"), key=lambda path: path.stat().st_mtime_ns)
    overrides = {path.parents[1]: _overrides(path) for path in found}
    keys = dict.fromkeys(key for own in overrides.values() for key in own)
    varied = [key for key in keys if len({own.get(key) for own in overrides.values()}) > 1]
    runs = [Run(path, own, {key: own[key] for key in varied if key in own}, _results(path)) for path, own in overrides.items()]
    return sorted(runs, key=lambda run: [_as_number(run.choices.get(key, "")) for key in varied])


def _overrides(path: Path) -> dict[str, str]:
    split = (str(line).partition("=") for line in OmegaConf.load(path))
    return {key: value for key, _, value in split}


def _results(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULTS
    return json.loads(path.read_text()) if path.is_file() else None


def _as_number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0  # words keep the order of the runs


class Comparison(Callback, ABC):
    """A table of the sweep's runs, and a picture. Implement `draw`; inherit the rest.

    `columns` are headings and the keys of results.json below them, `note` is a sentence to print under the table, `name` the
    picture's. A run that fails says why when it fails; the others go on, and the command ends with exit code 1.
    """

    def __init__(self, name: str, columns: Mapping[str, str], note: str = "") -> None:
        self.name, self.columns, self.note = name, dict(columns), note

    @abstractmethod
    def draw(self, runs: Sequence[Run]) -> Figure:
        """The picture of runs that have results, of which there is at least one."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say why a run failed, and keep the sweep going to its table: Hydra would end it without one."""
        if job_return.status is not JobStatus.FAILED or config.debug:
            return
        try:
            _ = job_return.return_value  # raises what the run raised, and names the run
        except Exception as error:
            lines = (str(error) or type(error).__name__).splitlines()
            print("\n  ".join(["", *lines[:2], "debug=true shows the whole traceback."]).lstrip("\n"), file=sys.stderr)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the picture; exit code 1 if a run failed."""
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        print("\n".join(["", self.name, *table(runs, self.columns), *self.note.splitlines()]))
        finished = [run for run in runs if run.results is not None]
        if finished:
            self._save_picture(finished, folder / f"{self.name}.png")
        if len(finished) < len(runs):
            raise SystemExit(1)

    def _save_picture(self, runs: Sequence[Run], path: Path) -> None:
        try:
            figure = self.draw(runs)
        except (ValueError, OSError) as error:
            print(f"no picture: {error}")
        else:
            Image.fromarray(plots.pixels(figure)).save(path)
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
        """The curve of the runs' test data.

        Raises:
            ValueError: the runs differ in more than beta, or have no rate.
        """
        others = {key for run in runs for key in run.choices} - {"objective.beta"}
        if others:
            raise ValueError(
                f"rate and distortion are one curve over objective.beta, and the runs differ in {', '.join(sorted(others))} too"
            )
        rate, reconstruction = ([run.number(f"test/{name}") for run in runs] for name in ("kl", "reconstruction"))
        if None in rate:
            raise ValueError("an autoencoder has no rate: choose model=vae")
        beta = [float(run.overrides.get("objective.beta", 1.0)) for run in runs]
        return plots.rate_distortion([value or 0.0 for value in rate], [-(value or 0.0) for value in reconstruction], beta)


@final
class Stacked(Comparison):
    """The same picture of every run, in rows of `across`, one above the other."""

    def __init__(self, name: str, columns: Mapping[str, str], picture: str, note: str = "", across: int = 1) -> None:
        super().__init__(name, columns, note)
        self.picture, self.across = picture, across

    def draw(self, runs: Sequence[Run]) -> Figure:
        """The runs' figures/<picture>.png."""
        paths = {run.name: run.folder / FIGURES / f"{self.picture}.png" for run in runs}
        return study_plots.stacked({name: np.asarray(Image.open(path)) for name, path in paths.items()}, self.across)
