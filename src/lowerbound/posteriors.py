"""Amortised posteriors q(z | x): one network for all x (Kingma & Welling 2014, section 3).

    DiagonalGaussian   N(z; mu(x), diag s(x)^2), or with one s shared by all x
    FullGaussian       N(z; mu(x), C(x) C(x)'), C lower triangular
    Delta              the point mu(x)

A network's half-precision outputs are widened before they become parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from lowerbound import distributions
from lowerbound.distributions import at_least_float32, diagonal_normal
from lowerbound.errors import whole
from lowerbound.networks import Recipe
from lowerbound.parts import Posterior

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


class DiagonalGaussian(Posterior):
    """N(mu(x), diag s^2), with log s from the network, or one learnt log s for all x if `shared_scale`."""

    def __init__(self, network: Recipe, latent_dim: int, shared_scale: bool = False) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")
        self.network = network(latent_dim if shared_scale else 2 * latent_dim)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim)) if shared_scale else None  # [L]

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """q(z | x) for x ``[N, D]``."""
        outputs = at_least_float32(self.network(x))  # [N, L or 2 L]
        loc, log_scale = outputs[..., : self.latent_dim], outputs[..., self.latent_dim :]
        return diagonal_normal(loc, (log_scale if self.log_scale is None else self.log_scale.expand_as(loc)).exp())


class FullGaussian(Posterior):
    """N(mu(x), C(x) C(x)') with C lower triangular, its diagonal the exponential of the network's outputs."""

    def __init__(self, network: Recipe, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")
        self.network = network(2 * latent_dim + latent_dim * (latent_dim - 1) // 2)

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """q(z | x) for x ``[N, D]``."""
        dim = self.latent_dim
        outputs = at_least_float32(self.network(x))  # [N, 2 L + L (L - 1) / 2]
        loc, log_diagonal, below = outputs.split([dim, dim, outputs.shape[-1] - 2 * dim], dim=-1)
        rows, columns = torch.tril_indices(dim, dim, offset=-1, device=x.device)
        factor = torch.diag_embed(log_diagonal.exp())  # [N, L, L]
        factor[..., rows, columns] = below
        return MultivariateNormal(loc, scale_tril=factor, validate_args=False)


class Delta(Posterior):
    """The point mu(x): the encoder of an autoencoder."""

    is_point = True

    def __init__(self, network: Recipe, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")
        self.network = network(latent_dim)

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """The point for x ``[N, D]``."""
        return distributions.Delta(at_least_float32(self.network(x)))
