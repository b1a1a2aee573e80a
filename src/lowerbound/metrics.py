"""Metrics: sums over data in float64, added over batches and ranks; the mean is taken once, at the end."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torchmetrics import Metric

from lowerbound.objectives import Bound

ACTIVE = 0.01  # variance of the posterior's mean over data (Burda et al. 2016, appendix C)
COLLAPSED = 0.01  # nats; a latent dimension below it carries nothing


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

    def sums(self) -> tuple[Tensor, int]:
        """Those of this process so far, ``[3]``, and how many data they are over: what `update` takes."""
        return self.total.clone(), int(self.count)

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


class PerDatum(Metric):
    """K numbers of each of N data, of which every process knows some: a sum over processes puts them together without rounding."""

    full_state_update = False
    values: Tensor

    def __init__(self, num_numbers: int, num_data: int) -> None:
        super().__init__()
        self.add_state("values", torch.zeros(num_numbers, num_data, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, start: int, values: Tensor) -> None:
        """Put in the numbers ``[K, n]`` of the data from `start` on."""
        self.values[:, start : start + values.shape[1]] = values.to(self.values)

    def compute(self) -> Tensor:
        """All of them, ``[K, N]``."""
        return self.values


class Units(NamedTuple):
    """Of each latent dimension ``[L]``, float64: the KL in nats per datum, the variance over data of the posterior's mean, and the mean
    of its variance."""

    kl: Tensor
    mean_variance: Tensor
    posterior_variance: Tensor

    @property
    def active(self) -> Tensor:
        """Which dimensions ``[L]`` have a posterior mean that varies over data (Burda et al. 2016, appendix C)."""
        return self.mean_variance > ACTIVE

    @property
    def collapsed(self) -> Tensor:
        """Which dimensions ``[L]`` carry nothing: their posterior is the prior."""
        return self.kl < COLLAPSED


class LatentUnits(Metric):
    """What each latent dimension is used for, from posteriors and the prior: sums over data."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(4, latent_dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, q: Distribution, prior: Distribution) -> None:
        """Add posteriors q(z | x) of a batch ``[B]``; the KL of a dimension is that of its marginal."""
        mean, variance = q.mean.double(), q.variance.double()  # [B, L]
        kl = kl_divergence(Normal(mean, variance.sqrt()), Normal(prior.mean.double(), prior.stddev.double()))
        self.total += torch.stack([kl.sum(0), mean.sum(0), mean.square().sum(0), variance.sum(0)])
        self.count += len(mean)

    def compute(self) -> Units:
        """Those of all data so far."""
        kl, mean, square, variance = self.total / self.count
        return Units(kl, (square - mean.square()).clamp(min=0) * self.count / (self.count - 1), variance)


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
