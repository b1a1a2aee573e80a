"""Mixtures written out in NumPy and SciPy, component by component and row by row. Nothing here computes by what it checks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.special import logsumexp

from lowerbound.covariances import Covariance, Diagonal, Spherical
from lowerbound.dense_covariances import Full, LowRank, Tied
from lowerbound.mixture import Enumeration, GaussianComponents
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot

LATENTS = 2
KINDS = ("spherical", "diagonal", "full", "tied", "low_rank")
DENSE = ("full", "tied", "low_rank")


def covariance_of_kind(kind: str, num_components: int, data_dim: int, min_scale: float = 1e-3) -> Covariance:
    if kind == "low_rank":
        return LowRank(num_components, data_dim, LATENTS, min_scale)
    kinds = {"spherical": Spherical, "diagonal": Diagonal, "full": Full, "tied": Tied}
    return kinds[kind](num_components, data_dim, min_scale)


def mixture_of_kind(
    kind: str, num_components: int = 3, data_dim: int = 4, pseudo_counts: float = 0.0, seed: int = 0, spacing: float = 2.0
) -> LatentVariableModel:
    """A mixture with random weights, means and covariances."""
    torch.manual_seed(seed)
    covariance = covariance_of_kind(kind, num_components, data_dim)
    likelihood = GaussianComponents(num_components, data_dim, covariance, pseudo_counts)
    model = LatentVariableModel(OneHot(num_components, pseudo_counts), likelihood, Enumeration())
    with torch.no_grad():
        model.prior.logits.normal_()
        likelihood.mean.mul_(spacing)
        for parameter in covariance.parameters():
            parameter.normal_(std=0.5)
    return model


@dataclass
class Mixture:
    """Weights ``[K]``, means ``[K, D]``, covariances ``[K, D, D]``."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_joint(self, x: np.ndarray) -> np.ndarray:
        """log pi_k + log p(x_observed | k) ``[N, K]``, by the marginal of the observed entries."""
        values = np.zeros((len(x), len(self.weights)))
        for n, row in enumerate(x):
            seen = ~np.isnan(row)
            for k, (weight, mean, covariance) in enumerate(zip(self.weights, self.means, self.covariances, strict=True)):
                values[n, k] = np.log(weight)
                if seen.any():
                    values[n, k] += stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen])
        return values

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        return logsumexp(self.log_joint(x), axis=1)

    def responsibilities(self, x: np.ndarray) -> np.ndarray:
        joint = self.log_joint(x)
        return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))

    def regressed(self, row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The row with E[missing | observed, k] filled in, and the covariance of the whole row given the observed entries."""
        seen = ~np.isnan(row)
        mean, covariance = self.means[k], self.covariances[k]
        filled, left = np.where(seen, row, mean), np.zeros_like(covariance)
        hidden = np.ix_(~seen, ~seen)
        left[hidden] = covariance[hidden]
        if seen.any():
            gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
            filled[~seen] += gain @ (row[seen] - mean[seen])
            left[hidden] -= gain @ covariance[np.ix_(seen, ~seen)]
        return filled, left


def covariances(covariance: Covariance) -> np.ndarray:
    """Sigma ``[K, D, D]``, from the parameters alone."""
    raw = {name: parameter.detach().double().numpy() for name, parameter in covariance.named_parameters()}
    floor, size = covariance.min_scale, covariance.data_dim
    if isinstance(covariance, (Spherical, Diagonal)):
        scale = np.broadcast_to(floor + np.exp(raw["log_scale"]), (covariance.num_components, size))
        return np.stack([np.diag(s**2) for s in scale])
    if isinstance(covariance, LowRank):
        scale = floor + np.exp(raw["log_scale"])
        return np.stack([w @ w.T + s**2 * np.eye(size) for w, s in zip(raw["weight"], scale, strict=True)])
    factors = [np.tril(lower, -1) + np.diag(floor + np.exp(log)) for lower, log in zip(raw["lower"], raw["log_diagonal"], strict=True)]
    return np.broadcast_to(np.stack([factor @ factor.T for factor in factors]), (covariance.num_components, size, size))


def of(model: LatentVariableModel) -> Mixture:
    """The mixture of Gaussians that a model's parameters say."""
    likelihood = model.likelihood
    assert isinstance(likelihood, GaussianComponents)
    logits = model.prior.logits.detach().double().numpy()
    weights = np.exp(logits - logsumexp(logits))
    return Mixture(weights, likelihood.mean.detach().double().numpy().copy(), covariances(likelihood.covariance).copy())


def shaped(kind: str, scatter: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The covariances of a kind that fit scatter matrices ``[K, D, D]`` of so many data best."""
    size = scatter.shape[-1]
    each = scatter / counts[:, None, None]
    if kind == "full":
        return each
    if kind == "tied":
        return np.broadcast_to(scatter.sum(0) / counts.sum(), scatter.shape)
    if kind == "diagonal":
        return np.stack([np.diag(np.diag(matrix)) for matrix in each])
    if kind == "spherical":
        return np.stack([np.trace(matrix) / size * np.eye(size) for matrix in each])
    best = []
    for matrix in each:  # probabilistic PCA: the leading directions keep their variances, the others share theirs
        values, vectors = np.linalg.eigh(matrix)
        best.append((vectors * np.r_[np.full(size - LATENTS, values[:-LATENTS].mean()), values[-LATENTS:]]) @ vectors.T)
    return np.stack(best)


def em_step(mixture: Mixture, x: np.ndarray, kind: str, pseudo_counts: float = 0.0, spread: np.ndarray | None = None) -> Mixture:
    """One step of EM. Missing entries are regressed on observed ones (Ghahramani & Jordan 1994); where none goes with another, left out."""
    r = mixture.responsibilities(x)
    spread = np.zeros(x.shape[1]) if spread is None else spread
    fitted = (left_out if kind in ("spherical", "diagonal") else filled_in)(mixture, x, r, kind, pseudo_counts, spread)
    counts = r.sum(0) + pseudo_counts
    return Mixture(counts / counts.sum(), *fitted)


def filled_in(mixture: Mixture, x: np.ndarray, r: np.ndarray, kind: str, pseudo_counts: float, spread: np.ndarray) -> tuple:
    means, scatter = np.zeros_like(mixture.means), np.zeros_like(mixture.covariances)
    for k, weights in enumerate(r.T):
        rows = [mixture.regressed(row, k) for row in x]
        means[k] = sum(weight * filled for weight, (filled, _) in zip(weights, rows, strict=True)) / weights.sum()
        for weight, (filled, left) in zip(weights, rows, strict=True):
            scatter[k] += weight * (np.outer(filled - means[k], filled - means[k]) + left)
    return means, shaped(kind, scatter + pseudo_counts * np.diag(spread), r.sum(0) + pseudo_counts)


def left_out(mixture: Mixture, x: np.ndarray, r: np.ndarray, kind: str, pseudo_counts: float, spread: np.ndarray) -> tuple:
    means, squares, counts = (np.zeros_like(mixture.means) for _ in range(3))
    for k, d in np.ndindex(*means.shape):
        seen = ~np.isnan(x[:, d])
        weights = r[seen, k]
        means[k, d] = weights @ x[seen, d] / weights.sum()
        squares[k, d] = weights @ (x[seen, d] - means[k, d]) ** 2 + pseudo_counts * spread[d]
        counts[k, d] = weights.sum() + pseudo_counts
    if kind == "spherical":
        squares, counts = (np.broadcast_to(sums.sum(1, keepdims=True), means.shape) for sums in (squares, counts))
    return means, np.stack([np.diag(variances) for variances in squares / counts])


def log_prior(mixture: Mixture, pseudo_counts: float, spread: np.ndarray) -> float:
    """a sum_k log pi_k - a/2 sum_k [log |Sigma_k| + tr(Sigma_k^-1 diag v)]."""
    terms = [np.linalg.slogdet(matrix)[1] + np.trace(np.linalg.inv(matrix) @ np.diag(spread)) for matrix in mixture.covariances]
    return pseudo_counts * np.log(mixture.weights).sum() - pseudo_counts / 2 * sum(terms)


def bernoulli_log_joint(weights: np.ndarray, means: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log pi_k + sum over observed entries of log of the probability of the bit, ``[N, K]``."""
    terms = x[:, None] * np.log(means) + (1 - x[:, None]) * np.log(1 - means)
    return np.log(weights) + np.nansum(terms, axis=-1)


def bernoulli_em_step(weights: np.ndarray, means: np.ndarray, x: np.ndarray, pseudo_counts: float) -> tuple[np.ndarray, np.ndarray]:
    """One step of EM for bits (Bishop 2006, section 9.3.3), missing ones left out."""
    joint = bernoulli_log_joint(weights, means, x)
    r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    new = np.zeros_like(means)
    for k, d in np.ndindex(*means.shape):
        seen = ~np.isnan(x[:, d])
        new[k, d] = (r[seen, k] @ x[seen, d] + pseudo_counts / 2) / (r[seen, k].sum() + pseudo_counts)
    counts = r.sum(0) + pseudo_counts
    return counts / counts.sum(), new
