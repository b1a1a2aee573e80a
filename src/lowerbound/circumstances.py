"""What a run was: its model in equations and its data, and how, where and how fast its numbers came about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lowerbound import folder as files
from lowerbound.data.module import PARTS, TensorDataModule
from lowerbound.equations import equations
from lowerbound.fit import Fit
from lowerbound.gradient import GradientFit
from lowerbound.model import LatentVariableModel
from lowerbound.tracking import METRICS, read_metrics
from lowerbound.wording import say, unit, written

SOME = 100  # rows, which show of what kind all are


def circumstances(trainer: Trainer, fit: Fit, data: LightningDataModule, name: str) -> dict[str, Any]:
    """All of it, for results.json. The seconds are those of the fit, its validations and pictures included, over all its parts."""
    floored = fit.evaluation_model.likelihood.floored()
    return {
        "name": name,
        "monitor": fit.monitor,
        "equations": equations(fit.evaluation_model),
        "data": described(data),
        "measure": measure(fit.evaluation_model, data),
        "parameters": sum(p.numel() for p in fit.model.parameters()),
        "seconds": round(fit.seconds, 3),
        "images_per_second": round(fit.rows_seen * trainer.world_size / fit.seconds, 1),
        "precision": trainer.precision,
        "device": files.device_name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "versions": files.versions(),
        "git_commit": files.git_commit(),
        "batches_left_out": fit.left_out if isinstance(fit, GradientFit) else 0,
        "is_floored": floored is not None,
        "remarks": fit.remarks + ([floored] if floored else []),
    }


def described(data: LightningDataModule) -> dict[str, Any]:
    """The kind of the data, how many rows of how many numbers, and what was made of them before the model saw them."""
    if not isinstance(data, TensorDataModule):
        return {"kind": type(data).__name__}
    counts = {name: data.count(name) for name in PARTS}
    kind = getattr(data, "dataset", type(data).__name__)
    return {"kind": kind, "dim": data.dim, "preparation": [str(step) for step in data.prepare.chain]} | counts


def measure(model: LatentVariableModel, data: LightningDataModule) -> str | None:
    """What the numbers of a run are; those of different kinds never share a ranking. None: data of the user's own, which do not say."""
    if not model.is_bounded:
        return "squared errors and cross-entropies, no log p(x)"
    if not isinstance(data, TensorDataModule):
        return None
    if remark := model.check_data(data.part("val", SOME).x):  # bits under a density, or grey values under a probability
        return f"no log p(x) of these data ({remark})"
    return "probabilities of discrete data" if data.prepare.is_discrete else "densities of real data"


def counted(number: int, what: str) -> str:
    """The number with the word for it."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@rank_zero_only
def announce_reached(folder: Path) -> None:
    """Print what the last validation of a run that was stopped has found, and how it is gone on with."""
    columns, here = read_metrics(folder / METRICS), os.path.relpath(folder)
    numbers = {key: values[-1] for key, values in columns.items() if values and key.startswith("val/")}
    if numbers:
        print(f"\nstopped; the last validation, after optimizer step {columns['step'][-1]:.0f}:")
        say(f"  {key:<20}{written(value)}{unit(key)}" for key, value in numbers.items())
    print(f"  go on with:  lowerbound-train resume={here}", flush=True)


@rank_zero_only
def announce(results: dict[str, Any], folder: Path) -> None:
    """Print the numbers, the remarks, and where the pictures are."""
    numbers = {key: value for key, value in results.items() if key.startswith(("test/", "study/"))}
    width = max(map(len, numbers), default=0) + 2
    lines = [f"  {key:<{width}}{written(value)}{unit(key)}" for key, value in numbers.items()]
    print(f"\n{results['name']}: {counted(results['optimizer_steps'], 'optimizer step')} in {results['seconds']:.1f} s")
    say([*lines, *(f"  note: {remark}" for remark in results["remarks"])])
    here = Path(os.path.relpath(folder))
    print(f"  report:   {here / files.REPORT}")
    if (folder / files.WEIGHTS).is_file():
        print(f"  load it:  lowerbound.load({str(here)!r})")
