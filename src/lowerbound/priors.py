"""Priors p(z)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, OneHotCategorical

from lowerbound.distributions import FlatDensity, diagonal_normal
from lowerbound.errors import real, whole
from lowerbound.parts import Prior, Solvable
from lowerbound.statistics import Statistics


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


EMPTY = 1e-6  # data: a component that is responsible for fewer has no mean of its own


class OneHot(Prior, Solvable):
    """Cat(pi) over one-hot rows z of K entries (Bishop 2006, eq. 9.10): the prior of a mixture.

    pi has the prior Dirichlet(1 + `pseudo_counts`): as if every component had been seen so many times before the first datum.
    """

    num_data: Tensor

    def __init__(self, num_components: int, pseudo_counts: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = whole(num_components, "num_components")
        self.pseudo_counts = real(pseudo_counts, "pseudo_counts", least=0)
        self.logits = nn.Parameter(torch.zeros(num_components, dtype=torch.float64))  # [K]
        self.register_buffer("num_data", torch.zeros((), dtype=torch.float64))

    def forward(self) -> Distribution:
        """Cat(pi), event ``[K]``."""
        return OneHotCategorical(logits=self.logits, validate_args=False)

    @torch.no_grad()
    def initialize(self, x: Tensor, num_data: int) -> None:
        """Equal weights, and how many data the pseudo-counts stand beside."""
        self.num_data.fill_(num_data)
        self.logits.zero_()

    def expect_data(self, count: int) -> None:
        """That the pseudo-counts stand beside."""
        self.num_data.fill_(count)

    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """N_k = sum_n gamma(z_nk) ``[K]`` (eq. 9.27)."""
        return {"responsibilities": q.mean.sum(0, dtype=torch.float64)}

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """pi_k = N_k / N (eq. 9.26), with the pseudo-counts; an emptied component shares with the heaviest."""
        counts = statistics["responsibilities"].clone()
        self.num_data.copy_(counts.sum())
        empty, heaviest = emptied(counts)
        counts[empty] = counts[heaviest] = counts[heaviest] / (1 + empty.sum())
        self.logits.copy_((counts + self.pseudo_counts).log() - (counts + self.pseudo_counts).sum().log())

    def log_prior(self) -> Tensor | float:
        """a sum_k log pi_k, divided by N; 0 before N is known."""
        return self.pseudo_counts * self.logits.log_softmax(0).sum() / self.num_data if self.num_data > 0 else 0.0


def emptied(responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Which components ``[K]`` are responsible for nothing, and the index of that which is for most."""
    return responsibilities < EMPTY, responsibilities.argmax()


class Flat(Prior):
    """The improper density 1: the prior that PCA and autoencoders have. It cannot be sampled and gives no evidence."""

    is_proper = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = whole(latent_dim, "latent_dim")

    def forward(self) -> Distribution:
        """Log-density 0 on R^L."""
        return FlatDensity(self.latent_dim)
