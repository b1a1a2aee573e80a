"""Expectation maximization.

    E-step   sums under q(z | x) at the present parameters: `Solvable.statistics`
    M-step   the parameters that maximise the expected log-density given the sums: `Solvable.maximize`

(Dempster, Laird & Rubin 1977; Bishop 2006, section 9.4.) With the exact posterior every step increases log p(X), plus the log-prior
of the parameters if they have one; with the point posterior of PCA it lowers the squared error (Roweis 1998).

Where the data's moments are all that EM needs they are gathered once, in the first epoch, and `steps_per_execution` steps are
taken in every epoch; else an epoch is one pass over the data and one step.
"""

from __future__ import annotations

from functools import reduce
from math import inf
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound import nonfinite
from lowerbound.data.batches import TensorBatches
from lowerbound.distributions import Delta
from lowerbound.errors import real, to_its_end, whole
from lowerbound.fit import rows
from lowerbound.metrics import sums
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Bound, evidence
from lowerbound.parts import LinearPosterior, OnMoments, Solvable
from lowerbound.solve import ROWS, Solving
from lowerbound.starts import Start
from lowerbound.statistics import Moments, Statistics, added, mixed

LEAST_ROWS = 1024
NUMBERS = 2**22  # in a chunk of rows: a chunk costs a few milliseconds whatever it holds


@final
class EMFit(Solving):
    """Expectation maximization.

    The run ends when an M-step raises the objective by less than `tolerance` nats per datum. `update` is ``epoch``, or ``batch``:
    stepwise EM (Cappe & Moulines 2009), an M-step after every batch of statistics mixed with step size (t + 2)^-`kappa`, where nothing
    ascends for certain. `e_step` is ``exact``, or ``sampled``: Monte Carlo EM (Wei & Tanner 1990), sums at `num_samples` samples of q.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        tolerance: float = 1e-7,
        update: str = "epoch",
        kappa: float = 0.7,
        e_step: str = "exact",
        num_samples: int = 1,
        steps_per_execution: int = 50,
        start: Start | None = ROWS,
    ) -> None:
        super().__init__(model, start)
        self.tolerance = real(tolerance, "fit.tolerance, in nats per datum,", least=0)
        self.kappa = real(kappa, "fit.kappa", above=0.5)
        if kappa > 1:
            raise ValueError(f"fit.kappa={kappa} must be above 0.5 and at most 1")
        for option, value, known in (("update", update, ("epoch", "batch")), ("e_step", e_step, ("exact", "sampled"))):
            if value not in known:
                raise ValueError(f"fit.{option}={value!r} is unknown: {' or '.join(known)}")
        self.num_samples = whole(num_samples, "fit.num_samples") * (e_step == "sampled")
        self.is_stepwise = update == "batch"
        self.rows_per_chunk = None if self.is_stepwise else max(LEAST_ROWS, NUMBERS // max(model.data_dim, model.latent_dim**2))
        self.steps_per_execution = whole(steps_per_execution, "fit.steps_per_execution")
        self._sums: Statistics = {}
        self._terms, self._count = torch.zeros(3, dtype=torch.float64), 0
        self._moments: Moments | None = None
        self._value = -inf
        self._is_open = False

    def check(self) -> None:
        """Refuse a model with parameters that no M-step solves for, or a posterior that is no E-step."""
        parts = {name: part for name, part in self.model.named_children() if any(True for _ in part.parameters())}
        if unsolved := [type(part).__name__ for part in parts.values() if not isinstance(part, Solvable)]:
            raise ValueError(
                f"fit=em has no M-step for {' and '.join(unsolved)}: choose fit=gradient, or model=ppca, factor_analysis, pca or mixture"
            )
        if not (self.model.is_exact or self.model.posterior_rule.is_nearest):
            name = type(self.model.posterior_rule).__name__
            raise ValueError(
                f"fit=em takes p(z | x) itself, or the nearest point of a plane, not {name}: choose posterior=exact or projection"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the objective of the last step, and the mixed statistics."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["em"] = {"value": self._value, "is_open": self._is_open, "sums": self._sums if self.is_stepwise else {}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["em"]
        self._value, self._is_open, self._sums = kept["value"], kept["is_open"], dict(kept["sums"])

    def _begin(self) -> None:
        """Begin without a past."""
        super()._begin()
        self._value, self._sums = -inf, {}

    def on_train_start(self) -> None:
        """Decide whether the data are needed once, or in every epoch."""
        super().on_train_start()
        parts = isinstance(self.model.likelihood, OnMoments) and isinstance(self.model.posterior_rule, LinearPosterior)
        is_complete = self.rows_per_chunk is not None and self.num_data > 0 and not self.has_missing
        self.is_on_moments = parts and is_complete and not self.num_samples
        self._moments, self._count = None, 0
        self._sums = {name: value.to(self.device) for name, value in self._sums.items()}  # a checkpoint is read into host memory

    @to_its_end
    @torch.no_grad()
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """The E-step of the batch; the M-step after the last, or, stepwise, after each."""
        if self.is_on_moments and self._moments is not None:
            if self.trainer.is_last_batch:
                self._execute()
        elif self.is_stepwise:
            is_block = isinstance(self.trainer.train_dataloader, TensorBatches)
            block = batch if is_block else rows(batch, self.model.data_dim).unsqueeze(0)  # [K, B, D]
            for i, x in enumerate(block[: self._steps_left(len(block))]):
                self._mix(x, i)
        else:
            super().training_step(batch, batch_idx)

    def take(self, x: Tensor) -> None:
        """Add to the moments, or to the sums of the E-step."""
        if self.is_on_moments:
            block = Moments.of(x)
            self._gathering = block if not self._count else self._gathering.merged(block)
            self._count += len(x)
            return
        q, terms = self._expect(x)
        new = self._statistics(x, q)
        self._sums = added(self._sums, new) if self._count else new
        self._terms, self._count = self._terms + terms if self._count else terms, self._count + len(x)

    def _expect(self, x: Tensor) -> tuple[Distribution, Tensor]:
        """q(z | x), and the sums of the bound's terms ``[3]`` at the present parameters."""
        q = self.model.posterior(x)
        if self.model.is_exact:
            return q, sums(evidence(self.model, x, q))
        reconstruction = self.model.log_likelihood(x, q.mean)
        return q, sums(Bound(reconstruction, reconstruction, None))

    def _statistics(self, x: Tensor, q: Distribution) -> Statistics:
        if not self.num_samples:
            return self.model.statistics(x, q)
        draws = (self.model.statistics(x, Delta(z)) for z in q.sample(torch.Size([self.num_samples])))
        return {name: value / self.num_samples for name, value in reduce(added, draws).items()}

    def finish(self) -> None:
        """The M-step, or several of them on the moments."""
        if self.is_on_moments:
            self._moments = self._gathering.summed(self.over_ranks)
            self._count = 0
            self._execute()
            return
        statistics = {name: self.over_ranks(value) for name, value in self._sums.items()}
        count = self.over_ranks(torch.tensor(self._count, dtype=torch.float64, device=self.device)).item()
        means = self.over_ranks(self._terms) / count
        self.require_finite(means)
        self._count, self._sums = 0, {}
        self.step(lambda: self.model.maximize(statistics))
        self.report(means, count)
        self._end_if_converged(means[0].item())

    def _execute(self) -> None:
        """E- and M-steps on the moments."""
        likelihood, moments = self.model.likelihood, self._moments
        assert isinstance(likelihood, OnMoments)
        assert moments is not None
        last = self.clock.now + self._steps_left(self.steps_per_execution)
        while True:
            statistics = likelihood.expected(moments, self.model)
            means = likelihood.terms(statistics, self.model)
            self.require_finite(means)
            self.step(lambda statistics=statistics: likelihood.maximize(statistics))
            if self._end_if_converged(means[0].item()) or self.clock.now >= last:
                break
        self.report(means, moments.count.item())

    def _steps_left(self, wanted: int) -> int:
        """As many M-steps as wanted, or as few as `max_steps` leaves."""
        limit = self.trainer.max_steps
        return wanted if limit < 0 else min(wanted, limit - self.global_step)

    def _end_if_converged(self, value: float) -> bool:
        """Whether the step before changed the objective by less than the tolerance; by samples of q it is never sure."""
        gain, self._value = value - self._value, value
        self._is_open = not abs(gain) < self.tolerance
        if not self._is_open and not self.num_samples:
            self.trainer.should_stop = True
        return self.trainer.should_stop

    @property
    def has_converged(self) -> bool:
        """Whether the last step changed the objective by less than the tolerance, at parameters of its own."""
        return not self._is_open

    def on_train_end(self) -> None:
        """Say so, if the epochs ended before the tolerance did."""
        if self._is_open and self.tolerance and not self.num_samples:
            self._remark(
                f"EM ended after {self.clock.now} steps, before a step changed the objective by less than "
                f"fit.tolerance={self.tolerance:g}: give more trainer.max_epochs, or a larger tolerance"
            )

    def _mix(self, x: Tensor, i: int) -> None:
        """A step of stepwise EM: the statistics of batch `i` of the block, as if all data were like it, mixed into the old ones."""
        q, terms = self._expect(x)
        self.require_finite(
            self.over_ranks(terms), lambda: nonfinite.first_bad([self.objective(self.model, x, self.clock)], self.trainer, i)
        )
        counts = self.over_ranks(torch.tensor(float(len(x)), device=self.device)).item()
        new = {name: self.over_ranks(value) * (self.num_data / counts) for name, value in self._statistics(x, q).items()}
        self._sums = mixed(self._sums, new, (self.clock.now + 2) ** -self.kappa) if self._sums else new
        self.step(lambda: self.model.maximize(self._sums))
        self.rows_seen += len(x)
        self.train_means.update(terms, len(x))
