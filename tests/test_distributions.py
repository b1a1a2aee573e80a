"""Densities against SciPy, KLs against dense Gaussians, missing entries against the observed ones alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Laplace, MultivariateNormal, kl_divergence

import oracles
from lowerbound.distributions import (
    Delta,
    Factorized,
    FlatDensity,
    at_least_float32,
    bernoulli,
    diagonal_normal,
    full_precision,
    kl_per_dimension,
)

ALGEBRA = 1e-10  # float64: a few hundred additions of terms of order one


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_densities_of_observed_entries_equal_scipy(seed: int, rows: int, dim: int) -> None:
    x, loc, scale = random(rows, dim, seed=seed), random(dim, seed=seed + 1), random(dim, seed=seed + 2).exp()
    x[random(rows, dim, seed=seed + 3) > 0.7] = torch.nan
    expected = oracles.gaussian_log_density(x.numpy(), loc.numpy(), scale.numpy())
    np.testing.assert_allclose(diagonal_normal(loc, scale).observed_log_prob(x), expected, rtol=0, atol=ALGEBRA)


def test_with_nothing_missing_all_entries_are_observed() -> None:
    p, x = diagonal_normal(random(3), random(3, seed=1).exp()), random(5, 3, seed=2)
    assert torch.equal(p.observed_log_prob(x), p.log_prob(x))
    assert p.log_prob(torch.full((1, 3), torch.nan)).isnan(), "elsewhere a NaN is a fault, not a missing entry"


def test_bernoulli_equals_the_product_of_probabilities() -> None:
    logits, x = random(7, 5), (random(7, 5, seed=1) > 0).double()
    np.testing.assert_allclose(
        bernoulli(logits).log_prob(x), oracles.bernoulli_log_density(x.numpy(), logits.numpy()), rtol=0, atol=ALGEBRA
    )


def test_missing_entries_leave_no_trace_in_the_gradient() -> None:
    loc = random(4, 3).requires_grad_()
    x = random(4, 3, seed=1)
    x[0], x[1, 2] = torch.nan, torch.nan
    diagonal_normal(loc, torch.ones(3, dtype=torch.float64)).observed_log_prob(x).sum().backward()
    assert loc.grad is not None
    torch.testing.assert_close(loc.grad, torch.where(x.isnan(), 0.0, x.nan_to_num() - loc.detach()))


def test_an_all_missing_row_has_log_density_zero() -> None:
    row = torch.full((1, 3), torch.nan)
    assert diagonal_normal(torch.zeros(3), torch.ones(3)).observed_log_prob(row).item() == 0
    assert bernoulli(torch.zeros(3)).observed_log_prob(row).item() == 0
    assert Factorized(Laplace(torch.zeros(3), 1.0)).observed_log_prob(row).item() == 0


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_closed_kls_equal_the_dense_one(seed: int, dim: int) -> None:
    loc, prior_loc, prior_scale = random(dim, seed=seed), random(dim, seed=seed + 1), random(dim, seed=seed + 2).exp()
    factor = torch.tril(random(dim, dim, seed=seed + 3), -1) + random(dim, seed=seed + 4).exp().diag()
    prior = diagonal_normal(prior_loc, prior_scale)
    dense_prior = (prior_loc.numpy(), prior_scale.square().diag().numpy())
    full = kl_divergence(MultivariateNormal(loc, scale_tril=factor), prior).item()
    assert full == pytest.approx(oracles.gaussian_kl(loc.numpy(), (factor @ factor.T).numpy(), *dense_prior), abs=1e-8, rel=1e-8)
    scale = factor.diagonal()
    diagonal = diagonal_normal(loc, scale)
    expected = oracles.gaussian_kl(loc.numpy(), scale.square().diag().numpy(), *dense_prior)
    assert kl_divergence(diagonal, prior).item() == pytest.approx(expected, abs=1e-8, rel=1e-8)
    assert kl_per_dimension(diagonal, prior).sum().item() == pytest.approx(expected, abs=1e-8, rel=1e-8)


def test_kl_of_a_full_gaussian_has_no_dimensions() -> None:
    full = MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2))
    with pytest.raises(ValueError, match="MultivariateNormal"):
        kl_per_dimension(full, diagonal_normal(torch.zeros(2), torch.ones(2)))


def test_a_full_gaussian_has_no_closed_kl_to_other_factors() -> None:
    full = MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2))
    with pytest.raises(NotImplementedError):
        kl_divergence(full, Factorized(Laplace(torch.zeros(2), 1.0)))


def test_a_point_repeats_itself_and_a_flat_density_cannot_be_drawn_from() -> None:
    point = Delta(torch.tensor([[1.0, 2.0]]))
    assert torch.equal(point.rsample(torch.Size([3])), point.loc.expand(3, 1, 2))
    assert torch.equal(point.mean, point.loc)
    assert point.variance.sum() == 0
    assert FlatDensity(2).log_prob(torch.randn(5, 2)).eq(0).all()
    with pytest.raises(ValueError, match="prior=standard_normal"):
        FlatDensity(2).sample(torch.Size([1]))


def test_densities_stay_in_float32_under_autocast() -> None:
    half = torch.randn(4, 3).bfloat16()
    assert at_least_float32(half).dtype is torch.float32
    assert at_least_float32(half.double()).dtype is torch.float64
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16), full_precision(x):
        assert (x @ x.T).dtype is torch.float32


def test_expanding_keeps_the_density() -> None:
    p = diagonal_normal(torch.zeros(3), torch.ones(3))
    x = torch.randn(5, 3)
    assert torch.equal(p.expand([5]).log_prob(x), p.log_prob(x))


def test_bits_have_the_density_and_the_gradient_of_torchs_own() -> None:
    """At logits of any size, for bits and for what lies between; float64."""
    logits = torch.linspace(-60, 60, 121, dtype=torch.float64, requires_grad=True)
    for value in (0.0, 0.3, 1.0):
        x = torch.full_like(logits, value)
        expected = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x)
        for d in range(0, 121, 10):  # an entry at a time: a sum would hide the small ones
            found = bernoulli(logits[d : d + 1]).log_prob(x[d : d + 1])
            torch.testing.assert_close(found, expected[d], atol=60 * torch.finfo(torch.float64).eps, rtol=0)
            (gradient,) = torch.autograd.grad(found, logits)
            torch.testing.assert_close(gradient[d], value - logits[d].sigmoid().detach(), atol=1e-15, rtol=1e-14)
