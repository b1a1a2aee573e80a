"""Callbacks for runs that are stopped: one asks its own process to stop, as SLURM does, one takes its time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lowerbound import preemption


class StopAt(Callback):
    """A signal when training passes one of the optimizer steps."""

    def __init__(self, steps: Sequence[int], number: int = signal.SIGUSR1) -> None:
        self.steps, self.number, self.before = list(steps), number, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if any(self.before < step <= trainer.global_step for step in self.steps):
            os.kill(os.getpid(), self.number)
        self.before = trainer.global_step


class Slow(Callback):
    """A pause after every block, each longer than the last, until a file is there: so long does a run last that is yet to be stopped."""

    def __init__(self, seconds: float, until: str) -> None:
        self.seconds, self.until, self.count = seconds, Path(until), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        end = time.monotonic() + self.count * self.seconds
        while time.monotonic() < end and not preemption.received() and not self.until.exists():
            time.sleep(0.05)
