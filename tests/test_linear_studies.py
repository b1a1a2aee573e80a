"""Studies of linear models: what they claim against dense NumPy answers; and each as one command, small."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.linalg import subspace_angles

import commands
import lowerbound
import oracles
from lowerbound.data import InMemory
from lowerbound.data.missing import Missing
from lowerbound.data.module import TensorDataModule
from lowerbound.data.prepare import Preparation
from lowerbound.data.synthetic import LinearGaussianData
from lowerbound.distributions import kl_per_dimension
from lowerbound.em import EMFit
from lowerbound.identities import EvidenceIdentity, PrincipalCollapse, ascend, linear_vae, terms_of, with_moments
from lowerbound.imputing import Imputation, learnt, mean_filled
from lowerbound.linear_gaussian import linear
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Reconstruction
from lowerbound.principal import FourWays, Rotation, by_em, graded, smallest_errors, solved, stretched, whitened
from lowerbound.statistics import Moments, Triangle
from lowerbound.stories import NoiseStories, orthogonal, story_of
from lowerbound.studies import Study
from lowerbound.wording import unit

SIX = 6  # standard errors
ALGEBRA = 1e-10  # float64
PARTS = {"val_fraction": 0.1, "test_fraction": 0.5}


def asked(study: Study, model: LatentVariableModel, data: TensorDataModule, start: LatentVariableModel | None = None) -> dict[str, float]:
    """The numbers of a study of this model."""
    fit: Any = SimpleNamespace(evaluation_model=model, objective=Reconstruction(), clock=None, device=torch.device("cpu"))
    study.check(model)
    study.start = model if start is None else start
    torch.manual_seed(2)
    return study.answer(fit, data).numbers


def set_to(model: LatentVariableModel, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> LatentVariableModel:
    """The linear Gaussian model with these parameters."""
    p = linear(model)
    with torch.no_grad():
        p.weight.copy_(torch.from_numpy(weight))
        p.bias.copy_(torch.from_numpy(bias))
        p.noise.maximize(torch.from_numpy(scale**2), torch.ones(len(bias), dtype=torch.float64))
    return model


def known(dim: int = 5, latent_dim: int = 2, seed: int = 0) -> tuple[LatentVariableModel, np.ndarray, np.ndarray, np.ndarray]:
    """Factor analysis with known parameters W, b and scales."""
    rng = np.random.default_rng(seed)
    weight, bias, scale = rng.standard_normal((dim, latent_dim)), rng.standard_normal(dim), rng.uniform(0.3, 1.0, dim)
    return set_to(lowerbound.factor_analysis(dim, latent_dim), weight, bias, scale), weight, bias, scale


def drawn(count: int, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, weight.shape[1])) @ weight.T + bias + rng.standard_normal((count, len(bias))) * scale


def correlated(count: int = 300, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Rows with well separated principal variances, in dimensions of unequal scale."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return (rng.standard_normal((count, dim)) * 2.0 ** -np.arange(dim)) @ turn.T * np.linspace(1, 3, dim) + rng.standard_normal(dim)


def train_rows(data: TensorDataModule) -> np.ndarray:
    return data.part("train").x.double().numpy()


def principal(x: np.ndarray, latent_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """All principal variances, falling, and the first axes ``[D, L]``, by the singular values of the centred data."""
    _, singular, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return singular**2 / len(x), axes[:latent_dim].T


def degrees(one: np.ndarray, other: np.ndarray) -> float:
    return np.degrees(subspace_angles(one, other).max())


# Missing entries.


def conditional(x: np.ndarray, hidden: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of a Gaussian row's hidden entries given the others, by Bishop 2006, eq. 2.81 and 2.82."""
    inside, cross = covariance[np.ix_(~hidden, ~hidden)], covariance[np.ix_(hidden, ~hidden)]
    gain = cross @ np.linalg.inv(inside) if inside.size else np.zeros_like(cross)
    return mean[hidden] + gain @ (x[~hidden] - mean[~hidden]), np.diag(covariance[np.ix_(hidden, hidden)] - gain @ cross.T)


def test_the_errors_of_imputation_are_those_of_the_conditional_gaussian() -> None:
    model, weight, bias, scale = known()
    data = InMemory(torch.from_numpy(drawn(4000, weight, bias, scale)), **PARTS)
    numbers = asked(Imputation(fractions=[0.2, 0.6], steps=1), model, data)
    covariance, rng = weight @ weight.T + np.diag(scale**2), np.random.default_rng(5)
    x = data.part("test").x.double().numpy()
    for fraction in (0.2, 0.6):
        hidden = rng.random(x.shape) < fraction
        found = [conditional(row, holes, bias, covariance) for row, holes in zip(x, hidden, strict=True)]
        squares = np.array([((mean - row[holes]) ** 2).sum() for row, holes, (mean, _) in zip(x, hidden, found, strict=True)])
        error = SIX * 2**0.5 * squares.std() / len(x) ** 0.5 * len(x) / hidden.sum()  # of another draw of holes in the same rows
        key = f"hidden_{100 * fraction:.0f}_percent"
        assert numbers[f"{key}_model_rmse"] ** 2 == pytest.approx(squares.sum() / hidden.sum(), abs=error)
        assert numbers[f"{key}_model_rmse"] ** 2 == pytest.approx(np.concatenate([var for _, var in found]).mean(), abs=error)
        assert numbers[f"{key}_mean_rmse"] ** 2 == pytest.approx(np.diag(covariance).mean(), rel=0.1)
        assert numbers[f"{key}_within_two_std_share"] == pytest.approx(
            stats.norm.cdf(2) - stats.norm.cdf(-2), abs=SIX * 0.21 / len(x) ** 0.5
        )
        assert numbers[f"{key}_model_rmse"] < 0.9 * numbers[f"{key}_mean_rmse"]
    assert numbers["complete_log_evidence"] == pytest.approx(oracles.dense_gaussian(x, weight, bias, scale).mean(), abs=ALGEBRA)


def test_rows_filled_in_with_means_teach_too_small_a_variance() -> None:
    """Of a dimension with variance v, filled-in rows have (1 - f) v, and of a covariance (1 - f)^2 of it."""
    model, weight, bias, scale = known()
    x, rng = drawn(3000, weight, bias, scale), np.random.default_rng(3)
    hidden = rng.random(x.shape) < 0.4
    holes = np.where(hidden, np.nan, x)
    filled = mean_filled(torch.from_numpy(holes)).numpy()
    np.testing.assert_allclose(filled, np.where(hidden, np.nanmean(holes, 0), x), rtol=1e-12)
    truth = np.diag(weight @ weight.T + np.diag(scale**2))
    torch.manual_seed(0)
    by_holes, by_means = (
        np.diag(linear(learnt(model, torch.from_numpy(rows), 100)).covariance.detach().numpy()) for rows in (holes, filled)
    )
    np.testing.assert_allclose(by_means, filled.var(0), rtol=1e-3)  # factor analysis reproduces each variance at its optimum
    np.testing.assert_allclose(by_means, 0.6 * truth, rtol=0.2)
    np.testing.assert_allclose(by_holes, truth, rtol=SIX * (2 / (0.6 * len(x))) ** 0.5)


def test_marginalising_learns_more_from_holes_than_filling_in() -> None:
    model, *parameters = known()
    data = InMemory(torch.from_numpy(drawn(2000, *parameters)), **PARTS)
    numbers = asked(Imputation(fractions=[0.01, 0.5], steps=100), model, data)
    assert numbers["hidden_50_percent_mean_filled_log_evidence"] < numbers["hidden_50_percent_marginalised_log_evidence"] - 0.3
    # Fitted to 800 rows, half of them hidden, p loses about (parameters) / (2 rows observed) nats against the truth.
    assert numbers["complete_log_evidence"] - numbers["hidden_50_percent_marginalised_log_evidence"] < 0.1
    assert abs(numbers["hidden_1_percent_mean_filled_log_evidence"] - numbers["hidden_1_percent_marginalised_log_evidence"]) < 0.03


# The principal subspace.


@pytest.mark.parametrize("route", [Moments, Triangle])
def test_both_routes_solve_for_the_plane_of_singular_vectors(route: type[Moments] | type[Triangle]) -> None:
    x = correlated()
    variances, axes = principal(x, 2)
    model = solved(torch.from_numpy(x), 2, route)
    assert degrees(linear(model).weight.detach().numpy(), axes) < 1e-5
    errors = (x - model.reconstruct(torch.from_numpy(x)).detach().numpy()) ** 2
    assert errors.sum(1).mean() == pytest.approx(variances[2:].sum(), rel=ALGEBRA)


def test_em_ends_in_the_plane_of_singular_vectors() -> None:
    x = correlated()
    _, axes = principal(x, 2)
    torch.manual_seed(0)
    model = by_em(torch.from_numpy(x), 2, tolerance=1e-14)
    assert degrees(linear(model).weight.detach().numpy(), axes) < 1e-4  # its square is what the error still loses
    loose = by_em(torch.from_numpy(x), 2, tolerance=0.5)
    assert degrees(linear(loose).weight.detach().numpy(), axes) > 1e-3, "the tolerance is heeded"


def test_graded_rows_have_the_singular_values_that_are_said() -> None:
    torch.manual_seed(0)
    x, variances = graded(100.0, num_data=50, dim=4)
    singular = np.linalg.svd(x.numpy(), compute_uv=False)
    np.testing.assert_allclose(singular, [1, 100 ** (-1 / 3), 100 ** (-2 / 3), 0.01], rtol=1e-12)
    np.testing.assert_allclose(variances, singular**2 / 50, rtol=1e-12)
    np.testing.assert_allclose(x.mean(0), 0, rtol=0, atol=1e-15)


def test_squaring_the_condition_number_loses_half_of_the_digits() -> None:
    """Of the smallest variance, relative: about eps cond^2 by the covariance, and eps cond by the singular values."""
    eps = np.finfo(float).eps
    conditions = [1e3, 1e5, 1e7]
    torch.manual_seed(0)
    errors = smallest_errors(conditions)
    for condition, eigen, svd in zip(conditions, errors["eigen"], errors["svd"], strict=True):
        assert svd < 50 * eps * condition
        assert eps * condition**2 / 100 < eigen < 50 * eps * condition**2
    torch.manual_seed(1)
    assert smallest_errors([1e9])["eigen"][0] > 0.5, "no digit is right"


def autoencoder(x: np.ndarray, latent_dim: int, turn: float = 0.0) -> LatentVariableModel:
    """The best linear autoencoder of the rows, in a basis of no meaning; or with its last axis turned out of the plane."""
    torch.manual_seed(4)
    _, axes = principal(x, latent_dim + 1)
    plane = axes[:, :latent_dim].copy()
    plane[:, -1] = np.cos(turn) * axes[:, latent_dim - 1] + np.sin(turn) * axes[:, latent_dim]
    a = np.random.default_rng(7).standard_normal((latent_dim, latent_dim))
    model = lowerbound.linear_autoencoder(x.shape[1], latent_dim)
    encoder = model.posterior_rule.network.linear
    with torch.no_grad():
        linear(model).weight.copy_(torch.from_numpy(plane @ a))
        linear(model).bias.copy_(torch.from_numpy(x.mean(0)))
        encoder.weight.copy_(torch.from_numpy(np.linalg.inv(a) @ plane.T))
        encoder.bias.copy_(torch.from_numpy(-np.linalg.inv(a) @ plane.T @ x.mean(0)))
    return model


@pytest.mark.parametrize("turn", [0.0, 5.0])
def test_four_ways_are_measured_against_one_plane(turn: float) -> None:
    data = InMemory(torch.from_numpy(correlated()))
    x = train_rows(data)
    numbers = asked(FourWays(condition_exponents=[0, 6]), autoencoder(x, 2, math.radians(turn)), data)
    variances, axes = principal(x, 2)
    assert numbers["autoencoder_angle_degrees"] == pytest.approx(turn, abs=1e-5)
    assert numbers["em_angle_degrees"] < 0.05  # the tolerance of the squared error is that of the angle's square
    assert numbers["singular_vectors_angle_degrees"] < 1e-5
    lost = (variances[1] - variances[2]) * math.sin(math.radians(turn)) ** 2
    for name, more in (("eigenvectors", 0.0), ("singular_vectors", 0.0), ("em", 0.0), ("autoencoder", lost)):
        assert numbers[f"{name}_squared_error"] == pytest.approx(variances[2:].sum() + more, rel=1e-6), name
    scale = x.std(0)
    assert numbers["standardized_angle_degrees"] == pytest.approx(degrees(principal(x / scale, 2)[1] * scale[:, None], axes), abs=1e-5)
    assert numbers["standardized_angle_degrees"] > 1
    assert numbers["condition_1e6_eigen_error"] > 100 * numbers["condition_1e6_svd_error"]


def test_standardized_data_are_their_own_standardization() -> None:
    x = correlated()
    data = InMemory(torch.from_numpy(x), val_fraction=0.0, test_fraction=0.0)
    rows = train_rows(data)
    data = InMemory(torch.from_numpy((rows - rows.mean(0)) / rows.std(0)), val_fraction=0.0, test_fraction=0.0)
    assert asked(FourWays(condition_exponents=[0]), autoencoder(train_rows(data), 2), data)["standardized_angle_degrees"] < 1e-5


# What of W can be known.


def test_a_stretched_autoencoder_reconstructs_the_same() -> None:
    x = torch.from_numpy(correlated())
    model, a = autoencoder(x.numpy(), 3, 0.3), torch.randn(3, 3, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    other = stretched(model, a, mean)
    torch.testing.assert_close(other.reconstruct(x), model.reconstruct(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(other.encode(x) @ a.T + mean, model.encode(x), atol=1e-10, rtol=0)


def test_white_codes_have_mean_zero_and_covariance_one() -> None:
    x = torch.from_numpy(correlated())
    shifted = stretched(autoencoder(x.numpy(), 3), torch.eye(3).double(), torch.tensor([1.0, -2.0, 3.0]).double())
    codes = whitened(shifted, x).encode(x).detach().numpy()
    np.testing.assert_allclose(codes.mean(0), 0, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.cov(codes.T, bias=True), np.eye(3), rtol=0, atol=1e-10)


def test_only_the_order_of_the_variances_finds_the_axes() -> None:
    data = InMemory(torch.from_numpy(correlated()))
    x, test = train_rows(data), data.part("test").x.double()
    model = autoencoder(x, 3)
    numbers = asked(Rotation(), model, data)
    _, axes = principal(x, 3)
    columns = linear(model).weight.detach().numpy()
    cosines = np.abs((columns * axes).sum(0)) / np.linalg.norm(columns, axis=0)
    assert numbers["trained_angle_degrees"] == pytest.approx(np.degrees(np.arccos(cosines.min())), abs=1e-5)
    assert numbers["largest_loss_difference"] < ALGEBRA
    for name in ("trained", "stretched", "white", "rotated"):
        assert numbers[f"{name}_angle_degrees"] > 1, name
    for name in ("white_covariance_error", "rotated_covariance_error", "ordered_covariance_error"):
        assert numbers[name] < 1e-10, name
    assert numbers["ordered_angle_degrees"] < 1e-4
    assert numbers["unique_angle_degrees"] < 1e-6
    square = (test - model.reconstruct(test)).square().sum(1).mean().item()
    assert numbers["loss"] == pytest.approx(square / 2 + 3 * math.log(2 * math.pi), rel=ALGEBRA)  # D = 6, s = 1


# Three stories.


def synthetic(count: int = 4000, **options: Any) -> LinearGaussianData:
    options = {"dim": 4, "latent_dim": 1, "noise_variance": [1.0, 0.1, 0.1, 0.2], "data_seed": 3, **PARTS} | options
    return LinearGaussianData(num_data=count, **options)


def factor_analysis(x: np.ndarray, latent_dim: int) -> LatentVariableModel:
    torch.manual_seed(0)
    return learnt(lowerbound.factor_analysis(x.shape[1], latent_dim), torch.from_numpy(x), 200)


def test_pca_and_probabilistic_pca_are_two_stories_of_one_density() -> None:
    x = torch.from_numpy(correlated())
    spectrum, model = Moments.of(x).spectrum(), lowerbound.ppca(6, 2)
    linear(model).solve(spectrum, model)
    pca, ppca = orthogonal(spectrum, 2), story_of(model)
    torch.testing.assert_close(pca.covariance, ppca.covariance, atol=1e-10, rtol=0)
    dense = stats.multivariate_normal(ppca.bias.detach(), ppca.covariance.detach()).logpdf(x)
    np.testing.assert_allclose(pca.log_prob(x), dense, atol=ALGEBRA, rtol=0)
    assert pca.noise_share < ppca.noise_share, "part of the variance in the plane is noise to probabilistic PCA"


def test_each_story_has_the_noise_that_it_is_told_with() -> None:
    x = torch.from_numpy(correlated(dim=4))
    _, axes = principal(x.numpy(), 1)
    pca = orthogonal(Moments.of(x).spectrum(), 1)
    torch.manual_seed(0)
    step, seen = pca.draws(20_000)
    noise = (seen - step).numpy()
    np.testing.assert_allclose(noise @ axes, 0, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cov(seen.T, correction=0), pca.covariance, atol=0.1, rtol=0.1)
    model = factor_analysis(x.numpy(), 1)
    step, seen = story_of(model).draws(20_000)
    noise = (seen - step).detach().numpy()
    psi = linear(model).scale.square().detach().numpy()
    np.testing.assert_allclose(np.cov(noise.T), np.diag(psi), rtol=0, atol=SIX * psi.max() * (2 / 20_000) ** 0.5)


def test_where_the_noise_is_unequal_factor_analysis_tells_the_truth() -> None:
    data = synthetic()
    x, test = train_rows(data), data.part("test").x.double().numpy()
    model = factor_analysis(x, 1)
    numbers = asked(NoiseStories(), model, data)
    truth = data.truth
    psi = truth.noise_variance.numpy()
    dense = oracles.dense_gaussian(test, truth.weight.numpy(), truth.bias.numpy(), psi**0.5)
    assert numbers["truth_log_evidence"] == pytest.approx(dense.mean(), abs=ALGEBRA)
    assert numbers["pca_log_evidence"] == pytest.approx(numbers["ppca_log_evidence"], abs=ALGEBRA)
    assert numbers["factor_analysis_log_evidence"] > numbers["ppca_log_evidence"] + 0.1
    assert numbers["truth_log_evidence"] - numbers["factor_analysis_log_evidence"] < 0.02  # 12 parameters, 1,600 rows
    _, axis = principal(x, 1)
    assert numbers["pca_angle_degrees"] == pytest.approx(degrees(axis, truth.weight.numpy()), abs=1e-5)
    assert numbers["factor_analysis_angle_degrees"] < 5 < numbers["ppca_angle_degrees"]
    assert numbers["truth_noise_share"] == pytest.approx(psi.sum() / (psi.sum() + np.sum(truth.weight.numpy() ** 2)), rel=1e-12)


def test_where_the_noise_is_equal_all_stories_are_one() -> None:
    data = synthetic(noise_variance=0.2)
    numbers = asked(NoiseStories(), factor_analysis(train_rows(data), 1), data)
    assert abs(numbers["factor_analysis_log_evidence"] - numbers["ppca_log_evidence"]) < 0.02
    assert numbers["ppca_angle_degrees"] < 3


@pytest.mark.parametrize(
    "data",
    [InMemory(torch.randn(50, 4)), synthetic(50, missing=Missing(fraction=0.1)), synthetic(50, prepare=Preparation(standardize=True))],
)
def test_the_truth_must_be_known_and_in_the_units_of_the_data(data: TensorDataModule) -> None:
    study, fit = NoiseStories(), EMFit(lowerbound.factor_analysis(4, 1))
    study.on_fit_start(SimpleNamespace(datamodule=synthetic(50)), fit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data=linear_gaussian"):
        study.on_fit_start(SimpleNamespace(datamodule=data), fit)  # type: ignore[arg-type]


# Identities of the linear VAE.


def encoded(dim: int = 5, latent_dim: int = 2, scale: float = 0.4, seed: int = 0) -> tuple[LatentVariableModel, np.ndarray, np.ndarray]:
    """A linear VAE whose q is far from the posterior, with its W and b."""
    torch.manual_seed(seed)
    model = linear_vae(dim, latent_dim, scale)
    with torch.no_grad():
        linear(model).bias.normal_()
        model.posterior_rule.log_scale.copy_(torch.tensor([-1.0, 0.3]))
    return model, linear(model).weight.detach().numpy(), linear(model).bias.detach().numpy()


def test_every_term_of_the_identity_is_what_its_name_says() -> None:
    model, weight, bias = encoded()
    x = torch.from_numpy(drawn(10, weight, bias, np.full(5, 0.4)))
    terms = terms_of(model, x)
    means, covariance = oracles.dense_linear_posterior(x.numpy(), weight, bias, 0.4)
    q = model.posterior(x)
    loc, own = q.mean.detach().numpy(), np.diag(q.variance[0].detach().numpy())
    np.testing.assert_allclose(terms.log_evidence, oracles.dense_gaussian(x.numpy(), weight, bias, np.full(5, 0.4)), rtol=0, atol=ALGEBRA)
    np.testing.assert_allclose(terms.kl, [oracles.gaussian_kl(m, own, np.zeros(2), np.eye(2)) for m in loc], rtol=0, atol=ALGEBRA)
    to_posterior = [oracles.gaussian_kl(m, own, mean, covariance) for m, mean in zip(loc, means, strict=True)]
    np.testing.assert_allclose(terms.kl_to_posterior, to_posterior, rtol=ALGEBRA)
    z = np.random.default_rng(0).standard_normal((4000, 1, 2)) * np.sqrt(np.diag(own)) + loc
    samples = stats.norm(z @ weight.T + bias, 0.4).logpdf(x.numpy()).sum(-1)  # [S, N]
    assert (np.abs(samples.mean(0) - terms.reconstruction.numpy()) < SIX * samples.std(0) / 4000**0.5).all()
    assert terms.residual.abs().max() < ALGEBRA
    assert terms.kl_to_posterior.min() > 0.1, "there is something to add up"


def test_the_bound_touches_where_q_is_the_posterior() -> None:
    model, weight, bias = encoded()
    means, covariance = oracles.dense_linear_posterior(np.zeros((1, 5)), np.linalg.qr(weight)[0], bias, 0.4)
    with torch.no_grad():  # columns at right angles, so that a diagonal q can be exact
        linear(model).weight.copy_(torch.from_numpy(np.linalg.qr(weight)[0]))
        gain = covariance @ np.linalg.qr(weight)[0].T / 0.4**2
        model.posterior_rule.network.linear.weight.copy_(torch.from_numpy(gain))
        model.posterior_rule.network.linear.bias.copy_(torch.from_numpy(means[0]))
        model.posterior_rule.log_scale.copy_(torch.from_numpy(np.log(np.diag(covariance)) / 2))
    terms = terms_of(model, torch.randn(7, 5, dtype=torch.float64))
    assert terms.kl_to_posterior.abs().max() < ALGEBRA
    torch.testing.assert_close(terms.elbo, terms.log_evidence, atol=ALGEBRA, rtol=0)


def test_the_identity_holds_before_and_after_training() -> None:
    start, weight, bias = encoded()
    model, *_ = encoded(seed=1)
    data = InMemory(torch.from_numpy(drawn(60, weight, bias, np.full(5, 0.4))))
    numbers = asked(EvidenceIdentity(), model, data, start)
    for when, one in (("start", start), ("trained", model)):
        terms = terms_of(one, data.part("test").x.double())
        assert numbers[f"{when}_log_evidence"] == pytest.approx(terms.log_evidence.mean().item(), abs=ALGEBRA)
        total = numbers[f"{when}_reconstruction"] - numbers[f"{when}_kl"] + numbers[f"{when}_kl_to_posterior"]
        assert total == pytest.approx(numbers[f"{when}_log_evidence"], abs=ALGEBRA)
        assert numbers[f"{when}_largest_residual"] < ALGEBRA


def test_rows_with_the_same_moments() -> None:
    x = correlated()
    rows = with_moments(Moments.of(torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(rows.mean(0), x.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.cov(rows.T, bias=True), np.cov(x.T, bias=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_a_dimension_collapses_iff_its_eigenvalue_is_below_the_noise(beta: float) -> None:
    x = correlated()
    variances, _ = principal(x, 3)
    threshold = (variances[1] * variances[2]) ** 0.5
    torch.manual_seed(0)
    model = linear_vae(6, 3, (threshold / beta) ** 0.5)
    rows = with_moments(Moments.of(torch.from_numpy(x)))
    ascend(model, rows, beta, 300)
    kl = kl_per_dimension(model.posterior(rows), model.prior()).mean(0).detach().sort(descending=True).values
    np.testing.assert_allclose(kl, np.maximum(0, np.log(variances[:3] / threshold) / 2), rtol=0, atol=1e-4)
    assert kl[2] < 1e-4 < 0.1 < kl[1]


def test_the_evidence_of_a_linear_vae_is_set_beside_the_maximum_of_tipping_and_bishop() -> None:
    data = InMemory(torch.from_numpy(correlated()))
    x = train_rows(data)
    variances, axes = principal(x, 2)
    noise = variances[2:].mean()
    optimum = -(6 * math.log(2 * math.pi) + np.log(variances[:2]).sum() + 4 * math.log(noise) + 6) / 2  # T&B 1999, eq. 8
    weight = axes * np.sqrt(variances[:2] - noise)
    turned = weight @ np.array([[0.6, -0.8], [0.8, 0.6]])
    for columns, gap in ((turned, 0.0), (0.5 * turned, None)):
        model = set_to(lowerbound.linear_vae(6, 2), columns, x.mean(0), np.full(6, noise**0.5))
        numbers = asked(PrincipalCollapse(kept=[1], betas=[1.0, 2.0], steps=100), model, data)
        exact = oracles.dense_gaussian(x, columns, x.mean(0), np.full(6, noise**0.5)).mean()
        assert numbers["ppca_log_evidence"] == pytest.approx(optimum, abs=1e-8)
        assert numbers["vae_log_evidence"] == pytest.approx(exact, abs=1e-8)
        assert numbers["evidence_gap"] == pytest.approx(optimum - exact if gap is None else gap, abs=1e-8)
        assert numbers["vae_elbo"] < numbers["vae_log_evidence"]
    assert numbers["beta_1_of_1_active_dimensions"] == numbers["beta_2_of_1_active_dimensions"] == 1
    assert numbers["largest_kl_difference"] < 0.01


# Refusals and units.


@pytest.mark.parametrize(
    ("study", "model", "words"),
    [
        (Imputation(), lowerbound.linear_vae(5, 2), "model=ppca"),
        (Imputation(), lowerbound.pca(5, 2), "model=ppca"),
        (FourWays(), lowerbound.pca(5, 2), "model=linear_autoencoder"),
        (FourWays(), lowerbound.autoencoder(5, 2, sizes=[3]), "model=linear_autoencoder"),
        (Rotation(), lowerbound.linear_vae(5, 2), "model=linear_autoencoder"),
        (NoiseStories(), lowerbound.ppca(5, 2), "model=factor_analysis"),
        (NoiseStories(), lowerbound.factor_analysis(3, 2), "at least 2 apart"),
        (EvidenceIdentity(), lowerbound.ppca(5, 2), "model=linear_vae"),
        (EvidenceIdentity(), lowerbound.vae(5, 2, sizes=[3]), "model=linear_vae"),
        (PrincipalCollapse(kept=[3]), lowerbound.linear_vae(5, 2), r"kept=\[3\]"),
        (PrincipalCollapse(kept=[1]), linear_vae(5, 2, 0.3), "noise=shared"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(study: Study, model: LatentVariableModel, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study.check(model)


@pytest.mark.parametrize("fractions", [[0.5, 0.2], [], [0.0], [1.0]])
def test_fractions_must_increase_between_0_and_1(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        Imputation(fractions=fractions)


def test_what_is_not_in_nats_is_not_printed_as_nats() -> None:
    for name in ("em_angle_degrees", "em_seconds", "condition_1e6_svd_error", "pca_noise_share", "hidden_10_percent_model_rmse"):
        assert unit(f"study/{name}") == "", name
    for name in ("largest_loss_difference", "trained_kl_to_posterior", "evidence_gap", "trained_largest_residual"):
        assert unit(f"study/{name}") == " nats", name


# Each idea as one command, small.

COMMANDS = {
    "imputation": ("imputation", ("latent_dim=2", "callbacks.study.steps=2", "callbacks.study.fractions=[0.2,0.5]")),
    "rotation": ("rotation", ("trainer.max_epochs=1", "latent_dim=3")),
    "noise_stories": ("noise_stories", ("data.num_data=200", "callbacks.study.num_draws=10")),
    "evidence_identity": ("evidence_identity", ("trainer.max_epochs=1", "latent_dim=3")),
    "collapse": ("collapse", ("trainer.max_epochs=1", "latent_dim=3", "callbacks.study.kept=[1,2]", "callbacks.study.steps=5")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_idea_is_one_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture, options = COMMANDS[name]
    assert commands.train(tmp_path, monkeypatch, f"experiment={name}", *options, "~callbacks.pictures") == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    results = json.loads((folder / "results.json").read_text())
    numbers = {key: value for key, value in results.items() if key.startswith("study/")}
    assert numbers
    assert all(math.isfinite(value) for value in numbers.values())
    printed = capsys.readouterr().out
    assert all(key in printed for key in numbers)
    assert Image.open(folder / "figures" / f"{picture}.png").size[0] > 500


def test_pca_with_and_without_standardizing_is_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("trainer.max_epochs=1", "latent_dim=2", "callbacks.study.condition_exponents=[0,4]")
    assert commands.train(tmp_path, monkeypatch, "experiment=pca_four_ways", *options, "~callbacks.pictures") == 0
    (folder,) = (tmp_path / "outputs" / "pca_four_ways").iterdir()
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    apart = [json.loads((run / "results.json").read_text())["study/standardized_angle_degrees"] for run in runs]
    assert apart[0] > 1 > 1e-5 > apart[1]
    assert Image.open(folder / "pca_four_ways.png").size[0] > 500
    assert capsys.readouterr().out.count("\n  data.prepare.standardize=") == 2, "the lines of the table"


@pytest.mark.parametrize("study", [Imputation(fractions=[0.3], steps=1), FourWays([0]), Rotation(num_axes=2)])
def test_tables_have_pictures_too(study: Study) -> None:
    x = correlated(60)
    model = lowerbound.ppca(6, 2) if isinstance(study, Imputation) else autoencoder(x, 2)
    assert asked(study, model, InMemory(torch.from_numpy(x)))
