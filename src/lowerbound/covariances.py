"""Covariances of the K components of a Gaussian mixture: what all of them do, and those whose entries go alone.

    Spherical   s_k^2 I
    Diagonal    diag s_k^2

A covariance is asked for log-densities, for the sums of the E-step about the present means, and for its maximum given the
mean square deviation of each component. Missing entries of a factorised covariance are left out of the sums. Every scale has a floor.
Those whose entries go together are in `dense_covariances`.
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
        """Weighted counts, first and second moments about the means; float64."""

    @abstractmethod
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """The maximum given each component's mean square deviation, of that weight."""

    @abstractmethod
    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """Give the components `empty` ``[K]`` the covariance of the heaviest."""

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
    def shaped(self, count: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Deviation and weight for `maximize`, alike for all components, from one covariance ``[D, D]`` of `count` data."""

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
        """By (x - mu)^2 / s^2 = x^2 / s^2 - 2 x mu / s^2 + mu^2 / s^2, x counted from the mean of the means."""
        centre = mean.mean(0)
        seen = (~x.isnan()).to(mean)  # [N, D]
        x, mean = (x - centre).nan_to_num(0.0), mean - centre
        precision = self.scale.square().reciprocal()  # [K, D]
        constant = mean.square() * precision - precision.log() + log(2 * pi)
        return -(x.square() @ precision.T - 2 * x @ (mean * precision).T + seen @ constant.T) / 2

    def statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """Over the observed entries: counts, first and second moments, each ``[K, D]``."""
        centre = mean.mean(0)
        seen, x, r = (~x.isnan()).to(mean), (x - centre).nan_to_num(0.0), responsibilities.T
        shift = mean - centre
        count, first, second = ((r @ sums).double() for sums in (seen, x, x.square()))
        return {
            "count": count,
            "first": first - count * shift,
            "second": second - 2 * shift * first + count * shift.square(),
        }

    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """As the heaviest."""
        self.log_scale[empty] = self.log_scale[heaviest]

    def conditional(self, x: Tensor, mean: Tensor) -> Conditional:
        """The component's own, whatever was observed."""
        shape = (len(x), *mean.shape)
        return Conditional(mean.expand(shape), self.scale.square().expand(shape))

    def shaped(self, count: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal, ``[K, D]``."""
        shape = (self.num_components, self.data_dim)
        return covariance.diagonal().expand(shape), count.expand(shape)

    def penalty(self, spread: Tensor) -> Tensor:
        """sum_kd log s_kd^2 + spread_d / s_kd^2."""
        return (2 * self.scale.log() + spread / self.scale.square()).sum()

    def variances(self) -> Tensor:
        """s^2."""
        return self.scale.square()


@final
class Spherical(Factorised):
    """s_k^2 I."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale)
        self.log_scale = nn.Parameter(torch.zeros(num_components, 1, dtype=torch.float64))  # [K, 1]

    @torch.no_grad()
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """The mean over dimensions."""
        mean = (deviation * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        self.log_scale.copy_(log_above(mean.sqrt(), self.min_scale))


@final
class Diagonal(Factorised):
    """diag s_k^2."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale)
        self.log_scale = nn.Parameter(torch.zeros(num_components, data_dim, dtype=torch.float64))  # [K, D]

    @torch.no_grad()
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """The deviations themselves."""
        self.log_scale.copy_(log_above(deviation.sqrt(), self.min_scale))
