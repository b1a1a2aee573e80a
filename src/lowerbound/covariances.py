"""Covariances of the K components of a Gaussian mixture: what all of them do, and those whose entries go alone.

    Spherical   s_k^2 I
    Diagonal    diag s_k^2

A covariance is asked for log-densities, for the sums of the E-step, and for its maximum given each component's scatter about its
mean; x and the means are counted from one point near the data, which saves digits. Missing entries of a factorised covariance are
left out of the sums. Every scale has a floor. Those whose entries go together are in `dense_covariances`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log, pi
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.distributions import diagonal_normal
from lowerbound.errors import real, whole
from lowerbound.likelihoods import log_above
from lowerbound.statistics import Statistics


class Conditional(NamedTuple):
    """Mean and variance ``[N, K, D]`` of the entries of x under each component, given the observed ones."""

    mean: Tensor
    variance: Tensor


def positive(count: Tensor) -> Tensor:
    """The counts as divisors: a sum over nothing divided by its count is 0."""
    return count.clamp(min=torch.finfo(count.dtype).tiny)


def like(counts: Tensor, sums: Tensor) -> Tensor:
    """The counts ``[K]`` or ``[K, D]`` with as many dimensions as the sums that belong to them."""
    return counts.reshape(counts.shape + (1,) * (sums.ndim - counts.ndim))


def squared(shift: Tensor, second: Tensor) -> Tensor:
    """The squares of shifts ``[K, D]``: entry by entry or outer products, as the second moments are."""
    return shift.square() if second.ndim == shift.ndim else shift.unsqueeze(-1) * shift.unsqueeze(-2)


def has_missing(x: Tensor) -> bool:
    """Whether an entry is NaN: a sum passes it on, which is cheaper than to look at each."""
    return bool(x.sum().isnan())


class Covariance(nn.Module, ABC):
    """The covariances of K components in D dimensions."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float) -> None:
        super().__init__()
        self.num_components, self.data_dim = whole(num_components, "num_components"), whole(data_dim, "data.dim")
        self.min_scale = real(min_scale, "covariance.min_scale", above=0)

    @abstractmethod
    def distribution(self, z: Tensor, loc: Tensor) -> Distribution:
        """N(loc, Sigma_z) for one-hot z ``[..., K]`` and loc ``[..., D]``."""

    @abstractmethod
    def log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        """log N(x; mu_k, Sigma_k) ``[N, K]`` of the observed entries."""

    @abstractmethod
    def statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """Weighted counts, first and second moments of x ``[N, D]``; float64."""

    @abstractmethod
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """The maximum given each component's scatter, the sum of squared deviations of so many data."""

    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """Give the components `empty` ``[K]`` the covariance of the heaviest."""
        for parameter in self.parameters():
            if len(parameter) == self.num_components:  # else all share one
                parameter[empty] = parameter[heaviest].clone()

    @abstractmethod
    def stretched(self, directions: Tensor) -> Tensor:
        """C_k u_k ``[K, D]`` of directions u, with C C' = Sigma: as many standard deviations long as u."""

    @abstractmethod
    def conditional(self, x: Tensor, mean: Tensor) -> Conditional:
        """Mean and variance of every entry given the observed ones."""

    @abstractmethod
    def penalty(self, spread: Tensor) -> Tensor:
        """sum_k log |Sigma_k| + tr(Sigma_k^-1 diag spread), for spread ``[D]``."""

    @abstractmethod
    def variances(self) -> Tensor:
        """The diagonals ``[K, D]``."""

    @abstractmethod
    def shaped(self, count: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Counts and scatter as `maximize` takes them, alike for all components, from one scatter ``[D, D]`` of `count` data."""

    def check_missing(self) -> None:
        """Refuse missing entries where they would cost too much.

        Raises:
            ValueError: the message names the cost.
        """
        return

    def floored(self) -> int:
        """How many components have a variance within 5% of its floor."""
        return int((self.variances() < (1.05 * self.min_scale) ** 2).any(1).sum())


class Factorised(Covariance, ABC):
    """No entry goes with another: `scale` is all there is."""

    log_scale: nn.Parameter

    @property
    def scale(self) -> Tensor:
        """s ``[K, D]``."""
        return (self.min_scale + self.log_scale.exp()).expand(-1, self.data_dim)

    def distribution(self, z: Tensor, loc: Tensor) -> Distribution:
        """N(loc, diag s_z^2)."""
        return diagonal_normal(loc, z @ self.scale)

    def log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        """By (x - mu)^2 / s^2 = x^2 / s^2 - 2 x mu / s^2 + mu^2 / s^2."""
        missing = x.isnan()
        seen, x = (~missing).to(x), x.masked_fill(missing, 0.0)  # [N, D]
        precision = self.scale.square().reciprocal()  # [K, D]
        constant = mean.square() * precision - precision.log() + log(2 * pi)
        return -(x.square() @ precision.T - 2 * x @ (mean * precision).T + seen @ constant.T) / 2

    def statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """Over the observed entries, each ``[K, D]``."""
        missing, r = x.isnan(), responsibilities.T
        seen, x = (~missing).to(x), x.masked_fill(missing, 0.0)  # [N, D]
        return {"count": (r @ seen).double(), "first": (r @ x).double(), "second": (r @ x.square()).double()}

    def conditional(self, x: Tensor, mean: Tensor) -> Conditional:
        """The component's own, whatever was observed."""
        shape = (len(x), *mean.shape)
        return Conditional(mean.expand(shape), self.scale.square().expand(shape))

    def stretched(self, directions: Tensor) -> Tensor:
        """s_k u_k."""
        return self.scale * directions

    def shaped(self, count: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal, ``[K, D]``."""
        shape = (self.num_components, self.data_dim)
        return count.expand(shape), scatter.diagonal().expand(shape)

    def penalty(self, spread: Tensor) -> Tensor:
        """sum_kd log s_kd^2 + spread_d / s_kd^2."""
        return (2 * self.scale.log() + spread / self.scale.square()).sum()

    def variances(self) -> Tensor:
        """s^2."""
        return self.scale.square()

    def _set(self, count: Tensor, scatter: Tensor) -> None:
        """s^2 = scatter / count; as it was where nothing was observed."""
        scale = (scatter.clamp(min=0) / positive(count)).sqrt()  # below 0 by rounding only
        self.log_scale.copy_(torch.where(count > 0, log_above(scale, self.min_scale), self.log_scale))


@final
class Spherical(Factorised):
    """s_k^2 I."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale)
        self.log_scale = nn.Parameter(torch.zeros(num_components, 1, dtype=torch.float64))  # [K, 1]

    @torch.no_grad()
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """Over all dimensions."""
        self._set(count.sum(1, keepdim=True), scatter.sum(1, keepdim=True))


@final
class Diagonal(Factorised):
    """diag s_k^2."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale)
        self.log_scale = nn.Parameter(torch.zeros(num_components, data_dim, dtype=torch.float64))  # [K, D]

    @torch.no_grad()
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """Dimension by dimension."""
        self._set(count, scatter)
