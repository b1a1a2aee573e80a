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

from lowerbound import nonfinite
from lowerbound.data.batches import OnePass
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import to_its_end
from lowerbound.fit import WHOLE, Fit, rows
from lowerbound.model import LatentVariableModel
from lowerbound.nonfinite import Bad
from lowerbound.parts import ClosedForm, OnMoments
from lowerbound.schedules import Step
from lowerbound.starts import AsItIs, FromRows, Start
from lowerbound.statistics import Moments, Triangle

ROWS = FromRows()
LEAST_ROWS, NUMBERS = 1024, 2**24  # in a chunk of rows: a chunk costs a few milliseconds whatever it holds
ADVICE = "data.prepare.standardize=true or a higher noise.min_scale may help; rows with numbers of another order of magnitude should go"
MISSING = "fit=closed_form: the training data have missing entries (NaN), and so no closed form; choose fit=em or fit=gradient"


@final
class Maximization(Optimizer):
    """An optimizer whose step is the closure that sets the parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Callable[[], Any]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] there is no step without one
        """Solve."""
        return closure()


class Solving(Fit, ABC):
    """A pass over the data, then a solution. Implement `take`, `finish` and `check`.

    `start` sets the parameters from training rows before the first pass; None keeps them. A loader of the user's is gone through
    once more than there are epochs, at first, to check its rows and to see whether entries are missing.

    Raises:
        ValueError: the model has parameters that are not solved for, or the trainer's precision is mixed.
    """

    def __init__(self, model: LatentVariableModel, start: Start | None) -> None:
        super().__init__(model, start=start or AsItIs())
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
        if self.trainer.precision not in WHOLE:
            name = type(self).__name__
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: {name} solves in float64; set trainer.precision=32-true or 64-true"
            )
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Count steps with the trainer, also in a second fit."""
        super().on_train_start()
        self.clock = Step(self.global_step)

    def count_data(self) -> int:
        """The rows of all ranks; those of a loader of the user's by going through it, as `on_fit_start` does through a data module."""
        if isinstance(getattr(self.trainer, "datamodule", None), TensorDataModule):
            return super().count_data()
        loader: Any = self.trainer.train_dataloader
        count, missing = 0, False
        for index, batch in enumerate(loader):
            if index >= self.trainer.num_training_batches:
                break
            x = rows(batch, self.model.data_dim)
            self._check_data(x)
            count, missing = count + len(x), missing or bool(x.isnan().any())
        total = self.over_ranks(torch.tensor([count, missing], dtype=torch.float64, device=self.device))
        self.has_missing = bool(total[1])
        return int(total[0])

    @to_its_end
    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Add the batch, or all chunks of the pass that it is; solve after the last."""
        for x in self._chunks(batch):
            self.take(x)
        if self.trainer.is_last_batch:
            self.finish()

    def require_finite(self, sums: Tensor, find: Callable[[], Bad] | None = None) -> None:
        """Stop before an M-step whose sums are not finite, while the parameters are still good; `find` finds the rows of a batch."""
        if not sums.isfinite().all():
            raise nonfinite.error(self.clock.now + 1, (find or self._bad_rows)(), self.trainer, ADVICE)

    def _bad_rows(self) -> Bad:
        loader: Any = self.trainer.train_dataloader
        chunks = loader.chunks if isinstance(loader, OnePass) else loader
        bounds = (self.objective(self.model, rows(x, self.model.data_dim), self.clock) for x in chunks)
        return nonfinite.bad_rows(bounds, self.trainer)

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
    condition number; or ``auto``: svd where there are no more rows than dimensions.

    Training means are logged where they are known from the moments: not of mixtures of one component.
    """

    def __init__(self, model: LatentVariableModel, method: str = "auto", start: Start | None = ROWS) -> None:
        super().__init__(model, start)
        self.rows_per_chunk = max(LEAST_ROWS, NUMBERS // model.data_dim)
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

    def on_train_start(self) -> None:
        """Refuse missing entries, and choose the route."""
        super().on_train_start()
        self._summary = None  # of a fit that was interrupted
        if self.has_missing:
            raise ValueError(MISSING)
        wide = 0 < self.num_data <= self.model.data_dim
        self._kind = Triangle if self.method == "svd" or (self.method == "auto" and wide) else Moments

    def take(self, x: Tensor) -> None:
        """Merge the block's moments, or its triangular factor."""
        block = self._kind.of(x)
        self._summary = block if self._summary is None else self._summary.merged(block)  # pyright: ignore[reportArgumentType] of one kind

    def finish(self) -> None:
        """Solve, and end the run."""
        model, likelihood = self.model, self.model.likelihood
        assert isinstance(likelihood, ClosedForm)
        assert self._summary is not None
        summary = self._summary.summed(self.over_ranks) if isinstance(self._summary, Moments) else self._all(self._summary)
        self.require_finite(summary.scatter if isinstance(summary, Moments) else summary.factor)
        spectrum, self._summary = summary.spectrum(), None
        self.step(lambda: likelihood.solve(spectrum, model))
        if isinstance(likelihood, OnMoments):
            self.report(likelihood.terms(likelihood.expected(summary, model), model), summary.count.item())
        self.trainer.should_stop = True

    def _all(self, triangle: Triangle) -> Triangle:
        """The factor of the data of all ranks."""
        size = self._of_ranks(torch.tensor(len(triangle.factor), device=self.device)).max()
        factors = self._of_ranks(triangle.padded(int(size)).factor)
        return reduce(Triangle.merged, map(Triangle, self._of_ranks(triangle.offset), factors))

    def _of_ranks(self, tensor: Tensor) -> Tensor:
        """Those of all ranks, one behind the other."""
        places = tensor.new_zeros(self.trainer.world_size, *tensor.shape)
        places[self.global_rank] = tensor
        return self.over_ranks(places)


def _names(model: LatentVariableModel) -> str:
    """The parts of a model, for messages."""
    return " with ".join(type(part).__name__ for part in model.children())
