"""The terms of the KL against sums over a grid of z, and where each must vanish."""

from __future__ import annotations

from functools import partial
from math import log

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

import lowerbound
from lowerbound import aggregate
from lowerbound.aggregate import aggregate_log_densities, decomposed_kl
from lowerbound.distributions import diagonal_normal
from lowerbound.model import LatentVariableModel
from lowerbound.parts import Posterior
from lowerbound.priors import StandardNormal

SIX = 6.0
NUM_DATA, DIM = 12, 6


def rows(count: int = NUM_DATA) -> Tensor:
    return 2 * torch.rand(count, DIM, generator=torch.Generator().manual_seed(0))


class Stated(Posterior):
    """N(stretch x_1:2, C C') with C of the other entries of x: its diagonal, or with an entry below it."""

    def __init__(self, is_full: bool, stretch: float) -> None:
        super().__init__()
        self.is_full, self.stretch = is_full, stretch

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        loc, scale = self.stretch * (x[:, :2] - 1), 0.2 + 0.2 * x[:, 2:4]
        if not self.is_full:
            return diagonal_normal(loc, scale)
        factor = torch.diag_embed(scale)
        factor[:, 1, 0] = 0.5 * x[:, 4]
        return MultivariateNormal(loc, scale_tril=factor)


def model_of(kind: str, stretch: float = 1.0) -> LatentVariableModel:
    torch.manual_seed(0)
    return LatentVariableModel(StandardNormal(2), lowerbound.vae(DIM, 2, sizes=(4,)).likelihood, Stated(kind == "full", stretch))


kinds = pytest.mark.parametrize("kind", ["diagonal", "full"])


def on_a_grid(model: LatentVariableModel, x: Tensor) -> tuple[float, float, float]:
    """Mutual information, total correlation and dimension-wise KL by sums over 1,001 x 1,001 points of z."""
    q = model.posterior(x)
    means = q.mean.detach().double().numpy()
    covariances = torch.diag_embed(q.variance) if not hasattr(q, "covariance_matrix") else q.covariance_matrix
    covariances = covariances.detach().double().numpy()
    axis = np.linspace(-9, 9, 1001)
    step = axis[1] - axis[0]
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    each = np.stack([multivariate_normal(m, c).pdf(grid) for m, c in zip(means, covariances, strict=True)])
    joint = each.mean(0)
    assert abs(joint.sum() * step**2 - 1) < 1e-6, "the grid holds q(z)"
    first, second = joint.sum(1) * step, joint.sum(0) * step
    tiny = 1e-300
    information = (each * (np.log(each + tiny) - np.log(joint + tiny))).sum((1, 2)).mean() * step**2
    correlation = (joint * (np.log(joint + tiny) - np.log(np.outer(first, second) + tiny))).sum() * step**2
    dimension_wise = sum((p * (np.log(p + tiny) - norm.logpdf(axis))).sum() * step for p in (first, second))
    return information, correlation, dimension_wise


@kinds
def test_each_term_is_its_integral(kind: str) -> None:
    model, x = model_of(kind), rows()
    torch.manual_seed(1)
    runs = torch.stack([torch.stack(decomposed_kl(model, x, 500)) for _ in range(40)])  # [40, 4]
    error = runs.std(0) / 40**0.5
    terms = on_a_grid(model, x)
    truth = torch.tensor([*terms, sum(terms)])
    assert ((runs.mean(0) - truth).abs() < SIX * error + 1e-6).all()
    assert (error < 0.02).all()
    assert (truth > 0.05).all(), "else nothing is tested"


@kinds
def test_the_terms_add_up_at_the_same_samples(kind: str) -> None:
    information, correlation, dimension_wise, kl = decomposed_kl(model_of(kind), rows(), 3)
    torch.testing.assert_close(information + correlation + dimension_wise, kl, atol=1e-10, rtol=0)


def test_posteriors_that_do_not_overlap_tell_which_datum_it_was() -> None:
    """Then the mutual information is log N, its largest."""
    found = decomposed_kl(model_of("diagonal", stretch=1e4), rows(), 100)
    assert found.mutual_information.item() == pytest.approx(log(NUM_DATA), abs=1e-6)


def test_a_posterior_that_ignores_x_has_no_mutual_information() -> None:
    model = model_of("diagonal")
    found = decomposed_kl(model, rows(1).expand(NUM_DATA, -1), 50)
    assert abs(found.mutual_information.item()) < 1e-6
    assert abs(found.total_correlation.item()) < 1e-6


def test_the_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    q, z = model_of("full").posterior(rows()), torch.randn(50, 2)
    together = aggregate_log_densities(q, z)
    monkeypatch.setattr(aggregate, "CELLS", 100)
    for one, other in zip(aggregate_log_densities(q, z), together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [partial(lowerbound.autoencoder, DIM, 2), partial(lowerbound.gaussian_mixture, DIM, 2)])
def test_points_and_finite_z_are_refused(make: partial[LatentVariableModel]) -> None:
    with pytest.raises(ValueError, match="no such terms"):
        decomposed_kl(make(), rows())
