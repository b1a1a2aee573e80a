"""Data drawn from a known model, which they keep as `truth`.

linear Gaussian      z ~ N(0, I),   x | z ~ N(W z + b, diag psi)        Bishop 2006, eq. 12.31 to 12.33, and 12.64
mixture              k ~ Cat(pi),   x | k ~ N(mu_k, s2 I)               eq. 9.7
Bernoulli mixture    k ~ Cat(pi),   x_d | k ~ Bernoulli(mu_kd)          eq. 9.47
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from lowerbound.data.batches import keyed_generator
from lowerbound.data.module import TensorDataModule
from lowerbound.data.prepare import Preparation
from lowerbound.data.source import Source
from lowerbound.errors import real, whole
from lowerbound.sizes import require_room

_TRUTH, _DRAWS = range(2)  # what a generator is for


class LinearGaussianTruth(NamedTuple):
    """W ``[D, L]``, b ``[D]`` and psi ``[D]``, float64."""

    weight: Tensor
    bias: Tensor
    noise_variance: Tensor


class MixtureTruth(NamedTuple):
    """pi ``[K]``, the component means mu ``[K, D]``, and s2 (None: Bernoulli components), float64."""

    probabilities: Tensor
    means: Tensor
    noise_variance: float | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class LinearGaussianData(TensorDataModule):
    """`num_data` draws of a linear Gaussian model whose W and b are standard normal; `noise_variance` is psi, one number or D.

    `data_seed` decides the truth and the draws.
    """

    dim: int = 10
    latent_dim: int = 3
    num_data: int = 5000
    noise_variance: float | Sequence[float] = 0.1
    data_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self.dim, num_data=self.num_data, latent_dim=self.latent_dim)
        whole(self.data_seed, "data.data_seed", least=0)
        stated: Any = self.noise_variance
        for variance in stated if isinstance(stated, Sequence) and not isinstance(stated, str) else [stated]:
            real(variance, "data.noise_variance", least=0)
        noise = torch.from_numpy(np.array(self.noise_variance, dtype=np.float64))
        if noise.numel() not in (1, self.dim):
            raise ValueError(f"data.noise_variance={self.noise_variance}: one variance, or data.dim={self.dim} of them")
        generator = keyed_generator(self.data_seed, _TRUTH)
        weight = torch.randn(self.dim, self.latent_dim, generator=generator, dtype=torch.float64)
        bias = torch.randn(self.dim, generator=generator, dtype=torch.float64)
        self.truth = LinearGaussianTruth(weight, bias, noise.expand(self.dim))

    def read(self) -> Source:
        """Draw z, then x."""
        generator = keyed_generator(self.data_seed, _DRAWS)
        z = torch.randn(self.num_data, self.latent_dim, generator=generator, dtype=torch.float64)
        noise = torch.randn(self.num_data, self.dim, generator=generator, dtype=torch.float64)
        return Source(z @ self.truth.weight.T + self.truth.bias + noise * self.truth.noise_variance.sqrt())


@dataclass(kw_only=True, eq=False, repr=False)
class MixtureData(TensorDataModule):
    """`num_data` draws of a mixture of spherical Gaussians, labelled by component.

    The means are N(0, separation^2 I), so that in two dimensions `separation` = 1 at `noise_variance` = 1 overlaps and 5 does
    not; the probabilities lie between 1/2K and 3/2K before normalising. `data_seed` decides the truth and the draws.
    """

    dim: int = 2
    num_components: int = 4
    num_data: int = 5000
    separation: float = 5.0
    noise_variance: float = 1.0
    data_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self.dim, num_data=self.num_data, num_components=self.num_components)
        whole(self.data_seed, "data.data_seed", least=0)
        real(self.separation, "data.separation", least=0)
        real(self.noise_variance, "data.noise_variance", least=0)
        generator = keyed_generator(self.data_seed, _TRUTH)
        means = self.separation * torch.randn(self.num_components, self.dim, generator=generator, dtype=torch.float64)
        self.truth = MixtureTruth(_probabilities(self.num_components, generator), means, self.noise_variance)

    def read(self) -> Source:
        """Draw the component, then x."""
        generator = keyed_generator(self.data_seed, _DRAWS)
        component = torch.multinomial(self.truth.probabilities, self.num_data, replacement=True, generator=generator)
        noise = torch.randn(self.num_data, self.dim, generator=generator, dtype=torch.float64)
        return Source(self.truth.means[component] + self.noise_variance**0.5 * noise, component)


@dataclass(kw_only=True, eq=False, repr=False)
class BernoulliMixtureData(TensorDataModule):
    """`num_data` rows of bits from a mixture of Bernoulli distributions, labelled by component; the means are uniform on (0, 1).

    `data_seed` decides the truth and the draws.
    """

    dim: int = 20
    num_components: int = 4
    num_data: int = 5000
    data_seed: int = 0
    prepare: Preparation = field(default_factory=lambda: Preparation(levels=2))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(self.dim, num_data=self.num_data, num_components=self.num_components)
        whole(self.data_seed, "data.data_seed", least=0)
        generator = keyed_generator(self.data_seed, _TRUTH)
        means = torch.rand(self.num_components, self.dim, generator=generator, dtype=torch.float64)
        self.truth = MixtureTruth(_probabilities(self.num_components, generator), means)

    def read(self) -> Source:
        """Draw the component, then x."""
        generator = keyed_generator(self.data_seed, _DRAWS)
        component = torch.multinomial(self.truth.probabilities, self.num_data, replacement=True, generator=generator)
        return Source(torch.bernoulli(self.truth.means[component], generator=generator).to(torch.uint8), component, levels=2)


def _check_counts(dim: int, **counts: int) -> None:
    """Refuse what are no counts, or counts of more numbers than there is memory for."""
    for option, count in counts.items():
        whole(count, f"data.{option}")
    stated = ", ".join(f"data.{option}={count}" for option, count in {"dim": dim, **counts}.items())
    num_data, hidden = counts.values()
    require_room(stated, torch.float64.itemsize * (2 * num_data * dim + (num_data + dim) * hidden))


def _probabilities(count: int, generator: Generator) -> Tensor:
    weights = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
    return weights / weights.sum()
