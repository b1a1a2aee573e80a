"""A callback that asks its own process to stop, as SLURM does."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopAt(Callback):
    """SIGUSR1 when training passes one of the optimizer steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps, self.before = list(steps), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if any(self.before < step <= trainer.global_step for step in self.steps):
            os.kill(os.getpid(), signal.SIGUSR1)
        self.before = trainer.global_step
