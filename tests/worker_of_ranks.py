"""One rank of `test_ranks.py`, started by torchrun, or the only one: fits a small model and writes what came of it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import torch
from lightning.pytorch import Trainer

from lowerbound.data import InMemory


class Keeping(torch.optim.SGD):
    """Keeps the gradients of its last step, which the next one takes away."""

    def step(self, closure: Any = None) -> Any:
        self.gradients = [parameter.grad.clone() for group in self.param_groups for parameter in group["params"]]
        return super().step(closure)


def main(folder: Path, ranks: int, global_batch: int) -> None:
    torch.manual_seed(0)
    model = lowerbound.autoencoder(6, 2, sizes=[8])
    x = torch.rand(53, 6, generator=torch.Generator().manual_seed(0))
    data = InMemory(x, batch_size=global_batch // ranks)
    fit = lowerbound.GradientFit(model, optimizer=partial(Keeping, lr=0.05), steps_per_execution=3)
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
    trainer.fit(fit, datamodule=data)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    (test,) = trainer.test(fit, datamodule=data, verbose=False)
    (optimizer,) = trainer.optimizers
    gradients = dict(enumerate(optimizer.gradients))
    result = {"state": fit.model.state_dict(), "gradients": gradients, "metrics": metrics | test}
    result |= {"steps": fit.clock.now, "total": fit.clock.total}
    torch.save(result, folder / f"rank_{trainer.global_rank}_of_{ranks}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
