"""The contract: a latent-variable model is three conditional distributions.

    prior       p(z)
    likelihood  p(x | z)
    posterior   q(z | x), an approximation of p(z | x) or p(z | x) itself

Each part is a module whose forward returns a ``torch.distributions.Distribution``. Latents are always tensors
``[..., L]`` and data ``[..., D]``, events are the last dimension, and log-densities are nats summed over it.
Missing entries of x are NaN; what is missing is assumed to be missing at random.

Parts that learn by solving in place of descending are `Solvable`: they add sums over data under q(z | x), the E-step, and
maximise the expected log-density given the sums, the M-step (Bishop 2006, section 9.4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.statistics import Moments, Spectrum, Statistics, Triangle

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


class Predicted(NamedTuple):
    """Mean and standard deviation ``[N, D]`` of what is not known; `std` is None where the model has no density."""

    mean: Tensor
    std: Tensor | None


class Solvable(ABC):
    """A part whose parameters are solved for. Implement the sums of the E-step and the M-step."""

    @abstractmethod
    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """Sums over x ``[N, D]`` under q(z | x): float64, and additive over data as long as the parameters stay."""

    @abstractmethod
    def maximize(self, statistics: Statistics) -> None:
        """Set the parameters to those that maximise the expected log-density (plus the log-prior of the parameters)."""

    def count_from(self, x: Tensor) -> None:
        """Take sums of deviations from the mean of rows x ``[n, D]``, where a part takes any: a large mean would cost digits."""
        return

    def expect_data(self, count: int) -> None:
        """Take the number of training data, beside which a prior of the parameters stands; nothing where there is none."""
        return

    def log_prior(self) -> Tensor | float:
        """log p(parameters) / N up to a constant, in nats per training datum; 0 where the parameters have no prior."""
        return 0.0


class OnMoments(Solvable, ABC):
    """A likelihood of which, when no entry is missing, the data's moments are all that EM needs."""

    @abstractmethod
    def expected(self, moments: Moments | Triangle, model: LatentVariableModel) -> Statistics:
        """What `statistics` would be, summed over the data of those moments."""

    @abstractmethod
    def terms(self, expected: Statistics, model: LatentVariableModel) -> Tensor:
        """The means over those data of value, reconstruction and KL of the bound, ``[3]``, nats per datum."""


class ClosedForm(ABC):
    """A likelihood whose maximum is a formula of the data's moments."""

    @abstractmethod
    def solve(self, spectrum: Spectrum, model: LatentVariableModel) -> None:
        """Set the parameters to the maximum of the likelihood.

        Raises:
            ValueError: there is no closed form for these parts, or the data are too few; the message says what would fit.
        """


class Affine(NamedTuple):
    """q(z | x) = N(gain (x - b), covariance), the same for every x without missing entries."""

    gain: Tensor  # [L, D]
    covariance: Tensor  # [L, L]


class Prior(nn.Module, ABC):
    """p(z). Implement `forward`; inherit the rest.

    `is_proper` says whether p(z) is a distribution at all: under an improper one there is no evidence and no bound.
    """

    is_proper: bool = True
    latent_dim: int

    @abstractmethod
    def forward(self) -> Distribution:
        """p(z), event ``[L]``."""

    def initialize(self, x: Tensor, num_data: int) -> None:
        """Take a start from training rows x ``[n, D]``, a part of all `num_data`; nothing unless a prior knows of one."""
        return


class Likelihood(nn.Module, ABC):
    """p(x | z). Implement `forward`; override `check_data` where not every real x has a density.

    `marginalizes_missing` says whether NaN entries of x are integrated out of log p(x | z).
    """

    marginalizes_missing: bool = False
    data_dim: int
    latent_dim: int

    @abstractmethod
    def forward(self, z: Tensor) -> Distribution:
        """p(x | z) for z ``[..., L]``, event ``[D]``."""

    def expected_log_prob(self, x: Tensor, q: Distribution) -> Tensor | None:
        """E_q log p(x | z) in closed form for x ``[N, D]``, ``[N]`` nats of the observed entries; None where there is no such form."""
        return None

    def check_data(self, x: Tensor) -> str | None:
        """Refuse data ``[N, D]`` that this likelihood cannot have produced.

        Returns:
            A remark on data that are accepted but whose numbers mean something else, or None.

        Raises:
            ValueError: the density of x is zero or undefined; the message names the range and what would fit.
        """
        return None

    def floored(self) -> str | None:
        """A sentence naming the learnt variance that has ended at its floor, or None."""
        return None

    def initialize(self, x: Tensor, num_data: int) -> None:
        """Take a start from training rows x ``[n, D]``, a part of all `num_data`; nothing unless a likelihood knows of one."""
        return

    def predict(self, x: Tensor, q: Distribution, num_samples: int = 100) -> Predicted:
        """Mean and standard deviation of the entries of x ``[N, D]`` under q(z | x), by samples of z.

        Means and variances add up as E[x] = E_q E[x | z] and var[x] = E_q var[x | z] + var_q E[x | z].
        """
        p = self(q.sample(torch.Size([num_samples])))
        variance = p.variance.mean(0) + p.mean.var(0, correction=0)
        return Predicted(p.mean.mean(0), variance.sqrt())  # [N, D]


class Posterior(nn.Module, ABC):
    """q(z | x): a rule of inference applied to a model.

    `is_exact` says that q is Bayes' posterior, so that log p(x, z) - log q(z | x) = log p(x) for every z.
    `accepts_missing` says that x may hold NaN.
    `is_point` says that q is a point, which has no density and hence no KL.
    `is_nearest` says of a point that it maximises p(x | z), as the E-step of a model without a prior must.
    """

    is_exact: bool = False
    accepts_missing: bool = False
    is_point: bool = False
    is_nearest: bool = False

    @abstractmethod
    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """q(z | x) for x ``[N, D]``, batch ``[N]``, event ``[L]``."""

    def check_model(self, model: LatentVariableModel) -> None:
        """Refuse a model whose prior and likelihood this rule does not apply to.

        Raises:
            ValueError: the message names the pair and what would fit.
        """
        return

    def log_evidence(self, x: Tensor, model: LatentVariableModel, q: Distribution) -> Tensor:
        """log p(x) ``[N]`` by Bayes' rule at any z, if q is exact: log p(x, z) - log q(z | x), here at the mean of q.

        Raises:
            ValueError: q is not exact.
        """
        if not self.is_exact:
            raise ValueError(
                f"log p(x) is not known under the posterior {type(self).__name__}: bound it, by log_weight or lowerbound.bounds"
            )
        z = q.mean
        return model.log_likelihood(x, z) + model.prior().log_prob(z) - q.log_prob(z)


class LinearPosterior(Posterior, ABC):
    """A posterior that is affine in x where nothing is missing, so that it can be applied to the data's moments."""

    @abstractmethod
    def affine(self, model: LatentVariableModel) -> Affine:
        """Its gain and covariance."""
