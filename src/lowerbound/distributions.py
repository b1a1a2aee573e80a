"""Distributions whose events are rows: what `torch.distributions` lacks for latent-variable models.

Missing entries of a row are NaN and are integrated out, which for independent entries leaves the product over
the observed ones:

    log p(x_observed | z) = sum_d m_d log p(x_d | z),     m_d = 1 where x_d is observed, else 0

An all-missing row has log-density 0. Argument validation is off: on a GPU it would synchronise at every call.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import log, pi
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal, constraints, kl_divergence, register_kl
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off on the tensor's device: densities are computed in float32 or better."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy if a network wrote it in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Factorized(Independent):
    """Independent entries along the last dimension, the event."""

    def __init__(self, base: Distribution) -> None:
        super().__init__(base, 1, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> Factorized:
        """The same distribution with a larger batch shape."""
        return Factorized(self.base_dist.expand(Size(batch_shape) + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, summed over the entries of value ``[..., D]``; also of no rows, of which torch's own cannot tell the shape."""
        return self.entries(value).sum(-1)  # [...]

    def entries(self, value: Tensor) -> Tensor:
        """Nats of each entry of value ``[..., D]``."""
        return self.base_dist.log_prob(value)

    def observed_log_prob(self, value: Tensor) -> Tensor:
        """Nats of the observed entries of value ``[..., D]``, summed over them; NaN entries are marginalised out."""
        missing = value.isnan()
        # NaN is replaced before the arithmetic: masked afterwards, it would still reach the gradient.
        terms = self.entries(value.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)
        return terms.sum(-1)  # [...]


def diagonal_normal(loc: Tensor, scale: Tensor) -> Factorized:
    """N(loc, diag scale^2) with event ``[D]``."""
    return Factorized(Normal(loc, scale, validate_args=False))


class Bits(Factorized):
    """Independent Bernoulli entries with logits l and event ``[D]``."""

    base_dist: Bernoulli

    def __init__(self, logits: Tensor) -> None:
        super().__init__(Bernoulli(logits=logits, validate_args=False))

    def entries(self, value: Tensor) -> Tensor:
        """log sigmoid(l) - (1 - x) l, also of x between 0 and 1: two passes over the entries, where torch's own form takes five."""
        logits = self.base_dist.logits
        # Below minus the threshold the first term is l itself, to a relative 1e-19.
        return torch.addcmul(softplus(logits, beta=-1.0, threshold=40.0), 1 - value, logits, value=-1)


def bernoulli(logits: Tensor) -> Factorized:
    """Independent Bernoulli entries with event ``[D]``."""
    return Bits(logits)


class DenseNormal(MultivariateNormal):
    """N(loc, C C') with event ``[D]``, of which any entries may be missing."""

    def observed_log_prob(self, value: Tensor) -> Tensor:
        """Nats of the observed entries of value ``[..., D]``; NaN entries are marginalised out."""
        missing = value.isnan()
        if not missing.any():
            return self.log_prob(value)
        precision, log_det = observed_precision(self.covariance_matrix, missing)
        error = (value - self.loc).masked_fill(missing, 0.0).unsqueeze(-1)
        square = (error * (precision @ error)).sum((-2, -1))
        return -(square + log_det + (~missing).sum(-1, dtype=square.dtype) * log(2 * pi)) / 2  # an integer times a float is float32


def observed_precision(covariance: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the observed block of a covariance ``[..., D, D]``, zero elsewhere, and the block's log-determinant.

    A missing dimension is replaced by one of variance 1 that goes with no other, and left out of the inverse.
    """
    seen = (~missing).to(covariance)  # [..., D]
    both = seen.unsqueeze(-1) * seen.unsqueeze(-2)  # [..., D, D]
    factor = torch.linalg.cholesky(covariance * both + torch.diag_embed(1 - seen))
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.cholesky_inverse(factor) * both, log_det


class Delta(Distribution):
    """All mass at one point `loc` with event ``[L]``: a point posterior. It has no density, and so no KL."""

    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        """What torch may check of the arguments."""
        return {"loc": constraints.real_vector}

    @property
    def mean(self) -> Tensor:
        """The point."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.loc)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 torch's signature
        """The point, once for each sample."""
        return self.loc.expand(self._extended_shape(Size(sample_shape)))


def covariance_of(q: Distribution) -> Tensor:
    """The covariance ``[..., L, L]`` of a distribution over rows; of a point, zero."""
    return q.covariance_matrix if isinstance(q, MultivariateNormal) else torch.diag_embed(q.variance)


class FlatDensity(Distribution):
    """The improper density 1 on R^L: log-density 0 everywhere, no samples."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(Size(), Size([latent_dim]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        """There are no arguments to check."""
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero for every value ``[..., L]``."""
        return value.new_zeros(value.shape[:-1])

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 torch's signature
        """Raise ValueError: there is nothing to draw from."""
        raise ValueError("a flat prior cannot be sampled: choose prior=standard_normal for a model that generates")


def kl_per_dimension(q: Distribution, p: Distribution) -> Tensor:
    """KL(q, p) of each latent dimension ``[N, L]`` in nats; its sum over L is KL(q, p).

    Raises:
        ValueError: q or p does not factorise over dimensions, or the pair has no closed form.
    """
    if not (isinstance(q, Factorized) and isinstance(p, Factorized)):
        names = f"{type(q).__name__} and {type(p).__name__}"
        raise ValueError(f"KL per dimension needs a posterior and a prior that factorise over dimensions, not {names}")
    return kl_divergence(q.base_dist, p.base_dist)


@register_kl(Factorized, Factorized)
def _kl_factorized(q: Factorized, p: Factorized) -> Tensor:
    """The sum over dimensions."""
    return kl_divergence(q.base_dist, p.base_dist).sum(-1)


@register_kl(MultivariateNormal, Factorized)
def _kl_full_diagonal(q: MultivariateNormal, p: Factorized) -> Tensor:
    """KL(N(m, C C'), N(mu, diag s^2)) = sum_i [((C C')_ii + (m_i - mu_i)^2) / s_i^2 - 1 + log s_i^2 - log C_ii^2] / 2."""
    if not isinstance(p.base_dist, Normal):
        raise NotImplementedError
    loc, scale = p.base_dist.loc, p.base_dist.scale
    variance = q.scale_tril.square().sum(-1)  # [N, L]
    log_diagonal = q.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    terms = (variance + (q.loc - loc).square()) / scale.square() - 1 + 2 * (scale.log() - log_diagonal)
    return terms.sum(-1) / 2
