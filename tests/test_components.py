"""The number of components against the published formula, scikit-learn and dense Gaussians; and the studies, asked small."""

from __future__ import annotations

from math import lgamma, log, pi
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import lowerbound
from lowerbound import component_plots
from lowerbound.cli import main
from lowerbound.components import (
    NumberOfComponents,
    RecoveredAxes,
    by_share,
    held_out_log_probs,
    log_evidences,
    number_of_components,
)
from lowerbound.data import InMemory
from lowerbound.model import LatentVariableModel
from lowerbound.statistics import Moments, Spectrum, Triangle
from lowerbound.studies import Study
from lowerbound.wording import unit


def spectrum_of(x: np.ndarray) -> Spectrum:
    return Moments.of(torch.tensor(x)).spectrum()


def known(latent_dim: int, num_data: int = 500, dim: int = 12, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    """Rows of probabilistic PCA with that many dimensions of standard deviation 2 and more."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, latent_dim)))[0] * np.linspace(4, 2, latent_dim)
    return rng.normal(size=(num_data, latent_dim)) @ axes.T + noise * rng.normal(size=(num_data, dim)) + 3


def dequantized_digits() -> np.ndarray:
    x = load_digits().data
    return (x + np.random.default_rng(0).random(x.shape)) / 17


# By share


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_the_share_is_scikit_learns(share: float) -> None:
    x = load_digits().data
    assert by_share(spectrum_of(x), share) == number_of_components(x, "share", share) == PCA(share, svd_solver="full").fit(x).n_components_


# By evidence


def minka(variances: np.ndarray, k: int, n: int) -> float:
    """log p(D | k) as printed, with loops."""
    d = len(variances)
    v = variances[k:].mean()
    hat = np.concatenate([variances[:k], np.full(d - k, v)])
    log_u = -k * log(2) + sum(lgamma((d - i + 1) / 2) - (d - i + 1) / 2 * log(pi) for i in range(1, k + 1))
    m = d * k - k * (k + 1) / 2
    log_a = sum(log((1 / hat[j] - 1 / hat[i]) * (variances[i] - variances[j]) * n) for i in range(k) for j in range(i + 1, d))
    fit = -n / 2 * np.log(variances[:k]).sum() - n * (d - k) / 2 * log(v)
    return log_u + fit + (m + k) / 2 * log(2 * pi) - log_a / 2 - k / 2 * log(n)


def test_the_evidence_is_minkas_formula_up_to_a_constant() -> None:
    x = known(3, dim=8)
    found = log_evidences(spectrum_of(x)).numpy()
    variances = np.sort(np.linalg.eigvalsh(np.cov(x.T, bias=True)))[::-1]
    expected = np.array([minka(variances, k, len(x)) for k in range(1, 8)])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_a_known_dimension_is_found_by_the_evidence_as_scikit_learn_finds_it(latent_dim: int, seed: int) -> None:
    x = known(latent_dim, seed=seed)
    assert number_of_components(x) == latent_dim == PCA("mle", svd_solver="full").fit(x).n_components_


def test_the_evidence_of_digits_chooses_as_scikit_learn_does() -> None:
    x = dequantized_digits()
    assert number_of_components(x) == PCA("mle", svd_solver="full").fit(x).n_components_


def test_the_evidence_knows_no_unit() -> None:
    spectrum = spectrum_of(known(3))
    other = Spectrum(spectrum.count, spectrum.mean, 1e4 * spectrum.variances, spectrum.axes)
    one, two = log_evidences(spectrum), log_evidences(other)
    np.testing.assert_allclose(two - two[0], one - one[0], rtol=1e-9, atol=1e-9)


def test_what_never_varies_says_nothing() -> None:
    """scikit-learn takes the zeros of constant columns for noise, and all other directions for components."""
    x = known(3)
    more = np.column_stack([x, np.full((len(x), 2), 7.0)])
    assert number_of_components(more) == 3 < PCA("mle", svd_solver="full").fit(more).n_components_
    np.testing.assert_allclose(log_evidences(spectrum_of(more)), log_evidences(spectrum_of(x)), rtol=1e-10)


def test_fewer_rows_than_dimensions() -> None:
    """The directions without a row are noise like any other."""
    x = known(2, num_data=30, dim=60)
    assert number_of_components(x) == number_of_components(x, "held_out") == 2
    by_rows = log_evidences(Triangle.of(torch.tensor(x)).spectrum())
    by_columns = log_evidences(spectrum_of(x))
    np.testing.assert_allclose(by_rows, by_columns, rtol=1e-8)


# By held-out likelihood


def dense(train: np.ndarray, test: np.ndarray, latent_dim: int, floor: float = 0.0) -> float:
    """The mean log-density of test rows under N(mean, U (Lambda - s^2 I) U' + s^2 I), s^2 the mean of the other eigenvalues."""
    values, vectors = np.linalg.eigh(np.cov(train.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = max(values[latent_dim:].mean(), floor)
    first = vectors[:, :latent_dim]
    stretch = np.clip(values[:latent_dim] - noise, 0, None)
    covariance = (first * stretch) @ first.T + noise * np.eye(len(values))
    return stats.multivariate_normal(train.mean(0), covariance).logpdf(test).mean()


def test_held_out_likelihoods_are_those_of_dense_gaussians() -> None:
    x = known(3, dim=8)
    found = held_out_log_probs(spectrum_of(x[:300]), torch.tensor(x[300:]))
    np.testing.assert_allclose(found, [dense(x[:300], x[300:], latent_dim) for latent_dim in range(1, 8)], rtol=0, atol=1e-10)


def test_held_out_likelihoods_are_those_of_the_models() -> None:
    """Also at the floor of the noise scale, where the variance that is left is smaller."""
    x = np.column_stack([known(2, dim=4), np.ones(500)]) * 1e-2
    x[:, 3] = x[:, 0] + x[:, 1]
    train, test = torch.tensor(x[:300]), torch.tensor(x[300:])
    spectrum = Moments.of(train).spectrum()
    found = held_out_log_probs(spectrum, test, min_scale=1e-3)
    for latent_dim in range(1, 5):
        model = lowerbound.ppca(5, latent_dim)
        model.likelihood.solve(spectrum, model)
        assert found[latent_dim - 1].item() == pytest.approx(model.log_prob(test).mean().item(), abs=1e-8)
    assert spectrum.residual(4) < 1e-6 < spectrum.residual(1), "the floor is reached on the way"


@pytest.mark.parametrize("latent_dim", [1, 3, 6])
def test_a_known_dimension_is_found_by_held_out_likelihood(latent_dim: int) -> None:
    assert number_of_components(known(latent_dim, num_data=2000), "held_out") == latent_dim


def test_every_row_is_held_out_once() -> None:
    """With as many folds as rows, the sum is over all rows given all others."""
    x = known(2, num_data=12, dim=4)
    scores = [sum(dense(np.delete(x, i, 0), x[[i]], latent_dim) for i in range(12)) for latent_dim in range(1, 4)]
    assert number_of_components(x, "held_out", folds=12) == int(np.argmax(scores)) + 1
    assert number_of_components(x, "held_out", folds=500) == number_of_components(x, "held_out", folds=12)


# What does not fit


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (known(2), {"by": "eye"}, "evidence, share or held_out"),
        (known(2), {"by": "share", "share": 1.5}, "share"),
        (known(2), {"by": "held_out", "folds": 1}, "folds"),
        (np.where(np.eye(500, 12), np.nan, known(2)), {}, "NaN"),
        (np.ones((10, 3)), {}, "not all of them equal"),
        (known(2)[:2], {}, "three rows"),
        (known(2)[:, :1], {}, "two numbers"),
    ],
)
def test_what_cannot_be_answered_is_refused(x: np.ndarray, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        number_of_components(x, **options)


def test_where_there_is_no_choice_it_is_one() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(20, 1)) @ np.ones((1, 3))
    for by in ("evidence", "share", "held_out"):
        assert number_of_components(line, by) == 1


# Studies


def asked(study: Study, model: LatentVariableModel, data: InMemory) -> dict[str, float]:
    fit: Any = SimpleNamespace(evaluation_model=model, device=torch.device("cpu"))
    study.check(model)
    return study.answer(fit, data).numbers


@pytest.mark.parametrize("shape", [None, (1, 3, 4)])
def test_the_study_chooses_from_training_and_validation_data(shape: tuple[int, ...] | None) -> None:
    data = InMemory(known(3), shape=shape)
    numbers = asked(NumberOfComponents(share=0.8, num_axes=3), lowerbound.pca(12, 2), data)
    train, val = (data.part(part).x.double().numpy() for part in ("train", "val"))
    assert numbers["share_components"] == PCA(0.8, svd_solver="full").fit(train).n_components_
    assert numbers["evidence_components"] == 3
    assert numbers["held_out_components"] == 1 + int(np.argmax([dense(train, val, latent_dim) for latent_dim in range(1, 12)]))
    assert numbers["noise_variance"] == pytest.approx(np.linalg.eigvalsh(np.cov(train.T, bias=True))[:-3].mean(), rel=1e-6)
    assert {unit(name) for name in numbers} == {""}


@pytest.mark.parametrize("shape", [None, (1, 3, 4)])
def test_the_study_of_axes_finds_what_was_turned(shape: tuple[int, ...] | None) -> None:
    """PCA's axes, two of them turned by ten degrees in their plane, and one stretched: the same span, the same reconstructions."""
    data = InMemory(known(3), shape=shape)
    x = data.part("train").x.double().numpy()
    axes = PCA(3).fit(x).components_.T
    angle = np.radians(10)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 5]])
    model = lowerbound.pca(12, 3)
    with torch.no_grad():
        model.likelihood.weight.copy_(torch.tensor(axes @ turn))
        model.likelihood.bias.copy_(torch.tensor(x.mean(0)))
    numbers = asked(RecoveredAxes(), model, data)
    assert numbers["span_degrees"] == pytest.approx(0, abs=1e-5)
    assert numbers["columns_degrees"] == pytest.approx(10, abs=1e-5)
    assert numbers["squared_error_of_pca_ratio"] == pytest.approx(1)
    left = np.square(x - x.mean(0) - (x - x.mean(0)) @ axes @ axes.T).sum(1).mean()
    assert numbers["squared_error"] == pytest.approx(left)
    with torch.no_grad():
        model.likelihood.weight.copy_(torch.tensor(axes * [3, 2, 1]) @ torch.linalg.qr(torch.randn(3, 3).double()).Q)
    assert asked(RecoveredAxes(), model, data)["singular_vectors_degrees"] == pytest.approx(0, abs=1e-5)


def test_axes_are_asked_of_linear_models_only() -> None:
    with pytest.raises(ValueError, match="linear_gaussian"):
        RecoveredAxes().check(lowerbound.vae(12, 3))


@pytest.mark.parametrize("shape", [None, (1, 3, 4), (3, 2, 2)])
def test_loadings_are_drawn_as_images_or_rows(shape: tuple[int, ...] | None) -> None:
    weight = torch.tensor(np.random.default_rng(0).normal(size=(12, 13)))
    (axes,) = component_plots.loadings(weight, shape).axes
    (image,) = axes.images
    if shape is None:
        np.testing.assert_allclose(np.asarray(image.get_array()), (weight / weight.abs().max(0).values).T)
        return
    height, width = 2 + shape[1], 2 + shape[2]
    assert image.get_array().shape == (2 * height, 10 * width)
    found = np.asarray(image.get_array())[height + 1 : 2 * height - 1, 2 * width + 1 : 3 * width - 1]  # the thirteenth
    expected = (weight[:, 12] / weight[:, 12].abs().max()).reshape(shape).mean(0)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("shape", [None, (1, 3, 4)])
def test_the_components_of_a_mixture_are_drawn_heaviest_first(shape: tuple[int, ...] | None) -> None:
    """Grey levels run over [0, 1], which the data do not leave."""
    means, weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.3])
    left, right, *_ = component_plots.mixture(means, weights, shape, torch.rand(5, 12)).axes
    np.testing.assert_allclose([bar.get_height() for bar in right.patches], [0.5, 0.3, 0.2], rtol=1e-6)
    (image,) = left.images
    pixels = np.asarray(image.get_array())
    found = pixels if shape is None else np.stack([pixels[1:4, 1 + 5 * k : 5 + 5 * k, 0].ravel() for k in range(3)])
    np.testing.assert_allclose(found, means[[1, 2, 0]], rtol=1e-6)


def test_one_component_has_no_weights_to_draw() -> None:
    (axes,) = component_plots.mixture(torch.rand(1, 12), torch.ones(1), (1, 3, 4), torch.rand(5, 12)).axes
    assert axes.get_title("left") == "Mean"


@pytest.mark.parametrize(
    "command", [["experiment=number_of_components"], ["experiment=linear_autoencoder_axes", "trainer.max_epochs=2", "objective=ordered"]]
)
def test_each_is_one_command(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    monkeypatch.setattr("sys.argv", ["lowerbound-train", *command, "latent_dim=3"])
    main()
    name = command[0].partition("=")[2]
    assert list(tmp_path.rglob("results.json"))
    assert list(tmp_path.rglob(f"{name}.png"))
