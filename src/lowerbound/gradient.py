"""Gradient learning: `GradientFit`, the LightningModule that ascends an objective.

The loader hands out blocks ``[K, B, D]``, and one `training_step` takes K optimizer steps, because Lightning's loop costs as
much as a step of a small model. K never changes the result. A plain batch ``[B, D]`` of any loader is a block of one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lowerbound import nonfinite
from lowerbound.data.batches import TensorBatches
from lowerbound.errors import real, to_its_end, whole
from lowerbound.fit import Fit, rows
from lowerbound.metrics import sums
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Bound, Objective
from lowerbound.schedules import Schedule, Step
from lowerbound.starts import Start

T = TypeVar("T")

LEAVE_OUT = "fit.skip_nonfinite=10 leaves out up to ten such batches"


def made(option: str, make: Callable[..., T], argument: object) -> T:
    """What a recipe makes of its argument.

    Raises:
        ValueError: it is no recipe, lacks something, has too much, or a value that does not fit; the message names the option.
    """
    if not callable(make):
        raise ValueError(f"{option}={make!r} is no recipe: {option}._target_ names a class, and the keys beside it are its options")
    options = getattr(make, "keywords", {})
    if "lr" in options:
        real(options["lr"], f"{option}.lr", least=0)
    try:
        return make(argument)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(f"{option}: {error} (it has {given or 'no options'})") from error


class GradientFit(Fit):
    """Learning by gradient ascent on an objective.

    `optimizer` makes an optimizer from parameters, `scheduler` a torch learning-rate scheduler from an optimizer (stepped after
    every optimizer step), or is a `Schedule` of factors on the learning rate. `clip` bounds the norm of the gradient, `ema` is the
    decay per optimizer step of an exponential average of the weights, which is then what is validated and saved. `start` sets
    the parameters from training rows before the first step; None keeps them. At most `skip_nonfinite` batches of which a term or the
    gradient is not finite are left out, without an optimizer step; the next one ends the run, as with 0 the first one does. To look
    before each step costs a GPU its lead over the processor, so with 0 a block is looked at once, at its end.

    Raises:
        ValueError: an option is out of its range.
        NonFiniteError: a term of the objective is not finite.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        objective: Objective | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], LRScheduler] | Schedule | None = None,
        steps_per_execution: int = 8,
        clip: float | None = None,
        ema: float | None = None,
        start: Start | None = None,
        skip_nonfinite: int = 0,
    ) -> None:
        super().__init__(model, objective, start)
        self.automatic_optimization = False
        self.skip_nonfinite, self.left_out = whole(skip_nonfinite, "fit.skip_nonfinite", least=0), 0
        self.steps_per_execution = whole(steps_per_execution, "fit.steps_per_execution")
        self.make_optimizer, self.scheduler = optimizer, scheduler
        self.clip = None if clip is None else real(clip, "fit.clip, the largest norm of the gradient,", above=0)
        decay = None if ema is None else real(ema, "fit.ema, the decay per optimizer step,", above=0, below=1)
        self.average = None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
        if self.average is not None:
            self.average.requires_grad_(False)  # DDP waits for gradients of whatever requires one

    @property
    def evaluation_model(self) -> LatentVariableModel:
        """The averaged model if there is one, else the model."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, LatentVariableModel)
        return self.average.module

    def configure_optimizers(self) -> Any:
        """The optimizer, with the scheduler if it is one of torch's."""
        optimizer = made("fit.optimizer", self.make_optimizer, [p for p in self.model.parameters() if p.requires_grad])
        if isinstance(optimizer, LBFGS):
            raise ValueError("fit.optimizer: LBFGS evaluates the loss several times a step, which is not offered; choose Adam or SGD")
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self.scheduler is None or isinstance(self.scheduler, Schedule):
            return optimizer
        scheduler = made("fit.scheduler", self.scheduler, optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("fit.scheduler: ReduceLROnPlateau waits for a metric, and schedulers step with the optimizer; choose another")
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @property
    def settings(self) -> dict[str, float]:
        """beta and the learning rate."""
        return super().settings | {"lr": self._optimizer.param_groups[0]["lr"]}

    @property
    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def on_train_start(self) -> None:
        """Learn how long the run will be, and refuse schedules that do not fit it."""
        super().on_train_start()
        self.clock = Step(self.global_step, self._total_steps())
        for schedule in (self.objective.beta, self.scheduler):
            if isinstance(schedule, Schedule):
                schedule.check(self.clock.total)

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole run, or None if only the clock ends it."""
        trainer, limits = self.trainer, []
        blocks, loader = trainer.num_training_batches, trainer.train_dataloader
        if trainer.max_epochs is not None and trainer.max_epochs >= 0 and blocks != inf:
            steps = loader.steps_in(int(blocks)) if isinstance(loader, TensorBatches) else int(blocks)
            limits.append(trainer.max_epochs * steps)
        if trainer.max_steps >= 0:
            limits.append(trainer.max_steps)
        return min(limits, default=None)

    @to_its_end
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimizer step for each batch of the block, and no more than `max_steps` in all."""
        is_block = isinstance(self.trainer.train_dataloader, TensorBatches)
        block = batch if is_block else rows(batch, self.model.data_dim).unsqueeze(0)  # [K, B, D]
        if self.trainer.max_steps >= 0:
            block = block[: self.trainer.max_steps - self.global_step]
        share = self._mean_rows(block.shape[1])
        optimizer, scheduler = self._optimizer, self.lr_schedulers()
        bounds = [bound for i, x in enumerate(block) if (bound := self._ascend(x, i, share, optimizer, scheduler)) is not None]
        if not bounds:
            return
        terms = torch.stack([sums(bound) for bound in bounds])  # [K, 3]
        self._require_finite(terms, bounds)
        total, count = terms.sum(0), len(bounds) * block.shape[1]
        self.train_means.update(total, count)
        self.rows_seen += count
        if count:
            self._log_block(total / count)

    def _mean_rows(self, rows: int) -> float:
        """The mean over ranks of the rows of a batch: DDP averages gradients, so each rank divides its sum by this."""
        if self.trainer.world_size == 1:
            return rows
        return float(self.trainer.strategy.reduce(torch.tensor(float(rows), device=self.device), reduce_op="mean"))

    def _ascend(self, x: Tensor, i: int, share: float, optimizer: LightningOptimizer, scheduler: Any) -> Bound | None:
        """One optimizer step on ``[B, D]``, batch `i` of the block; the terms of the bound, or None if it was left out."""
        if isinstance(self.scheduler, Schedule):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.scheduler(self.clock)
        bound = self.objective(self.model, x, self.clock)
        optimizer.zero_grad()  # here, so that the new gradients take the memory of the old ones
        self.manual_backward(-bound.value.sum() / share)
        bound = bound.detached()
        if self.skip_nonfinite and self._leaves_out(bound, i):
            return None
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        self._after_step()
        return bound

    def _leaves_out(self, bound: Bound, i: int) -> bool:
        """Whether a term or the gradient is not finite on any rank, and so batch `i` of the block is left out by all of them."""
        scaled = self.trainer.precision == "16-mixed"  # whose scaler leaves out steps itself until it has found its scale
        gradients = () if scaled else (p.grad for p in self.model.parameters())
        numbers = [number for number in (*bound, *gradients) if number is not None]
        if not nonfinite.any_rank(~torch.stack([number.isfinite().all() for number in numbers]).all(), self.trainer):
            return False
        bad, step = nonfinite.first_bad([bound], self.trainer, i), self.clock.now + 1
        if self.left_out == self.skip_nonfinite:
            raise nonfinite.error(step, bad, self.trainer, f"fit.skip_nonfinite={self.left_out} batches have been left out already")
        self.left_out += 1
        where = nonfinite.where(step, bad, self.trainer)
        rank_zero_only(print)(f"{where}; left out, {self.left_out} of at most {self.skip_nonfinite}", file=sys.stderr)
        return True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient: here, because under fp16 it is unscaled only now."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)

    def _after_step(self) -> None:
        """Move the clock and the average with the optimizer step."""
        self.clock = Step(self.clock.now + 1, self.clock.total)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _log_block(self, means: Tensor) -> None:
        """The block's mean ELBO (or reconstruction) on the progress bar."""
        _, reconstruction, kl = means
        name, value = ("elbo", reconstruction - kl) if self.model.is_bounded else ("reconstruction", reconstruction)
        self.log(name, value, prog_bar=True, logger=False)

    def _require_finite(self, terms: Tensor, bounds: list[Bound]) -> None:
        """Stop, on all ranks together, at a term ``[K, 3]`` that is not finite."""
        if nonfinite.any_rank(~terms.isfinite().all(), self.trainer):
            bad = nonfinite.first_bad(bounds, self.trainer)
            raise nonfinite.error(self.clock.now - len(bounds) + bad.batch + 1, bad, self.trainer, f"{nonfinite.HELP}; {LEAVE_OUT}")

    def on_train_end(self) -> None:
        """Say how many batches were left out."""
        if self.left_out:
            self._remark(f"{self.left_out} batches were left out, of which a term or the gradient was not finite (fit.skip_nonfinite)")

    def _begin(self) -> None:
        """Begin without a past."""
        super()._begin()
        self.left_out = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many batches were left out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["left_out"] = self.left_out

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        self.left_out = checkpoint["left_out"]
