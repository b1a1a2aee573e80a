"""The estimators: scikit-learn's own checks, its own models as oracles, and nothing left behind."""

from __future__ import annotations

import logging
import pickle
import random
import warnings
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import sklearn.decomposition
import sklearn.mixture
import torch
from scipy.linalg import subspace_angles
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowerbound.errors import Remark
from lowerbound.estimator import Estimator
from lowerbound.estimators import PCA, PPCA, VAE, FactorAnalysis, GaussianMixture

OPTIMUM = 1e-6  # nats per datum, where both sides are at a maximum
FIVE = [
    *(kind(tol=1e-3) for kind in (PCA, PPCA, FactorAnalysis, GaussianMixture)),
    VAE(hidden_layer_sizes=(4,), max_epochs=1, num_samples=10),
]
MARGINAL = FIVE[:4]  # those that integrate missing entries out
by_name = pytest.mark.parametrize("estimator", FIVE, ids=lambda one: type(one).__name__)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Dequantized digits without the columns that hardly vary, ``[1797, 52]``."""
    x = load_digits().data
    x = x[:, x.std(0) > 0.5]
    return (x + np.random.default_rng(0).uniform(size=x.shape)) / 17


def rows(count: int = 60, dim: int = 5, seed: int = 0) -> np.ndarray:
    """Correlated Gaussian rows."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


def plane(count: int, dim: int, latent_dim: int, noise: float, seed: int = 0) -> np.ndarray:
    """Rows near a plane."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, latent_dim)) @ rng.normal(size=(latent_dim, dim)) + noise * rng.normal(size=(count, dim))


def gaussian_of(estimator: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a linear Gaussian model, from its parameters."""
    p = estimator.density_model_.likelihood
    weight, bias, scale = (tensor.detach().numpy() for tensor in (p.weight, p.bias, p.scale))
    return bias, weight @ weight.T + np.diag(scale**2)


# scikit-learn's contract


@parametrize_with_checks(FIVE)
def test_scikit_learn_accepts_it(estimator, check) -> None:
    """All of its checks, and no failure is expected."""
    check(estimator)


@by_name
def test_a_fit_leaves_nothing_behind(estimator, tmp_path: Path, monkeypatch, capfd, caplog) -> None:
    """Not a line, a warning, a file, a step of the process's generators, or another level of a logger."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    before = torch.get_rng_state(), torch.initial_seed(), np.random.get_state()[1].tolist(), random.getstate()
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        fitted = clone(estimator).fit(rows())
        fitted.score(rows())
        fitted.sample(3)
    after = torch.get_rng_state(), torch.initial_seed(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.iterdir())
    assert logging.getLogger("lightning.pytorch").level == logging.INFO


@by_name
def test_the_same_seed_gives_the_same_bits(estimator) -> None:
    """Also between different states of the process's generators, for the copy of a pickle, and in samples; another seed gives others."""
    torch.manual_seed(1)
    one = clone(estimator).fit(rows())
    torch.manual_seed(2)
    other, copy = clone(estimator).fit(rows()), pickle.loads(pickle.dumps(one))
    for name, tensor in one.model_.state_dict().items():
        assert torch.equal(tensor, other.model_.state_dict()[name])
    for again in (other, copy):
        assert np.array_equal(one.score_samples(rows()), again.score_samples(rows()))
        assert np.array_equal(one.sample(4), again.sample(4))
    assert not np.array_equal(one.sample(4), clone(estimator).set_params(random_state=1).fit(rows()).sample(4))


@by_name
def test_the_type_of_the_rows_is_that_of_the_codes(estimator) -> None:
    """Integers become float64, and what is learnt from float32 is what is learnt from the same numbers in float64."""
    whole = np.rint(10 * rows()).astype(np.int32)
    found = {dtype: clone(estimator).fit(whole.astype(dtype)) for dtype in (np.int32, np.float32, np.float64)}
    assert found[np.int32].transform(whole).dtype == found[np.float64].transform(whole.astype(np.float64)).dtype == np.float64
    codes = found[np.float32].transform(whole.astype(np.float32))
    assert codes.dtype == found[np.float32].inverse_transform(codes).dtype == np.float32
    for other in (np.int32, np.float32):
        assert np.allclose(found[other].score_samples(whole), found[np.float64].score_samples(whole), atol=1e-10, rtol=0)


@by_name
def test_draws_have_the_moments_of_the_model_and_its_highest_score(estimator) -> None:
    """E log p(x) over draws from p is above that over draws from a wider p; names of features are those of the class."""
    x = rows(200)
    fitted = clone(estimator).set_params(n_components=2).fit(x)
    draws = fitted.sample(300)
    assert draws.shape == (300, 5)
    assert fitted.score(draws) > fitted.score(draws.mean(0) + 1.2 * (draws - draws.mean(0)))
    assert list(fitted.get_feature_names_out()) == [f"{type(estimator).__name__.lower()}{index}" for index in range(2)]
    assert fitted.inverse_transform(fitted.transform(x)).shape == x.shape


# Its own models as oracles


@pytest.mark.parametrize("ours", [PCA, PPCA])
def test_pca_is_that_of_scikit_learn(ours, digits: np.ndarray) -> None:
    """The plane, the codes of PCA up to sign, and log p(x) of the covariance that divides by N and not by N - 1."""
    theirs, fitted = sklearn.decomposition.PCA(8, svd_solver="full").fit(digits), ours(8).fit(digits)
    covariance = theirs.get_covariance() * (len(digits) - 1) / len(digits)
    expected = multivariate_normal(theirs.mean_, covariance).logpdf(digits)
    assert np.abs(fitted.score_samples(digits) - expected).max() < 1e-8  # algebra in float64, over a condition number of 100
    axes = fitted.inverse_transform(np.eye(8)) - fitted.inverse_transform(np.zeros((1, 8)))  # [L, D]
    assert subspace_angles(axes.T, theirs.components_.T).max() < 1e-6
    if ours is PCA:
        codes = theirs.transform(digits)
        assert np.allclose(np.abs(fitted.transform(digits)), np.abs(codes), atol=1e-8, rtol=0)
        assert np.allclose(fitted.inverse_transform(fitted.transform(digits)), theirs.inverse_transform(codes), atol=1e-8, rtol=0)


def test_factor_analysis_reaches_the_optimum_of_scikit_learn(digits: np.ndarray) -> None:
    theirs = sklearn.decomposition.FactorAnalysis(4, tol=1e-8, max_iter=5000, svd_method="lapack").fit(digits)
    fitted = FactorAnalysis(4, tol=1e-9, max_iter=5000).fit(digits)
    assert fitted.score(digits) == pytest.approx(theirs.score(digits), abs=1e-5)  # each ends a little below, at a tolerance of its own
    ours = fitted.inverse_transform(np.eye(4)) - fitted.inverse_transform(np.zeros((1, 4)))
    assert subspace_angles(ours.T, theirs.components_.T).max() < 1e-2


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixture_is_a_maximum_also_to_scikit_learn(kind: str, digits: np.ndarray) -> None:
    """Started where ours ended its log p(x) is ours, and its EM stays there."""
    x = sklearn.decomposition.PCA(5).fit_transform(digits)  # where no component has a variance near the floor
    fitted = GaussianMixture(4, covariance_type=kind, pseudo_counts=0.0, tol=1e-9, max_iter=5000).fit(x)
    responsibilities, model = fitted.predict_proba(x), fitted.model_
    covariances = [np.cov(x.T, aweights=responsibilities[:, k], ddof=0) for k in range(4)]
    weights = responsibilities.mean(0)
    precisions = {
        "full": np.linalg.inv(covariances),
        "tied": np.linalg.inv(np.tensordot(weights, covariances, 1)),
        "diag": 1 / np.diagonal(covariances, axis1=1, axis2=2),
        "spherical": 1 / np.diagonal(covariances, axis1=1, axis2=2).mean(1),
    }[kind]
    means = model.likelihood.mean.detach().numpy()
    theirs = sklearn.mixture.GaussianMixture(
        4, covariance_type=kind, reg_covar=0, tol=0, max_iter=20, weights_init=weights, means_init=means, precisions_init=precisions
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a tolerance of 0 is never reached
        theirs.fit(x)
    assert fitted.score(x) == pytest.approx(theirs.score(x), abs=OPTIMUM)
    assert np.allclose(responsibilities, theirs.predict_proba(x), atol=1e-3)  # flat near the maximum: a root of the tolerance
    assert np.array_equal(fitted.predict(x), responsibilities.argmax(1))
    assert np.array_equal(fitted.transform(x), responsibilities)


# Missing entries


@pytest.mark.parametrize("estimator", MARGINAL, ids=lambda one: type(one).__name__)
def test_missing_entries_are_integrated_out(estimator) -> None:
    """log p of what is observed is that of the marginal, and of nothing 0; learnt from holes the model is near the one that had none."""
    x = plane(200, 5, 2, 0.3)
    holes = np.where(np.random.default_rng(1).uniform(size=x.shape) < 0.2, np.nan, x)
    holes[0] = np.nan
    fitted, complete = (clone(estimator).set_params(n_components=2, tol=1e-4) for _ in range(2))
    with pytest.warns(Remark, match="of 200 training rows hold no observed entry"):
        fitted.fit(holes)
    scores = fitted.score_samples(holes)
    assert scores[0] == pytest.approx(0.0, abs=1e-12)
    complete.fit(x)
    assert fitted.score(x) > complete.score(x) - 0.3  # a fifth of the entries is not worth more
    if not isinstance(estimator, GaussianMixture):  # whose EM may find another maximum
        assert fitted.score(x) <= complete.score(x) + 1e-3  # the tolerance, many steps from the end
        mean, covariance = gaussian_of(fitted)
        for row, score in zip(holes[1:20], scores[1:20], strict=True):
            seen = ~np.isnan(row)
            dense = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
            assert score == pytest.approx(dense.logpdf(row[seen]), abs=1e-9)


def test_codes_of_pca_with_holes_are_along_the_principal_axes_in_order() -> None:
    """EM alone leaves any basis of the plane."""
    x = plane(200, 5, 2, 0.3)
    holes = np.where(np.random.default_rng(1).uniform(size=x.shape) < 0.05, np.nan, x)
    ours, theirs = PCA(2, tol=1e-4).fit(holes).transform(x), sklearn.decomposition.PCA(2).fit_transform(x)
    assert np.abs(np.corrcoef(ours.T, theirs.T))[:2, 2:] == pytest.approx(np.eye(2), abs=0.05)


def test_a_vae_refuses_missing_entries() -> None:
    x = rows()
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        VAE().fit(x)


# The VAE


@pytest.fixture(scope="module")
def vae() -> VAE:
    return VAE(2, hidden_layer_sizes=(16,), max_epochs=30, num_samples=50).fit(curve())


def curve() -> np.ndarray:
    """Rows near a curve that no plane holds."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-2, 2, size=(300, 1))
    return np.concatenate([t, t**2, np.sin(2 * t), t], 1) + 0.2 * rng.normal(size=(300, 4))


def test_the_score_of_a_vae_bounds_its_evidence(vae: VAE) -> None:
    """log p(x) by a sum over a grid of z, from the decoder as `inverse_transform` shows it; more samples come nearer."""
    x, axis = curve()[:60], np.linspace(-6, 6, 161)
    grid = np.array(list(product(axis, axis)))
    error = ((x[:, None] - vae.inverse_transform(grid)) ** 2).sum(-1)  # [N, G]
    scale = vae.model_.likelihood.noise(torch.empty(0)).item()
    log_joint = -error / 2 / scale**2 - 4 * np.log(scale) - 3 * np.log(2 * np.pi) - (grid**2).sum(1) / 2
    evidence = logsumexp(log_joint, axis=1) + 2 * np.log(axis[1] - axis[0])
    wide = deepcopy(vae)
    with torch.no_grad():
        wide.model_.posterior_rule.network.layers[-1].bias[2:] += 1.0  # log of the scale of q
    gaps = [(evidence - wide.set_params(num_samples=count).score_samples(x)).mean() for count in (1, 5, 1000)]
    assert gaps[0] > 1 > gaps[1] > 0.1
    assert abs(gaps[2]) < 0.1  # six standard errors over rows, of a relative variance of w of about ten
    assert abs((evidence - vae.score_samples(x)).mean()) < 0.05  # as it was learnt q is nearly the posterior


def test_a_vae_begins_at_probabilistic_pca_and_ends_above_it(vae: VAE) -> None:
    assert vae.score(curve()) > PPCA(2).fit(curve()).score(curve()) + 0.2


def test_a_vae_of_bits_draws_bits_and_refuses_others() -> None:
    bits = (rows(80) > 0).astype(float)
    fitted = VAE(likelihood="bernoulli", hidden_layer_sizes=(4,), max_epochs=2).fit(bits)
    assert set(np.unique(fitted.sample(20))) <= {0.0, 1.0}
    assert fitted.score(bits) < 0
    with pytest.raises(ValueError, match="likelihood=bernoulli"):
        VAE(likelihood="bernoulli", hidden_layer_sizes=(4,)).fit(rows())


# In scikit-learn's tools


def test_a_pipeline_classifies_from_codes_as_from_those_of_scikit_learn(digits: np.ndarray) -> None:
    """The classifier does not mind the signs of axes."""
    labels = load_digits().target
    ours, theirs = (
        make_pipeline(StandardScaler(), reduction, LogisticRegression(max_iter=500)).fit(digits[:1000], labels[:1000])
        for reduction in (PCA(10), sklearn.decomposition.PCA(10))
    )
    assert ours.score(digits[1000:], labels[1000:]) == pytest.approx(theirs.score(digits[1000:], labels[1000:]), abs=0.005)


@pytest.mark.parametrize(("estimator", "divides"), [(PPCA(), False), (PCA(), False), (FactorAnalysis(tol=1e-3), True)])
def test_a_grid_search_finds_the_dimension_of_the_data(estimator, divides: bool) -> None:
    """By held-out log p(x), which is largest at the truth; over NumPy's integers. Only to factor analysis units do not matter."""
    pipeline = make_pipeline(StandardScaler(with_std=divides), estimator)
    name = f"{type(estimator).__name__.lower()}__n_components"
    search = GridSearchCV(pipeline, {name: np.arange(2, 5)}, cv=3).fit(plane(300, 8, 3, 0.3))
    assert search.best_params_ == {name: 3}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# What it refuses, and what it remarks


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (PPCA(5), "n_components=5 must be below n_features=5"),
        (PCA(0), "n_components=0"),
        (FactorAnalysis(2, tol=-1), "tol"),
        (FactorAnalysis(2, max_iter=0), "max_iter=0"),
        (GaussianMixture(61), "n_components=61 must be below"),
        (GaussianMixture(covariance_type="round"), "full, tied, diag, spherical"),
        (GaussianMixture(pseudo_counts=-1), "pseudo_counts=-1"),
        (VAE(likelihood="laplace"), "gaussian nor bernoulli"),
        (VAE(3, hidden_layer_sizes=(8, 4)), "at least 6 each"),
        (VAE(hidden_layer_sizes=8), "hidden_layer_sizes=8"),
        (VAE(learning_rate=0.0), "learning_rate=0"),
        (VAE(batch_size=0), "batch_size=0"),
        (VAE(max_epochs=0), "max_epochs=0"),
        (VAE(num_samples=0), "num_samples=0"),
    ],
)
def test_what_does_not_fit_is_refused_at_fit(estimator, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        estimator.fit(rows())


def test_codes_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="X has 3 columns, and this PPCA makes codes of 2"):
        PPCA(2).fit(rows()).inverse_transform(np.zeros((1, 3)))


def test_em_that_ends_too_soon_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter=2 steps"):
        fitted = FactorAnalysis(2, max_iter=2, tol=1e-9).fit(rows())
    assert fitted.n_iter_ == 2
    assert not fitted.converged_


def test_a_variance_at_its_floor_is_remarked_on() -> None:
    x = rows()
    x[:, 0] = 1.0
    with pytest.warns(Remark, match="floor"):
        FactorAnalysis(tol=1e-3).fit(x)
