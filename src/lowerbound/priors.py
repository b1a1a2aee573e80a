"""Priors p(z)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from lowerbound.distributions import FlatDensity, diagonal_normal
from lowerbound.errors import real, whole
from lowerbound.parts import Prior


class StandardNormal(Prior):
    """N(0, I)."""

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        """N(0, I), event ``[L]``."""
        return diagonal_normal(self.zero, torch.ones_like(self.zero))


class MixtureOfGaussians(Prior):
    """sum_k pi_k N(m_k, diag s_k^2) with learnt weights, means and scales (Dilokthanakul et al. 2016).

    The means start as draws from N(0, I), the scales at 1, the weights equal. The KL of a posterior to it has no closed
    form: train with ``objective.kl=sampled``.
    """

    def __init__(self, latent_dim: int, num_components: int = 10, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.latent_dim, components = whole(latent_dim, "latent_dim"), whole(num_components, "prior.num_components")
        self.min_scale = real(min_scale, "prior.min_scale", above=0)
        self.logits = nn.Parameter(torch.zeros(components))  # [K]
        self.loc = nn.Parameter(torch.randn(components, latent_dim))  # [K, L]
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))  # [K, L]

    def forward(self) -> Distribution:
        """The mixture, event ``[L]``."""
        components = diagonal_normal(self.loc, self.min_scale + self.log_scale.exp())
        weights = Categorical(logits=self.logits, validate_args=False)
        return MixtureSameFamily(weights, components, validate_args=False)


class Flat(Prior):
    """The improper density 1: the prior that PCA and autoencoders have. It cannot be sampled and gives no evidence."""

    is_proper = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")

    def forward(self) -> Distribution:
        """Log-density 0 on R^L."""
        return FlatDensity(self.latent_dim)
