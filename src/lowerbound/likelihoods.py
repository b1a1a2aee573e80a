"""Likelihoods p(x | z) whose parameters are a network of z.

    Gaussian    N(x; f(z), diag s^2), the scale s from a `Noise`
    Bernoulli   prod_d f_d(z)^x_d (1 - f_d(z))^(1 - x_d)

Kingma & Welling 2014, appendix C. A Gaussian likelihood is unbounded as s -> 0 on data that the network can fit
exactly, so every learnt scale has a floor, `min_scale`, and a fit that ends there says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from lowerbound.distributions import at_least_float32, bernoulli, diagonal_normal
from lowerbound.errors import real, whole
from lowerbound.networks import Recipe
from lowerbound.parts import Likelihood


class Noise(nn.Module, ABC):
    """The scale s of a Gaussian likelihood. Implement `forward`; `outputs_per_dim` more network outputs feed it."""

    outputs_per_dim: int = 0
    min_scale: float = 0.0

    @abstractmethod
    def forward(self, raw: Tensor) -> Tensor:
        """s, broadcastable to ``[..., D]``, from the network outputs ``[..., outputs_per_dim * D]``."""

    def maximize(self, squares: Tensor, counts: Tensor) -> None:
        """Set s to the maximum of the likelihood, given each dimension's sum of squared errors and its count, both ``[D]``."""
        return

    def floored(self) -> str | None:
        """A sentence if a learnt scale that does not depend on z has come within 5% of its floor."""
        if self.outputs_per_dim or not self.min_scale:
            return None
        scale = self(torch.empty(0)).detach()  # [] or [D]
        low = (scale < 1.05 * self.min_scale).flatten().nonzero().flatten().tolist()
        if not low:
            return None
        floor, which = f"noise.min_scale={self.min_scale}", ", ".join(map(str, low[:10])) + (", ..." if len(low) > 10 else "")
        where = f" (dimensions {which}, counted from 0: constant, or nearly so)" if scale.ndim else ""
        return f"{len(low)} of {scale.numel()} noise scales ended at the floor {floor}{where}: the density is limited by it alone"


def checked_scale(scale: float, min_scale: float) -> float:
    """A starting scale above its floor.

    Raises:
        ValueError: the floor is not positive, or the scale does not lie above it.
    """
    floor = real(min_scale, "noise.min_scale", above=0)
    return real(scale, "noise.scale, which starts above its floor noise.min_scale,", above=floor)


def log_above(scale: Tensor, min_scale: float) -> Tensor:
    """log(scale - min_scale), of a scale at its floor a number so low that exp adds nothing."""
    return (scale - min_scale).clamp(min=1e-12 * min_scale).log()


class FixedNoise(Noise):
    """One stated scale that is not learnt. With scale s, log p = -|x - f|^2 / (2 s^2) - D/2 log(2 pi s^2)."""

    def __init__(self, data_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = real(scale, "noise.scale", above=0)

    def forward(self, raw: Tensor) -> Tensor:
        """The scale ``[]``."""
        return raw.new_full((), self.scale)


class SharedNoise(Noise):
    """One learnt scale for all dimensions, `min_scale` + exp(`log_scale`)."""

    def __init__(self, data_dim: int, scale: float = 0.3, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.min_scale = min_scale
        self.log_scale = nn.Parameter(torch.tensor(log(checked_scale(scale, min_scale) - min_scale)))

    def forward(self, raw: Tensor) -> Tensor:
        """The scale ``[]``."""
        return self.min_scale + self.log_scale.exp()

    @torch.no_grad()
    def maximize(self, squares: Tensor, counts: Tensor) -> None:
        """s^2 = the mean of the squared errors (Bishop 2006, eq. 12.57)."""
        if (count := counts.sum()) > 0:
            self.log_scale.copy_(log_above((squares.sum() / count).sqrt(), self.min_scale))


class NoisePerDimension(Noise):
    """A learnt scale for each dimension, `min_scale` + exp(`log_scale`)."""

    def __init__(self, data_dim: int, scale: float = 0.3, min_scale: float = 1e-3) -> None:
        super().__init__()
        self.min_scale = min_scale
        self.log_scale = nn.Parameter(torch.full((data_dim,), log(checked_scale(scale, min_scale) - min_scale)))  # [D]

    def forward(self, raw: Tensor) -> Tensor:
        """The scales ``[D]``."""
        return self.min_scale + self.log_scale.exp()

    @torch.no_grad()
    def maximize(self, squares: Tensor, counts: Tensor) -> None:
        """s_d^2 = the mean of the squared errors of dimension d (Bishop 2006, eq. 12.70)."""
        scale = (squares / torch.where(counts > 0, counts, 1.0)).sqrt()
        self.log_scale.copy_(torch.where(counts > 0, log_above(scale, self.min_scale), self.log_scale))


class NetworkNoise(Noise):
    """A scale for each dimension and each z, `min_scale` + softplus of a second half of the network's outputs."""

    outputs_per_dim = 1

    def __init__(self, data_dim: int, scale: float = 0.3, min_scale: float = 1e-2) -> None:
        super().__init__()
        self.min_scale = min_scale
        # The inverse of softplus, so that a network that starts near 0 starts at `scale`.
        self.offset = log(torch.expm1(torch.tensor(checked_scale(scale, min_scale) - min_scale)).item())

    def forward(self, raw: Tensor) -> Tensor:
        """The scales ``[..., D]``."""
        return self.min_scale + softplus(raw + self.offset)


def remark_on_bits(x: Tensor, instead: str = "likelihood=bernoulli") -> str | None:
    """A remark on data that are all 0 and 1, to a likelihood with a learnt scale; `instead` is what would fit them."""
    if ((x != 0) & (x != 1) & ~x.isnan()).any() or not ((x == 0).any() and (x == 1).any()):
        return None
    return f"the data are 0 and 1, which have no density: under a Gaussian likelihood it grows without bound; choose {instead}."


def require_unit_interval(x: Tensor, bits: str = "bernoulli", real: str = "gaussian") -> str | None:
    """A remark on grey values, to a likelihood of bits; `real` is the choice for real numbers.

    Raises:
        ValueError: values outside [0, 1].
    """
    low, high = (value.item() for value in x.nan_to_num(0.5).aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"likelihood={bits} cannot have produced data in [{low:.4g}, {high:.4g}]: its values are 0 and 1.\n"
            f"Set data.prepare.binarize=threshold or dynamic (data in [0, 1] first: no standardize), or choose likelihood={real}."
        )
    if not ((x > 0) & (x < 1)).any():
        return None
    return (
        f"the data are grey values in [0, 1]: under likelihood={bits} the number reported is a cross-entropy, not a log-probability "
        "of discrete data. data.prepare.binarize=dynamic data.prepare.dequantize=false makes it one."
    )


class Gaussian(Likelihood):
    """N(f(z), diag s^2), f a network and s a `Noise`."""

    marginalizes_missing = True

    def __init__(self, network: Recipe, latent_dim: int, data_dim: int, noise: Noise) -> None:
        super().__init__()
        self.latent_dim, self.data_dim = whole(latent_dim, "latent_dim"), whole(data_dim, "data.dim")
        self.network = network(data_dim * (1 + noise.outputs_per_dim))
        self.noise = noise

    def forward(self, z: Tensor) -> Distribution:
        """N(f(z), diag s^2) for z ``[..., L]``, event ``[D]``."""
        outputs = at_least_float32(self.network(z))  # [..., D or 2 D]
        loc, raw = outputs[..., : self.data_dim], outputs[..., self.data_dim :]
        return diagonal_normal(loc, self.noise(raw))

    def check_data(self, x: Tensor) -> str | None:
        """Remark on bits, which have no density."""
        return remark_on_bits(x) if self.noise.min_scale else None

    def floored(self) -> str | None:
        """A sentence if a learnt scale that does not depend on z has come within 5% of its floor."""
        return self.noise.floored()


class Bernoulli(Likelihood):
    """Independent Bernoulli entries with logits f(z)."""

    marginalizes_missing = True

    def __init__(self, network: Recipe, latent_dim: int, data_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.data_dim = whole(latent_dim, "latent_dim"), whole(data_dim, "data.dim")
        self.network = network(data_dim)

    def forward(self, z: Tensor) -> Distribution:
        """Bernoulli(sigmoid(f(z))) for z ``[..., L]``, event ``[D]``."""
        return bernoulli(at_least_float32(self.network(z)))

    def check_data(self, x: Tensor) -> str | None:
        """Refuse values outside [0, 1]; remark on grey ones."""
        return require_unit_interval(x)
