"""Amortised posteriors q(z | x): one network for all x (Kingma & Welling 2014, section 3).

    DiagonalGaussian   N(z; mu(x), diag s(x)^2), or with one s shared by all x
    FullGaussian       N(z; mu(x), C(x) C(x)'), C lower triangular
    Delta              the point mu(x)
    Tied               the point W'(x - b), with the W and b of a linear likelihood

A network's half-precision outputs are widened before they become parameters. x may hold NaN if the network takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from lowerbound import distributions
from lowerbound.distributions import at_least_float32, diagonal_normal
from lowerbound.errors import whole
from lowerbound.linear_gaussian import linear
from lowerbound.networks import Recipe, takes_missing
from lowerbound.parts import Affine, LinearPosterior, Posterior

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


class DiagonalGaussian(Posterior):
    """N(mu(x), diag s^2), with log s from the network, or one learnt log s for all x if `shared_scale`."""

    def __init__(self, network: Recipe, latent_dim: int, shared_scale: bool = False) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")
        self.network = network(latent_dim if shared_scale else 2 * latent_dim)
        self.accepts_missing = takes_missing(self.network)
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
        self.accepts_missing = takes_missing(self.network)

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
        self.accepts_missing = takes_missing(self.network)

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """The point for x ``[N, D]``."""
        return distributions.Delta(at_least_float32(self.network(x)))


@final
class Tied(LinearPosterior):
    """The point W'(x - b): the encoder of a linear autoencoder that is its decoder transposed, without parameters of its own.

    Where W has orthonormal columns, as at the least squared error, it is the orthogonal projection.
    """

    is_point = True

    def check_model(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the likelihood is not linear and Gaussian."""
        linear(model)

    def affine(self, model: LatentVariableModel) -> Affine:
        """W' and zero."""
        weight = linear(model).weight
        return Affine(weight.T, weight.new_zeros(weight.shape[1], weight.shape[1]))

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """The point for x ``[N, D]``."""
        p = linear(model)
        return distributions.Delta((x - p.bias) @ p.weight)
