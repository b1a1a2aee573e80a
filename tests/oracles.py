"""Slow, obvious answers, in NumPy and SciPy and by loops. Nothing here imports what it checks."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats
from scipy.special import expit, logsumexp


def dense_gaussian(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log N(x; b, W W' + diag s^2) for rows x, by the dense density."""
    covariance = weight @ weight.T + np.diag(np.broadcast_to(scale, (len(weight),)) ** 2)
    return stats.multivariate_normal(bias, covariance).logpdf(x)


def dense_linear_posterior(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each row and the shared covariance of p(z | x), by conditioning the joint Gaussian of (z, x)."""
    cross = weight.T  # cov(z, x)
    covariance = weight @ weight.T + scale**2 * np.eye(len(weight))
    gain = np.linalg.solve(covariance, cross.T).T
    return (x - bias) @ gain.T, np.eye(weight.shape[1]) - gain @ cross.T


def gaussian_kl(mean: np.ndarray, covariance: np.ndarray, prior_mean: np.ndarray, prior_covariance: np.ndarray) -> float:
    """KL between two dense Gaussians."""
    precision = np.linalg.inv(prior_covariance)
    shift = prior_mean - mean
    log_det = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * float(np.trace(precision @ covariance) + shift @ precision @ shift - len(mean) + log_det)


def gaussian_log_density(x: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """sum_d log N(x_d; loc_d, scale_d^2), entries that are NaN left out one by one."""
    terms = stats.norm(loc, scale).logpdf(np.where(np.isnan(x), 0.0, x))
    return np.where(np.isnan(x), 0.0, terms).sum(-1)


def bernoulli_log_density(x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """sum_d log Bernoulli(x_d; sigmoid(logits_d)) by the product of probabilities."""
    probability = expit(logits)
    return np.log(np.where(x == 1, probability, 1 - probability)).sum(-1)


def grid_log_evidence(log_likelihood, latent_dim: int, limit: float, points: int) -> np.ndarray:
    """log of the integral of p(x | z) N(z; 0, I) by the midpoint rule.

    `log_likelihood` maps points ``[G, L]`` to ``[G, N]``.
    """
    width = 2 * limit / points
    axis = -limit + width * (np.arange(points) + 0.5)
    grid = np.array(list(itertools.product(axis, repeat=latent_dim)))
    prior = stats.norm.logpdf(grid).sum(-1)
    return logsumexp(log_likelihood(grid) + prior[:, None], axis=0) + latent_dim * np.log(width)


def finite_difference(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a scalar function by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient
