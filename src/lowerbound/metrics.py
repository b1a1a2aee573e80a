"""Metrics: sums over data in float64, added over batches and ranks; the mean is taken once, at the end."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lowerbound.objectives import Bound


def sums(bound: Bound) -> Tensor:
    """The sums over data of value, reconstruction and KL (0 where there is none): ``[3]``, float64, detached."""
    value, reconstruction, kl = (term if term is None else term.detach() for term in bound)
    assert value is not None
    assert reconstruction is not None
    terms = torch.stack([value, reconstruction, torch.zeros_like(value) if kl is None else kl])
    return terms.double().sum(-1)


class BoundMeans(Metric):
    """The means over data of the terms of a bound, in nats per datum.

    `compute` gives ``loss`` (minus the mean value), ``reconstruction`` and, if the model has an evidence to bound, ``kl`` and
    ``elbo`` = reconstruction - kl, which is ``log_evidence`` too if the posterior is exact. It gives nothing before the first datum.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, is_bounded: bool, is_exact: bool = False) -> None:
        super().__init__()
        self.is_bounded, self.is_exact = is_bounded, is_exact
        self.add_state("total", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: int) -> None:
        """Add the sums ``[3]`` over `count` data."""
        self.total += total
        self.count += count

    def compute(self) -> dict[str, Tensor]:
        """The means so far."""
        if not self.count:
            return {}
        value, reconstruction, kl = self.total / self.count
        means = {"loss": -value, "reconstruction": reconstruction}
        if not self.is_bounded:
            return means
        means |= {"kl": kl, "elbo": reconstruction - kl}
        return means | {"log_evidence": reconstruction - kl} if self.is_exact else means


class RootMeanSquare(Metric):
    """The root of the mean square of numbers, such as errors; nothing before the first."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, errors: Tensor) -> None:
        """Add errors of any shape."""
        self.total += errors.double().square().sum()
        self.count += errors.numel()

    def compute(self) -> Tensor | None:
        """That of all so far."""
        return (self.total / self.count).sqrt() if self.count else None
