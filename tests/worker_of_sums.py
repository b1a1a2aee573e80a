"""One rank of `test_solve.py`, started by torchrun: fits small models by solving and writes what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lowerbound.data import InMemory
from lowerbound.fit import Fit

FITS: dict[str, tuple[Callable[..., Any], Callable[..., Fit], bool]] = {
    "ppca by eigenvectors": (lowerbound.ppca, partial(lowerbound.ClosedFormFit, method="eigen"), False),
    "pca by singular vectors": (lowerbound.pca, partial(lowerbound.ClosedFormFit, method="svd"), False),
    "factor analysis by EM on moments": (lowerbound.factor_analysis, partial(lowerbound.EMFit, steps_per_execution=10), False),
    "ppca by EM with missing entries": (lowerbound.ppca, lowerbound.EMFit, True),
    "pca by EM with missing entries": (lowerbound.pca, lowerbound.EMFit, True),
    "ppca by stepwise EM": (lowerbound.ppca, partial(lowerbound.EMFit, update="batch", steps_per_execution=3), False),
}


def table(holes: bool) -> Tensor:
    """53 correlated rows, of which 37 are for training: 19 and 18 on two ranks, and in global batches of 8 a last one of 5."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(53, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 6, generator=generator, dtype=torch.float64)
    x += 0.3 * torch.randn(53, 6, generator=generator, dtype=torch.float64) + 5
    return x.masked_fill((torch.rand(53, 6, generator=generator) < 0.2) & holes, torch.nan)


def fitted(name: str, ranks: int) -> dict[str, Any]:
    """The parameters and the metrics that a fit of four epochs ends with."""
    make, fit, holes = FITS[name]
    torch.manual_seed(0)
    data = InMemory(table(holes), batch_size=8 // ranks)
    learner = fit(make(6, 2))
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(learner, datamodule=data)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    return {"state": learner.model.state_dict(), "metrics": metrics, "steps": learner.clock.now, "rank": trainer.global_rank}


def main(folder: Path, ranks: int) -> None:
    found = {name: fitted(name, ranks) for name in FITS}
    rank = found[next(iter(FITS))]["rank"]
    torch.save(found, folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
