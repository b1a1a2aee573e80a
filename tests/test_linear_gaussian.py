"""PCA, probabilistic PCA and factor analysis against dense Gaussians, scikit-learn and loops. Algebra in float64: 1e-10."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import lowerbound
import oracles
from lowerbound.data import LinearGaussianData
from lowerbound.likelihoods import FixedNoise, NetworkNoise, NoisePerDimension, SharedNoise
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian, OrthogonalProjection
from lowerbound.model import LatentVariableModel
from lowerbound.priors import Flat, MixtureOfGaussians, StandardNormal
from lowerbound.statistics import Moments, moments_of, triangle_of

D, L = 6, 2
EXACT = ["ppca", "factor_analysis"]
ALL = [*EXACT, "pca"]


def model_of(kind: str, dim: int = D, latent_dim: int = L, seed: int = 0, min_scale: float = 1e-3) -> LatentVariableModel:
    """A model with parameters, and a point to count sums from, that are nothing special."""
    torch.manual_seed(seed)
    if kind == "pca":
        model = lowerbound.pca(dim, latent_dim)
    else:
        noise = (SharedNoise if kind == "ppca" else NoisePerDimension)(dim, min_scale=min_scale)
        model = LatentVariableModel(StandardNormal(latent_dim), LinearGaussian(latent_dim, dim, noise), ExactGaussian())
        torch.nn.init.uniform_(noise.log_scale, log(0.2), log(0.8))
    torch.nn.init.normal_(model.likelihood.weight)
    torch.nn.init.normal_(model.likelihood.bias)
    model.likelihood.offset.normal_()
    return model


def rows(count: int = 80, dim: int = D, latent_dim: int = 3, noise: float = 0.5, seed: int = 0) -> Tensor:
    """Draws of a linear Gaussian model with more latent dimensions than is fitted."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, latent_dim)) * np.geomspace(2, 1, latent_dim)
    x = generator.normal(size=(count, latent_dim)) @ mixing.T + generator.normal(size=(count, dim)) * noise
    return torch.from_numpy(x + generator.normal(size=dim))


def with_holes(x: Tensor, fraction: float = 0.3, seed: int = 0) -> Tensor:
    """Entries missing at random, and one whole row."""
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < fraction
    holes[0] = True
    return x.masked_fill(holes, torch.nan)


def parameters(model: LatentVariableModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, b and s."""
    p = model.likelihood
    return p.weight.detach().numpy(), p.bias.detach().numpy(), p.scale.detach().numpy()


def dense(model: LatentVariableModel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of p(x)."""
    weight, bias, scale = parameters(model)
    return bias, weight @ weight.T + np.diag(scale**2)


def dense_log_prob(model: LatentVariableModel, x: Tensor) -> np.ndarray:
    """log p of the observed entries, row by row, by the dense marginal."""
    mean, covariance = dense(model)
    patterns, which = np.unique(~np.isnan(x.numpy()), axis=0, return_inverse=True)
    found = np.zeros(len(x))
    for index, s in enumerate(patterns):
        if s.any():
            found[which == index] = stats.multivariate_normal(mean[s], covariance[np.ix_(s, s)]).logpdf(x.numpy()[which == index][:, s])
    return found


def squared_error(model: LatentVariableModel, x: Tensor) -> float:
    """The sum over observed entries of the squared distance to the plane, at the model's own z."""
    weight, bias, _ = parameters(model)
    with torch.no_grad():
        z = model.encode(x).numpy()
    return float(np.nansum((x.numpy() - z @ weight.T - bias) ** 2))


def objective(model: LatentVariableModel, x: Tensor) -> float:
    """What EM raises, in nats per datum: log p(x), or minus half the squared error."""
    return -squared_error(model, x) / 2 / len(x) if model.likelihood.noise.min_scale == 0 else dense_log_prob(model, x).mean()


def em_step(model: LatentVariableModel, x: Tensor | Moments) -> None:
    """One step on rows, or on moments."""
    with torch.no_grad():
        model.maximize(model.likelihood.expected(x, model) if isinstance(x, Moments) else model.statistics(x))


def started(kind: str, x: Tensor, latent_dim: int = L, seed: int = 0) -> LatentVariableModel:
    """A model at the start that rows give it."""
    model = model_of(kind, x.shape[1], latent_dim, seed)
    model.initialize(x, len(x))
    return model


def solved(kind: str, x: Tensor, latent_dim: int = L, route=moments_of, min_scale: float = 1e-3) -> LatentVariableModel:
    """A model at its closed form."""
    model = model_of(kind, x.shape[1], latent_dim, min_scale=min_scale)
    model.likelihood.solve(route([x]).spectrum(), model)
    return model


# Law 3: the evidence and its gradient


@pytest.mark.parametrize("kind", EXACT)
def test_log_prob_is_the_dense_gaussian(kind: str) -> None:
    model, x = model_of(kind), rows()
    expected = oracles.dense_gaussian(x.numpy(), *parameters(model))
    np.testing.assert_allclose(model.log_prob(x).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.likelihood.covariance.detach(), dense(model)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", EXACT)
def test_log_prob_of_what_is_observed_is_the_dense_marginal(kind: str) -> None:
    model, x = model_of(kind), with_holes(rows())
    np.testing.assert_allclose(model.log_prob(x).detach(), dense_log_prob(model, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ALL)
def test_rows_without_holes_are_the_same_beside_rows_with_some(kind: str) -> None:
    """Law 9: no NaN is no mask, though the two are computed in different ways."""
    model, x = model_of(kind), rows(20)
    both = torch.cat([x, with_holes(rows(5, seed=1))])
    torch.testing.assert_close(model.encode(both)[:20], model.encode(x), atol=1e-10, rtol=0)
    if kind in EXACT:
        torch.testing.assert_close(model.log_prob(both)[:20], model.log_prob(x), atol=1e-10, rtol=0)
        one, other = model.posterior(x), model.posterior(both)
        torch.testing.assert_close(other.covariance_matrix[:20], one.covariance_matrix, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", EXACT)
def test_a_row_that_is_missing_has_log_prob_0_and_the_prior_as_its_posterior(kind: str) -> None:
    model = model_of(kind)
    x = torch.full((2, D), torch.nan)
    assert torch.equal(model.log_prob(x), torch.zeros(2, dtype=torch.float64))
    q = model.posterior(x)
    assert torch.equal(q.mean, torch.zeros(2, L, dtype=torch.float64))
    torch.testing.assert_close(q.covariance_matrix, torch.eye(L, dtype=torch.float64).expand(2, L, L), atol=1e-15, rtol=0)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", EXACT)
def test_the_posterior_is_the_joint_gaussian_conditioned(kind: str, holes: bool) -> None:
    model, x = model_of(kind), rows(10)
    x = with_holes(x) if holes else x
    weight, bias, _ = parameters(model)
    _, covariance = dense(model)
    q = model.posterior(x)
    for n, row in enumerate(x.numpy()):
        s = ~np.isnan(row)
        gain = weight[s].T @ np.linalg.inv(covariance[np.ix_(s, s)])
        np.testing.assert_allclose(q.mean[n].detach(), gain @ (row - bias)[s], rtol=0, atol=1e-10)
        np.testing.assert_allclose(q.covariance_matrix[n].detach(), np.eye(L) - gain @ weight[s], rtol=0, atol=1e-10)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", EXACT)
def test_log_weight_does_not_depend_on_z(kind: str, holes: bool) -> None:
    model, x = model_of(kind), rows(10)
    x = with_holes(x) if holes else x
    log_weight = model.log_weight(x, 50)
    assert log_weight.std(0).max() < 1e-12
    np.testing.assert_allclose(log_weight.detach(), np.tile(dense_log_prob(model, x), (50, 1)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("quantity", ["log_prob", "log_weight"])
@pytest.mark.parametrize("kind", EXACT)
def test_gradients_are_those_of_the_dense_gaussian(kind: str, quantity: str, holes: bool) -> None:
    model, x = model_of(kind), rows(10)
    x = with_holes(x) if holes else x
    p = model.likelihood
    covariance = p.weight @ p.weight.T + p.scale.square().diag()
    seen = ~x.isnan()
    terms = [MultivariateNormal(p.bias[s], covariance[s][:, s]).log_prob(row[s]) for row, s in zip(x, seen, strict=True) if s.any()]
    expected = torch.autograd.grad(sum(terms), list(p.parameters()))
    found = torch.autograd.grad(getattr(model, quantity)(x).sum(), list(p.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("noise", [1e-2, 10**-3.5, 1e-5])
@pytest.mark.parametrize("kind", EXACT)
def test_log_prob_keeps_its_digits_as_the_noise_vanishes(kind: str, noise: float) -> None:
    """Noise variance down to 1e-10 of the data's, with gradients: the dense Gaussian loses D eps / s^2 itself."""
    model, x = model_of(kind, min_scale=1e-9), rows(20, latent_dim=L, noise=noise)
    model.likelihood.solve(triangle_of([x]).spectrum(), model) if kind == "ppca" else model.initialize(x, 20)
    torch.nn.init.constant_(model.likelihood.noise.log_scale, log(noise))
    with torch.no_grad():
        found = model.log_prob(x).numpy()
    weight, bias, scale = parameters(model)
    covariance = weight @ weight.T + np.diag(scale**2)
    factor = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(factor, (x.numpy() - bias).T)
    expected = -((whitened**2).sum(0) + D * np.log(2 * np.pi)) / 2 - np.log(np.diag(factor)).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-8 if noise**2 > 1e-8 else 1e-4)


# Imputation


@pytest.mark.parametrize("kind", EXACT)
def test_what_is_missing_is_predicted_by_the_conditional_gaussian(kind: str) -> None:
    model, x = model_of(kind), with_holes(rows(10))
    mean, covariance = dense(model)
    found = model.impute(x)
    assert found.std is not None
    for row, filled, std in zip(x.numpy(), found.mean.detach().numpy(), found.std.detach().numpy(), strict=True):
        s = ~np.isnan(row)
        gain = covariance[np.ix_(~s, s)] @ np.linalg.inv(covariance[np.ix_(s, s)])
        np.testing.assert_allclose(filled[~s], mean[~s] + gain @ (row - mean)[s], rtol=0, atol=1e-10)
        np.testing.assert_allclose(std[~s] ** 2, np.diag(covariance[np.ix_(~s, ~s)] - gain @ covariance[np.ix_(s, ~s)]), rtol=0, atol=1e-10)
        np.testing.assert_array_equal(filled[s], row[s])
        assert (std[s] == 0).all()


def test_pca_predicts_from_the_plane_and_states_no_deviation() -> None:
    model, x = model_of("pca"), with_holes(rows(10))
    weight, bias, _ = parameters(model)
    mean, std = model.impute(x)
    assert std is None
    for row, filled in zip(x.numpy(), mean.detach().numpy(), strict=True):
        s = ~np.isnan(row)
        z = np.linalg.lstsq(weight[s], (row - bias)[s], rcond=None)[0]
        np.testing.assert_allclose(filled[~s], (weight @ z + bias)[~s], rtol=0, atol=1e-10)


# E-step


@pytest.mark.parametrize("kind", ALL)
def test_the_moments_give_the_sums_of_the_rows(kind: str) -> None:
    model, x = model_of(kind), rows()
    one, other = model.likelihood.expected(moments_of(x.split(30)), model), model.statistics(x)
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name].expand_as(value), value, rtol=1e-10, atol=1e-10 * value.abs().max().item())


@pytest.mark.parametrize("sizes", [[80], [1] * 80, [3, 77], [40, 1, 39]])
@pytest.mark.parametrize("kind", ALL)
def test_the_sums_do_not_depend_on_the_partition(kind: str, sizes: list[int]) -> None:
    """Law 6, with missing entries."""
    model, x = model_of(kind), with_holes(rows())
    whole, parts = model.statistics(x), [model.statistics(part) for part in x.split(sizes)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-12, atol=1e-12 * value.abs().max().item())


@pytest.mark.parametrize("kind", ALL)
def test_the_sums_are_those_of_a_loop(kind: str) -> None:
    """Bishop 2006, eq. 12.54 and 12.55, over what is observed, with a constant 1 behind z."""
    model, x = model_of(kind), with_holes(rows(9))
    offset = model.likelihood.offset.numpy()
    found, q = model.statistics(x), model.posterior(x)
    covariance = q.covariance_matrix.detach().numpy() if kind in EXACT else np.zeros((9, L, L))
    zz, xz, xx, count = np.zeros((D, L + 1, L + 1)), np.zeros((D, L + 1)), np.zeros(D), np.zeros(D)
    for n, row in enumerate(x.numpy()):
        z = np.append(q.mean[n].detach().numpy(), 1.0)
        second = np.outer(z, z)
        second[:L, :L] += covariance[n]
        for d in np.flatnonzero(~np.isnan(row)):
            deviation = row[d] - offset[d]
            zz[d], xz[d], xx[d], count[d] = zz[d] + second, xz[d] + deviation * z, xx[d] + deviation**2, count[d] + 1
    for name, value in {"zz": zz, "xz": xz, "xx": xx, "count": count}.items():
        np.testing.assert_allclose(found[name].detach(), value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ALL)
def test_terms_from_moments_are_means_over_rows(kind: str) -> None:
    """Law 11, too: the reconstruction is what samples of q give, the KL that of two Gaussians."""
    model, x = model_of(kind), rows(30)
    with torch.no_grad():
        value, reconstruction, kl = model.likelihood.terms(model.likelihood.expected(Moments.of(x), model), model)
        q, z, log_likelihood = model.draw(x, 20_000)
    sampled = log_likelihood.mean(1)
    assert value.item() == pytest.approx((reconstruction - kl).item(), abs=1e-10)
    if kind == "pca":
        assert kl.item() == 0
        assert reconstruction.item() == pytest.approx(-squared_error(model, x) / 60 - D * log(2 * np.pi) / 2, abs=1e-10)
        return
    assert value.item() == pytest.approx(dense_log_prob(model, x).mean(), abs=1e-10)
    assert kl.item() == pytest.approx(kl_divergence(q, model.prior()).mean().item(), abs=1e-10)
    assert abs(sampled.mean() - reconstruction) < 6 * sampled.std() / len(z) ** 0.5


# M-step and EM


@pytest.mark.parametrize("kind", ALL)
def test_the_m_step_takes_the_proportions_of_the_sums_alone(kind: str) -> None:
    """So that sums may stand for more data than there are, or be mixed until a rare dimension counts for less than one."""
    model, other, x = model_of(kind), model_of(kind), with_holes(rows())
    with torch.no_grad():
        sums = model.statistics(x)
        model.maximize(sums)
        other.maximize({name: 1e-4 * value for name, value in sums.items()})
    for one, another in zip(parameters(other), parameters(model), strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ALL)
def test_a_dimension_without_an_observation_keeps_what_it_has(kind: str) -> None:
    model, x = model_of(kind), rows()
    before = parameters(model)[0][2].copy(), parameters(model)[1][2].copy(), parameters(model)[2].copy()
    x[:, 2] = torch.nan
    em_step(model, x)
    weight, bias, scale = parameters(model)
    np.testing.assert_array_equal(weight[2], before[0])
    assert bias[2] == before[1]
    assert kind != "factor_analysis" or scale[2] == before[2][2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", EXACT)
def test_rows_of_any_float_type_are_taken_as_they_are(kind: str, dtype: torch.dtype) -> None:
    model, x = model_of(kind), with_holes(rows()).to(dtype)
    assert torch.equal(model.log_prob(x), model.log_prob(x.double()))
    for one, other in zip(model.statistics(x).values(), model.statistics(x.double()).values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("route", ["rows", "moments", "holes"])
@pytest.mark.parametrize("kind", ALL)
def test_every_step_ascends(kind: str, route: str) -> None:
    """Law 5."""
    x = with_holes(rows()) if route == "holes" else rows()
    model, data = started(kind, x), Moments.of(x) if route == "moments" else x
    values = [objective(model, x)]
    for _ in range(40):
        em_step(model, data)
        values.append(objective(model, x))
    assert (np.diff(values) >= -1e-10).all()
    assert values[-1] > values[0] + 0.1


@pytest.mark.parametrize("route", ["rows", "moments", "holes"])
@pytest.mark.parametrize("kind", ALL)
def test_every_step_ascends_where_the_rank_of_the_data_is_below_that_of_the_model(kind: str, route: str) -> None:
    """Rank 2 of 6 and L = 4; half of the rows are there twice. The exact models end at the floor of their noise.

    PCA with holes then has no minimum, only ever longer z for ever shorter columns of W, until these are cut off as rounding:
    that costs about the root of the rounding.
    """
    x = rows(40, latent_dim=2, noise=0.0).repeat(2, 1)
    x = with_holes(x, 0.15) if route == "holes" else x
    model, data = started(kind, x, latent_dim=4), Moments.of(x) if route == "moments" else x
    values = [objective(model, x)]
    for _ in range(40):
        em_step(model, data)
        values.append(objective(model, x))
    assert np.isfinite(values).all()
    assert (np.diff(values) >= -(1e-6 if kind == "pca" and route == "holes" else 1e-10) * max(1, np.abs(values).max())).all()
    assert values[-1] > values[0] + 1
    if route != "holes":
        assert model.likelihood.floored() if kind in EXACT else values[-1] > -1e-20


@pytest.mark.parametrize("route", ["rows", "moments"])
@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_the_closed_form_is_a_fixed_point(kind: str, route: str) -> None:
    """Law 7."""
    x = rows()
    model = solved(kind, x)
    before = parameters(model)
    em_step(model, Moments.of(x) if route == "moments" else x)
    for one, other in zip(parameters(model), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_em_ends_at_the_closed_form(kind: str) -> None:
    """To 1e-6 nats per datum, on the rows it was fitted to and on others."""
    x, others = rows(), rows(30, seed=0) + 0.1
    model, optimum = started(kind, x), solved(kind, x)
    moments = Moments.of(x)
    for _ in range(1500):
        em_step(model, moments)
    assert objective(model, x) == pytest.approx(objective(optimum, x), abs=1e-6)
    assert objective(model, others) == pytest.approx(objective(optimum, others), abs=1e-6)


def test_factor_analysis_ends_where_scikit_learn_does() -> None:
    x = rows(400, dim=8)
    model, moments = started("factor_analysis", x), Moments.of(x)
    for _ in range(2000):
        em_step(model, moments)
    found = FactorAnalysis(L, tol=1e-14, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert dense_log_prob(model, x).mean() == pytest.approx(found.score(x.numpy()), abs=1e-6)
    np.testing.assert_allclose(model.likelihood.scale.square().detach(), found.noise_variance_, rtol=1e-3)


def least_squares(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of several solutions that of least norm; of no equations zero."""
    return np.linalg.lstsq(design, target, rcond=None)[0] if len(target) else np.zeros(design.shape[1])


def als_step(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least squares of every row, then of every column, over what is observed."""
    seen = ~np.isnan(x)
    z = np.stack([least_squares(weight[s], (row - bias)[s]) for row, s in zip(x, seen, strict=True)])
    design = np.c_[z, np.ones(len(z))]
    columns = np.stack([least_squares(design[s], column[s]) for column, s in zip(x.T, seen.T, strict=True)])
    return columns[:, :-1], columns[:, -1]


def test_pca_with_missing_entries_is_alternating_least_squares() -> None:
    """Some rows have fewer observed entries than latent dimensions: of their z the one of least norm."""
    x = with_holes(rows(60), 0.4)
    x[1:4] = torch.nan
    x[1:4, 2] = torch.tensor([0.5, -1.0, 2.0], dtype=x.dtype)
    model = started("pca", x, latent_dim=3)
    weight, bias, _ = parameters(model)
    for _ in range(15):
        weight, bias = als_step(x.numpy(), weight.copy(), bias.copy())
        em_step(model, x)
    np.testing.assert_allclose(parameters(model)[0], weight, rtol=0, atol=1e-8)
    np.testing.assert_allclose(parameters(model)[1], bias, rtol=0, atol=1e-8)
    z = model.encode(x[1:2])[0].detach().numpy()
    np.testing.assert_allclose(z, weight[2] * (0.5 - bias[2]) / (weight[2] @ weight[2]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ALL)
def test_a_column_that_was_never_observed_changes_nothing_else(kind: str) -> None:
    x = with_holes(rows(), 0.2)
    lost = x.clone()
    lost[:, 2] = torch.nan
    kept = [d for d in range(D) if d != 2]
    model, smaller = started(kind, lost), started(kind, lost[:, kept])
    smaller.likelihood.weight.data = model.likelihood.weight.data[kept].clone()
    for _ in range(20):
        em_step(model, lost)
        em_step(smaller, lost[:, kept])
    for one, other in zip(parameters(model), parameters(smaller), strict=True):
        np.testing.assert_allclose(one[kept], other, rtol=0, atol=1e-10)
    mean, std = model.impute(lost)
    assert (mean[:, 2] == 0).all(), "nothing is known of it"
    assert mean.isfinite().all()
    assert std is None or std.isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_a_large_mean_costs_no_digits(kind: str) -> None:
    """Sums are counted from the mean of the rows, so that a step far from 0 is the step at 0."""
    x = rows().round(decimals=3)
    near, far = started(kind, x), started(kind, x + 2.0**20)
    for _ in range(10):
        em_step(near, x)
        em_step(far, x + 2.0**20)
    torch.testing.assert_close(far.likelihood.weight, near.likelihood.weight, atol=1e-7, rtol=0)
    torch.testing.assert_close(far.likelihood.scale, near.likelihood.scale, atol=1e-7, rtol=0)
    torch.testing.assert_close(far.likelihood.bias - 2.0**20, near.likelihood.bias, atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_units_of_the_data_do_not_matter(scale: float) -> None:
    """Not even where z takes them over: the sums of z z' then hold numbers from 1 to their square."""
    x = rows()
    model, other = model_of("pca"), model_of("pca")
    for one, data in ((model, x), (other, scale * x)):
        one.likelihood.count_from(data)
        one.likelihood.bias.data = one.likelihood.offset.clone()
        for _ in range(200):
            em_step(one, data)
    assert squared_error(other, scale * x) / scale**2 == pytest.approx(squared_error(model, x), rel=1e-6)


# Closed form


@pytest.mark.parametrize("route", [moments_of, triangle_of])
def test_the_closed_form_is_that_of_scikit_learn(route) -> None:
    """It divides by n - 1, and the maximum of the likelihood by n (Tipping & Bishop 1999)."""
    x, others = rows(), rows(20, seed=0) * 1.1
    found, n = PCA(L, svd_solver="full").fit(x.numpy()), len(x)
    pca, ppca = solved("pca", x, route=route), solved("ppca", x, route=route)
    np.testing.assert_allclose(np.abs((parameters(pca)[0] * found.components_.T).sum(0)), 1, rtol=1e-10)
    np.testing.assert_allclose(
        pca.reconstruct(others).detach(), found.inverse_transform(found.transform(others.numpy())), rtol=0, atol=1e-10
    )
    found.explained_variance_ = found.explained_variance_ * (n - 1) / n
    found.noise_variance_ *= (n - 1) / n
    np.testing.assert_allclose(parameters(ppca)[2] ** 2, found.noise_variance_, rtol=1e-10)
    np.testing.assert_allclose(ppca.log_prob(others).detach(), found.score_samples(others.numpy()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_no_neighbour_of_the_closed_form_is_better(kind: str) -> None:
    x = rows()
    model = solved(kind, x)
    best = objective(model, x)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        kept = parameter.detach().clone()
        for _ in range(20):
            parameter.data = kept + 1e-3 * torch.randn(kept.shape, generator=generator, dtype=kept.dtype)
            assert objective(model, x) < best
        parameter.data = kept


@pytest.mark.parametrize("min_scale", [1e-9, 1e-3])
def test_noise_of_a_ten_millionth_of_the_variance_keeps_its_digits(min_scale: float) -> None:
    """log p to 1e-8 of the dense Gaussian at the optimum that NumPy's singular values give; the moments hold s^2 to 1e-9."""
    x = rows(200, latent_dim=2, noise=10**-3.5 * 2)
    centred = (x - x.mean(0)).numpy()
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / len(x)
    noise = max(variances[L:].mean(), min_scale**2)
    assert noise < 1e-6 * variances[0]
    covariance = axes[:L].T @ np.diag(variances[:L] - noise) @ axes[:L] + noise * np.eye(D)
    expected = stats.multivariate_normal(x.mean(0).numpy(), covariance).logpdf(x.numpy())
    for route in (moments_of, triangle_of):
        model = solved("ppca", x, route=route, min_scale=min_scale)
        np.testing.assert_allclose(model.log_prob(x).detach(), expected, rtol=1e-8)
    for data in (x, Moments.of(x)):
        model = solved("ppca", x, min_scale=min_scale)
        model.likelihood.count_from(x)
        em_step(model, data)
        np.testing.assert_allclose(model.log_prob(x).detach(), expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["ppca", "pca"])
@pytest.mark.parametrize("route", [moments_of, triangle_of])
def test_more_dimensions_than_rows(kind: str, route) -> None:
    """As scikit-learn's; the noise is the mean over all dimensions that the rows do not span, too."""
    x = rows(7, dim=20)
    found = PCA(L, svd_solver="full").fit(x.numpy())
    model = solved(kind, x, route=route)
    np.testing.assert_allclose(np.abs((parameters(solved("pca", x, route=route))[0] * found.components_.T).sum(0)), 1, rtol=1e-9)
    if kind == "ppca":
        variances = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False) ** 2 / 7
        np.testing.assert_allclose(parameters(model)[2] ** 2, variances[L:].sum() / (20 - L), rtol=1e-10)
        np.testing.assert_allclose(model.log_prob(x).detach(), oracles.dense_gaussian(x.numpy(), *parameters(model)), rtol=0, atol=1e-9)


def test_ppca_of_known_noise_keeps_the_directions_that_exceed_it() -> None:
    """Tipping & Bishop 1999, appendix A: W = U (Lambda - s^2)^(1/2), and 0 where an eigenvalue is below s^2; EM agrees."""
    x = rows()
    variances = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    noise = FixedNoise(D, scale=float(np.sqrt((variances[1] + variances[2]) / 2)))
    model = LatentVariableModel(StandardNormal(4), LinearGaussian(4, D, noise), ExactGaussian())
    model.likelihood.solve(Moments.of(x).spectrum(), model)
    np.testing.assert_allclose(
        np.linalg.norm(parameters(model)[0], axis=0), [*np.sqrt(variances[:2] - noise.scale**2), 0, 0], rtol=0, atol=1e-10
    )
    before = parameters(model)
    em_step(model, Moments.of(x))
    np.testing.assert_allclose(parameters(model)[0], before[0], rtol=0, atol=1e-9)


# Laws 8 and 10


@pytest.mark.parametrize("kind", EXACT)
def test_rotating_the_latent_space_changes_nothing(kind: str) -> None:
    model, x = model_of(kind), with_holes(rows())
    before = model.log_prob(x).detach()
    angle = torch.tensor(0.7)
    rotation = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
    rotation = torch.linalg.qr(rotation).Q  # orthogonal to float64
    model.likelihood.weight.data = model.likelihood.weight.data @ rotation
    torch.testing.assert_close(model.log_prob(x).detach(), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_the_order_of_rows_and_of_columns_changes_nothing(kind: str) -> None:
    x = rows()
    order, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(0)) for n in x.shape)
    model, permuted = solved(kind, x), solved(kind, x[order][:, columns])
    assert objective(permuted, x[:, columns]) == pytest.approx(objective(model, x), abs=1e-10)


def test_the_truth_is_recovered() -> None:
    """Anderson 1963: an eigenvector of variance l leans into each of the D - L noise directions by l s^2 / ((l - s^2)^2 N), mean square."""
    data = LinearGaussianData(num_data=20_000, noise_variance=0.3)
    x = data.part("train").x
    n, (dim, latent_dim) = len(x), data.truth.weight.shape
    truth, noise = data.truth.weight.numpy(), 0.3
    model = solved("ppca", x, latent_dim)
    weight, bias, scale = parameters(model)
    beyond = dim - latent_dim
    assert abs(scale[0] ** 2 - noise) < 6 * noise * np.sqrt(2 / (n * beyond))
    assert (np.abs(bias - data.truth.bias.numpy()) < 6 * np.sqrt(np.diag(truth @ truth.T + noise * np.eye(dim)) / n)).all()
    variances = np.linalg.svd(truth, compute_uv=False) ** 2 + noise
    lean = (variances * noise / (variances - noise) ** 2 / n).sum()
    assert np.sin(subspace_angles(weight, truth)[0]) ** 2 < lean * (beyond + 6 * np.sqrt(2 * beyond))


def test_the_noises_of_factor_analysis_are_recovered() -> None:
    """The model's covariance is nearer to the truth than that of the data, whose entries have variance (C_ii C_jj + C_ij^2) / N."""
    noise = np.geomspace(0.1, 2, 10)
    data = LinearGaussianData(num_data=20_000, noise_variance=noise.tolist())
    x = data.part("train").x
    model = started("factor_analysis", x, 3)
    for _ in range(500):
        em_step(model, moments_of([x]))
    truth = data.truth.weight.numpy() @ data.truth.weight.numpy().T + np.diag(noise)
    error = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / len(x))
    assert (np.abs(dense(model)[1] - truth) < 6 * error).all()
    assert (np.abs(parameters(model)[2] ** 2 - noise) < 6 * np.diag(error)).all()


# Edges


def test_a_constant_column_is_fitted_at_the_floor_and_said_so() -> None:
    x = rows()
    x[:, 3] = 2.5
    model = started("factor_analysis", x)
    for _ in range(20):
        em_step(model, Moments.of(x))
    sentence = model.likelihood.floored()
    assert sentence is not None
    assert "1 of 6 noise scales" in sentence
    assert "noise.min_scale=0.001" in sentence
    assert parameters(model)[2][3] == pytest.approx(1e-3, rel=1e-6)
    assert parameters(model)[1][3] == pytest.approx(2.5, abs=1e-6)
    assert model.log_prob(x).isfinite().all()


def test_more_rows_of_one_kind_are_fitted_at_the_floor() -> None:
    """One row, many times: the mean, no direction, the least noise."""
    x = rows(1).repeat(9, 1)
    for kind in EXACT:
        model = started(kind, x)
        for data in (x, Moments.of(x)):
            em_step(model, data)
        assert model.likelihood.floored()
        np.testing.assert_allclose(parameters(model)[1], x[0], rtol=0, atol=1e-12)
        assert model.log_prob(x).isfinite().all()
        assert model.log_prob(x + 1.0).isfinite().all()


@pytest.mark.parametrize("kind", ["ppca", "pca"])
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_rows_than_components_have_no_closed_form(kind: str, count: int) -> None:
    model, x = model_of(kind), rows(count)
    with pytest.raises(ValueError, match=f"{count} training rows span at most {count - 1} directions: latent_dim=2 must be lower"):
        model.likelihood.solve(Moments.of(x).spectrum(), model)
    with pytest.raises(ValueError, match="latent_dim=2 must be lower"):
        model.likelihood.solve(triangle_of([x]).spectrum(), model)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_em_answers_for_few_rows(kind: str, count: int) -> None:
    x = rows(count)
    model, moments = started(kind, rows(10)), Moments.of(x)
    for data in (x, moments, x):
        em_step(model, data)
    assert all(np.isfinite(value).all() for value in parameters(model))
    assert np.isfinite(objective(model, x))


@pytest.mark.parametrize("latent_dim", [6, 7])
def test_as_many_latents_as_dimensions_are_refused(latent_dim: int) -> None:
    with pytest.raises(ValueError, match=f"latent_dim={latent_dim} must be below data.dim=6"):
        lowerbound.ppca(6, latent_dim)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="not NetworkNoise: choose noise=shared or per_dimension"):
        LinearGaussian(L, D, NetworkNoise(D))
    with pytest.raises(ValueError, match="choose fit=em, or noise=shared"):
        solved("factor_analysis", rows())
    with pytest.raises(ValueError, match="under prior=standard_normal, not under MixtureOfGaussians"):
        LatentVariableModel(MixtureOfGaussians(L), LinearGaussian(L, D, SharedNoise(D)), ExactGaussian())
    with pytest.raises(ValueError, match="choose likelihood=linear_gaussian, or posterior=diagonal_gaussian"):
        LatentVariableModel(StandardNormal(L), lowerbound.vae(D, L).likelihood, ExactGaussian())
    with pytest.raises(ValueError, match="noise=fixed, not SharedNoise"):
        LatentVariableModel(Flat(L), LinearGaussian(L, D, SharedNoise(D)), OrthogonalProjection())


def test_infinite_values_are_refused() -> None:
    x = rows()
    x[3, 1] = torch.inf
    with pytest.raises(ValueError, match="1 infinite values: remove them, or write NaN"):
        lowerbound.ppca(D, L).check_data(x)
