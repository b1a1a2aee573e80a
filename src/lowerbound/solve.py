"""Learning by solving: sums over the data, then the parameters that they determine.

A solution is an optimizer step, taken in `training_step` on the last batch of the epoch, so that Lightning counts it, and validates
and saves what it made. Sums over data are float64, and added over ranks. Expectation maximization is in `em`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowerbound.data.batches import OnePass
from lowerbound.fit import Fit, rows
from lowerbound.model import LatentVariableModel
from lowerbound.parts import ClosedForm
from lowerbound.schedules import Step
from lowerbound.starts import FromRows, Start
from lowerbound.statistics import Moments, Triangle

ROWS = FromRows()
MISSING = "fit=closed_form: the training data have missing entries (NaN), and so no closed form; choose fit=em or fit=gradient"
MIXED = ("16-mixed", "bf16-mixed", "transformer-engine")


@final
class Maximization(Optimizer):
    """An optimizer whose step is the closure that sets the parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Callable[[], Any]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] there is no step without one
        """Solve."""
        return closure()


class Solving(Fit, ABC):
    """A pass over the data, then a solution. Implement `take` and `finish`; override `check` to refuse a model.

    `start` sets the parameters from training rows before the first pass; None keeps them.

    Raises:
        ValueError: the model has parameters that are not solved for, or the trainer's precision is mixed.
    """

    rows_per_chunk = 1024

    def __init__(self, model: LatentVariableModel, start: Start | None) -> None:
        super().__init__(model, start=start)
        self.automatic_optimization = False
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Refuse a model that this way of learning does not solve."""

    @abstractmethod
    def take(self, x: Tensor) -> None:
        """Add rows ``[n, D]`` to the sums."""

    @abstractmethod
    def finish(self) -> None:
        """Solve, after the last rows of an epoch."""

    def configure_optimizers(self) -> Optimizer:
        """The optimizer that counts M-steps."""
        return Maximization(self.model.parameters())

    def on_fit_start(self) -> None:
        """Refuse mixed precision, and check the data."""
        if self.trainer.precision in MIXED:
            name = type(self).__name__
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: {name} solves in float64; set trainer.precision=32-true or 64-true"
            )
        super().on_fit_start()

    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch, or all chunks of the pass that it is; solve after the last."""
        for x in self._chunks(batch):
            self.take(x)
        if self.trainer.is_last_batch:
            self.finish()

    def _chunks(self, batch: Any) -> Iterator[Tensor]:
        for chunk in batch.chunks if isinstance(batch, OnePass) else (batch,):
            x = rows(chunk, self.model.data_dim)
            self.rows_seen += len(x)
            yield x

    def over_ranks(self, tensor: Tensor) -> Tensor:
        """Its sum over ranks."""
        if self.trainer.world_size == 1:
            return tensor
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
        return tensor

    def step(self, solve: Callable[[], None]) -> None:
        """One optimizer step: `solve` sets the parameters."""
        self.optimizers().step(closure=solve)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue] one optimizer
        self.clock = Step(self.clock.now + 1, self.clock.total)

    def report(self, means: Tensor, count: float) -> None:
        """Take the means of value, reconstruction and KL over the training data, ``[3]``, for the next validation."""
        self.train_means.reset()
        self.train_means.update((means * count).to(self.device), round(count))
        self.log(self.model.monitor, means[1] - means[2], prog_bar=True, logger=False, batch_size=1)


@final
class ClosedFormFit(Solving):
    """The maximum of the likelihood as a formula of the data's moments, in one epoch.

    `method` is ``eigen``, eigenvectors of the covariance; ``svd``, singular vectors of the data, which does not square their
    condition number; or ``auto``: svd where there are fewer rows than dimensions.
    """

    rows_per_chunk = 4096

    def __init__(self, model: LatentVariableModel, method: str = "auto", start: Start | None = ROWS) -> None:
        super().__init__(model, start)
        if method not in ("auto", "eigen", "svd"):
            raise ValueError(f"fit.method={method!r} is unknown: auto, eigen or svd")
        self.method = method
        self._summary: Moments | Triangle | None = None

    def check(self) -> None:
        """Refuse a model without a closed form."""
        if not isinstance(self.model.likelihood, ClosedForm) or any(True for _ in self.model.posterior_rule.parameters()):
            raise ValueError(
                f"fit=closed_form: {_names(self.model)} has no closed form; choose fit=em or fit=gradient, or model=pca, ppca or gaussian"
            )

    def on_fit_start(self) -> None:
        """Refuse missing entries."""
        super().on_fit_start()
        if self.has_missing:
            raise ValueError(
                "fit=closed_form: the training data have missing entries (NaN), and no closed form; choose fit=em or fit=gradient"
            )

    def on_train_start(self) -> None:
        """Choose the route."""
        super().on_train_start()
        wide = 0 < self.num_data <= self.model.data_dim
        self._kind = Triangle if self.method == "svd" or (self.method == "auto" and wide) else Moments

    def take(self, x: Tensor) -> None:
        """Merge the block's moments, or its triangular factor."""
        if not x.isfinite().all():
            raise ValueError(
                "fit=closed_form: the training data have missing entries (NaN), and no closed form; choose fit=em or fit=gradient"
            )
        block = self._kind.of(x)
        self._summary = block if self._summary is None else self._summary.merged(block)  # pyright: ignore[reportArgumentType] of one kind

    def finish(self) -> None:
        """Solve, and end the run."""
        likelihood, summary = self.model.likelihood, self._summary
        assert isinstance(likelihood, ClosedForm)
        assert summary is not None
        spectrum = (summary.summed(self.over_ranks) if isinstance(summary, Moments) else self._all(summary)).spectrum()
        self.step(lambda: likelihood.solve(spectrum, self.model))
        self._summary = None
        self.trainer.should_stop = True

    def _all(self, triangle: Triangle) -> Triangle:
        """The factor of the data of all ranks."""
        if self.trainer.world_size == 1:
            return triangle
        offsets, factors = self.all_gather(triangle.offset), self.all_gather(triangle.square().factor)
        return reduce(Triangle.merged, map(Triangle, offsets, factors))


def _names(model: LatentVariableModel) -> str:
    """The parts of a model, for messages."""
    return " with ".join(type(part).__name__ for part in model.children())
