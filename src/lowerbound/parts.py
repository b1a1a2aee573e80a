"""The contract: a latent-variable model is three conditional distributions.

    prior       p(z)
    likelihood  p(x | z)
    posterior   q(z | x), an approximation of p(z | x) or p(z | x) itself

Each part is a module whose forward returns a ``torch.distributions.Distribution``. Latents are always tensors
``[..., L]`` and data ``[..., D]``, events are the last dimension, and log-densities are nats summed over it.
Missing entries of x are NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributions import Distribution

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


class Prior(nn.Module, ABC):
    """p(z). Implement `forward`; inherit the rest.

    `is_proper` says whether p(z) is a distribution at all: under an improper one there is no evidence and no bound.
    """

    is_proper: bool = True
    latent_dim: int

    @abstractmethod
    def forward(self) -> Distribution:
        """p(z), event ``[L]``."""


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


class Posterior(nn.Module, ABC):
    """q(z | x): a rule of inference applied to a model.

    `is_exact` says that q is Bayes' posterior, so that log p(x, z) - log q(z | x) = log p(x) for every z.
    `accepts_missing` says that x may hold NaN.
    `is_point` says that q is a point, which has no density and hence no KL.
    """

    is_exact: bool = False
    accepts_missing: bool = False
    is_point: bool = False

    @abstractmethod
    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """q(z | x) for x ``[N, D]``, batch ``[N]``, event ``[L]``."""

    def check_model(self, model: LatentVariableModel) -> None:
        """Refuse a model whose prior and likelihood this rule does not apply to.

        Raises:
            ValueError: the message names the pair and what would fit.
        """
        return
