"""The evidence log p(x) of a fitted model: bounded by importance sampling, or integrated outright where L <= 2.

    importance weighting   log 1/S sum_s w_s,  w_s = p(x, z_s) / q(z_s | x)    Burda et al. 2016, eq. 8; <= log p(x) in expectation
    quadrature             log sum_g h^L p(x | z_g) p(z_g) on a grid of z with spacing h

The trapezoidal rule converges faster than any power of h for smooth integrands that vanish at the edges (Trefethen & Weideman
2014), once h is below the width of the posterior; its cost is the number of points to the power L, which is why it ends at 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from lowerbound.distributions import full_precision
from lowerbound.model import LatentVariableModel

MAX_QUADRATURE_DIM = 2


def chunks(total: int, size: int) -> Iterator[int]:
    """Sizes of at most `size` that add up to `total`."""
    for start in range(0, total, size):
        yield min(size, total - start)


class Weighted(NamedTuple):
    """Importance-weighted bounds ``[K, N]`` at K numbers of samples, nats per datum, and effective sample sizes ``[K, N]``.

    The effective sample size (sum w)^2 / sum w^2 is S where all weights are equal, and 1 where one of them is all: then the bound
    rests on a single sample, and more of them would raise it.
    """

    bound: Tensor
    effective: Tensor


@torch.no_grad()
def importance_weighted_bounds(model: LatentVariableModel, x: Tensor, num_samples: Sequence[int], chunk: int = 100) -> Weighted:
    """log 1/S sum_s w_s for each S of `num_samples`, in order and in one pass: the first S samples are among those of the next.

    Exactly S samples each; `chunk`, how many are held at a time, bounds the memory and nothing else. Float64.

    Raises:
        ValueError: the numbers do not increase from at least 1, or the model has no evidence.
    """
    if not num_samples or any(not low < high for low, high in pairwise([0, *num_samples])):
        raise ValueError(f"num_samples={list(num_samples)} must increase, from at least 1")
    total = square = x.new_full((len(x),), -torch.inf, dtype=torch.float64)
    found: list[Weighted] = []
    for before, count in pairwise([0, *num_samples]):
        for samples in chunks(count - before, chunk):
            log_weight = model.log_weight(x, samples).double()  # [S, N]
            total = total.logaddexp(log_weight.logsumexp(0))
            square = square.logaddexp((2 * log_weight).logsumexp(0))
        found.append(Weighted(total - log(count), (2 * total - square).exp()))
    return Weighted(*map(torch.stack, zip(*found, strict=True)))


def importance_weighted_bound(model: LatentVariableModel, x: Tensor, num_samples: int, chunk: int = 100) -> Tensor:
    """log 1/S sum_s w_s ``[N]`` with exactly S samples, float64, nats per datum."""
    return importance_weighted_bounds(model, x, [num_samples], chunk).bound[0]


def latent_grid(latent_dim: int, points: int, limit: float, like: Tensor) -> tuple[Tensor, float]:
    """The points ``[points^L, L]`` of a regular grid on [-limit, limit]^L, and log h^L.

    Raises:
        ValueError: L is larger than 2.
    """
    if latent_dim > MAX_QUADRATURE_DIM:
        raise ValueError(f"quadrature over z takes {points}^{latent_dim} evaluations: it is offered for latent_dim <= {MAX_QUADRATURE_DIM}")
    axis = torch.linspace(-limit, limit, points, dtype=like.dtype, device=like.device)
    spacing = 2 * limit / (points - 1)
    return torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim), latent_dim * log(spacing)


@torch.no_grad()
def quadrature_log_evidence(model: LatentVariableModel, x: Tensor, points: int = 201, limit: float = 6.0, chunk: int = 128) -> Tensor:
    """log p(x) ``[N]`` by the trapezoidal rule over z, float64, nats per datum, for L <= 2.

    Args:
        model: a model with a proper prior, whose mass lies within `limit` of the origin.
        x: data ``[N, D]``.
        points: grid points along each latent dimension; enough when twice as many change nothing.
        limit: the half-width of the grid.
        chunk: grid points held at a time.

    Raises:
        ValueError: L is larger than 2, or the prior is flat.
    """
    if not model.is_bounded:
        raise ValueError("an autoencoder has no p(x): its prior is flat")
    grid, log_volume = latent_grid(model.latent_dim, points, limit, x)
    total = x.new_full((len(x),), -torch.inf, dtype=torch.float64)
    for z in grid.split(chunk):  # [G, L]
        log_likelihood = model.log_likelihood(x, z.unsqueeze(1))  # [G, N]
        with full_precision(x):
            log_joint = log_likelihood.double() + model.prior().log_prob(z).double().unsqueeze(1)  # [G, N]
        total = total.logaddexp(log_joint.logsumexp(0))
    return total + log_volume
