"""What training data must give, without learning anything: formulas that share no code with what is learnt.

From the eigenvalues l_1 >= ... >= l_D of their covariance, or the means m of bits, in nats per training datum:

    gaussian     -1/2 (D log 2 pi + sum_i log l_i + D)                                              Bishop 2006, eq. 2.121, 2.122
    ppca         -1/2 (D log 2 pi + sum_{i <= L} log l_i + (D - L) log s^2 + D)                     Tipping & Bishop 1999, eq. 4, 7, 8
                 with s^2 the mean of the other l_i
    pca          sum_{i > L} l_i, the squared error                                                 Bishop 2006, eq. 12.18
    bernoulli    sum_d m_d log mu_d + (1 - m_d) log(1 - mu_d),  mu = (N m + 1/2) / (N + 1)          one pseudo-count
    collapse     dimension i of a linear VAE with fixed noise s^2 collapses iff l_i <= beta s^2     Lucas et al. 2019
"""

from __future__ import annotations

from math import log, pi
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

GAP = 1.05  # the least ratio of two eigenvalues whose axes can be told apart


class Truth(NamedTuple):
    """What is known of training data without learning anything: the answers by name, eigenvalues ``[D]`` and axes ``[D, D]``."""

    answers: dict[str, float]
    eigenvalues: np.ndarray
    axes: Tensor

    def has_plane(self, latent_dim: int) -> bool:
        """Whether the plane of the first L axes is determined: l_L is by more than a twentieth above l_{L+1}."""
        return bool(self.eigenvalues[latent_dim - 1] > GAP * self.eigenvalues[latent_dim])


def truth_of(x: Tensor, latent_dim: int) -> Truth:
    """That of rows ``[N, D]`` of real numbers."""
    rows = x.double().cpu().numpy()
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    dim, kept, rest = len(values), values[:latent_dim], values[latent_dim:]
    with np.errstate(divide="ignore"):  # a variance of 0: the Gaussian likelihood is unbounded
        by_name = {
            "gaussian": -(dim * log(2 * pi) + np.log(values).sum() + dim) / 2,
            "ppca": -(dim * log(2 * pi) + np.log(kept).sum() + len(rest) * np.log(rest.mean()) + dim) / 2,
            "pca": rest.sum(),
        }
    return Truth({name: float(value) for name, value in by_name.items()}, values, torch.from_numpy(vectors.copy()))


def truth_of_bits(x: Tensor) -> Truth:
    """That of rows ``[N, D]`` of bits."""
    means = x.double().cpu().numpy().mean(0)
    mu = (len(x) * means + 0.5) / (len(x) + 1)
    return Truth({"bernoulli": float((means * np.log(mu) + (1 - means) * np.log(1 - mu)).sum())}, np.empty(0), torch.empty(0))


def dense_log_prob(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """log N(x; b, W W' + diag s^2) ``[N]`` by the covariance ``[D, D]``, for W ``[D, L]``, b and s ``[D]``."""
    return MultivariateNormal(bias, weight @ weight.T + scale.square().diag(), validate_args=False).log_prob(x.to(bias))
