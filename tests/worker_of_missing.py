"""One rank of `test_missing.py`, started by torchrun, or the only one: learns from rows with holes and writes what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import torch
from lightning.pytorch import Trainer

from lowerbound.data import InMemory, Missing


def main(folder: Path, ranks: int) -> None:
    torch.manual_seed(0)
    fit = lowerbound.EMFit(lowerbound.ppca(6, 2), start=None)
    x = torch.randn(150, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1)
    data = InMemory(x, missing=Missing(0.3), test_fraction=0.5, eval_batch_size=10)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_epochs=3, **quiet)
    trainer.fit(fit, datamodule=data)
    (test,) = trainer.test(fit, datamodule=data, verbose=False)
    torch.save(test, folder / f"{trainer.global_rank}_of_{ranks}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
