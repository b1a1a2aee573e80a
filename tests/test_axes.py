"""Angles against SciPy; a model and its canonical form, which differ in nothing that can be seen from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor

import lowerbound
import oracles
from lowerbound.axes import axis_angles, canonical, encoder_of, largest_angle, maps_of
from lowerbound.model import LatentVariableModel
from lowerbound.networks import Linear
from lowerbound.objectives import ELBO
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.schedules import Step

ALGEBRA = {"atol": 1e-10, "rtol": 1e-10}
DIM, LATENT = 7, 3
AUTOENCODERS = {
    "untied": lowerbound.linear_autoencoder,
    "tied": partial(lowerbound.linear_autoencoder, tied=True),
    "pca": lowerbound.pca,
}
GENERATIVE = {"ppca": lowerbound.ppca, "linear_vae": lowerbound.linear_vae, "factor_analysis": lowerbound.factor_analysis}


def random(make: Callable[[int, int], LatentVariableModel], seed: int = 0) -> LatentVariableModel:
    """A model with every parameter drawn."""
    torch.manual_seed(seed)
    model = make(DIM, LATENT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.requires_grad_(False)


def rows(count: int = 40, seed: int = 1) -> Tensor:
    """Data ``[N, D]`` with a mean, correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64) @ mix + 2


def weight_of(model: LatentVariableModel) -> np.ndarray:
    return maps_of(model).weight.numpy()


def assert_falling(values: np.ndarray) -> None:
    assert (np.diff(values) < 0).all(), values


def assert_diagonal(matrix: np.ndarray) -> None:
    np.testing.assert_allclose(matrix - np.diag(np.diag(matrix)), 0, rtol=0, atol=1e-10)


# Angles


@pytest.mark.parametrize("turn", [1.0, 1e-3, 1e-7, 0.0])
def test_the_largest_angle_is_scipys(turn: float) -> None:
    """At small angles too, where the arc cosine has lost all digits."""
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(2, DIM, LATENT))
    other = one @ rng.normal(size=(LATENT, LATENT)) + turn * noise
    found = largest_angle(torch.tensor(one), torch.tensor(other))
    assert found == pytest.approx(np.degrees(subspace_angles(one, other)[0]), abs=1e-10)


def test_angles_between_what_is_orthogonal_are_ninety_degrees() -> None:
    axes = torch.eye(4, dtype=torch.float64)
    assert largest_angle(axes[:, :2], axes[:, 2:]) == pytest.approx(90)
    np.testing.assert_allclose(axis_angles(axes[:, :2], axes[:, 2:]), 90)
    assert largest_angle(axes[:, :2], axes[:, [0, 2]]) == pytest.approx(90)  # one direction is shared: the largest counts


def test_the_angle_to_an_axis_knows_neither_sign_nor_length() -> None:
    axes = torch.eye(3, dtype=torch.float64)[:, :2]
    turned = torch.tensor([[-2.0, 1e-9], [2.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(axis_angles(turned, axes), [45.0, np.degrees(2e-10)], rtol=1e-10)


# The canonical form


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_in_canonical_form_reconstructs_as_before(name: str) -> None:
    model, x = random(AUTOENCODERS[name]), rows()
    before = model.reconstruct(x)
    other = canonical(model, x)
    np.testing.assert_allclose(other.reconstruct(x), before, **ALGEBRA)
    assert np.abs(weight_of(other) - weight_of(model)).max() > 0.1, "the model itself is left as it is"
    np.testing.assert_allclose(model.reconstruct(x), before, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["untied", "pca"])
def test_columns_are_the_principal_axes_of_the_data_within_the_plane(name: str) -> None:
    model, x = random(AUTOENCODERS[name]), rows()
    weight = weight_of(canonical(model, x))
    basis = np.linalg.svd(weight_of(model), full_matrices=False)[0]
    plane = PCA().fit(x.numpy() @ basis)
    np.testing.assert_allclose(np.abs(weight.T @ basis @ plane.components_.T), np.eye(LATENT), rtol=0, atol=1e-10)
    np.testing.assert_allclose(weight.T @ weight, np.eye(LATENT), rtol=0, atol=1e-10)
    assert (np.take_along_axis(weight, np.abs(weight).argmax(0)[None], 0) > 0).all(), "the entry of largest magnitude is positive"


def test_codes_of_tied_weights_become_uncorrelated_and_ordered() -> None:
    model, x = random(AUTOENCODERS["tied"]), rows()
    spread = np.cov(canonical(model, x).encode(x).numpy().T)
    assert_diagonal(spread)
    assert_falling(np.diag(spread))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_from_the_principal_plane_come_the_principal_axes(name: str) -> None:
    """W A with A random, or, of tied weights, orthogonal: at the optimum of the squared error all of them are one model."""
    x, model = rows(), random(AUTOENCODERS[name])
    axes = PCA(LATENT).fit(x.numpy()).components_.T
    mix = torch.randn(LATENT, LATENT, dtype=torch.float64)
    mix = torch.linalg.qr(mix).Q if name == "tied" else mix
    model.likelihood.weight.copy_(torch.tensor(axes.copy()) @ mix)
    np.testing.assert_allclose(axis_angles(canonical(model, x).likelihood.weight, torch.tensor(axes.copy())), 0, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GENERATIVE)
def test_a_generative_model_in_canonical_form_has_the_same_density(name: str, seed: int) -> None:
    model, x = random(GENERATIVE[name], seed), rows()
    other = canonical(model)
    for one in (model, other):
        assert one.likelihood.scale.min() > 0
    before, after = (
        oracles.dense_gaussian(x.numpy(), weight_of(m), m.likelihood.bias.numpy(), m.likelihood.scale.numpy()) for m in (model, other)
    )
    np.testing.assert_allclose(after, before, **ALGEBRA)
    np.testing.assert_allclose(other.reconstruct(x), model.reconstruct(x), **ALGEBRA)
    spread = weight_of(other).T @ weight_of(other)
    assert_diagonal(spread)
    np.testing.assert_allclose(np.diag(spread), np.linalg.eigvalsh(weight_of(model) @ weight_of(model).T)[::-1][:LATENT], rtol=1e-10)
    assert np.abs(weight_of(other) - weight_of(model)).max() > 0.1


def test_q_of_a_linear_vae_turns_with_its_latent_space() -> None:
    """Rotated as a dense Gaussian, of which the diagonal is kept; the ELBO rises by what its correlations cost."""
    model, x = random(GENERATIVE["linear_vae"]), rows()
    other = canonical(model)
    rotation = np.linalg.lstsq(weight_of(other), weight_of(model), rcond=None)[0]  # W = W' R', so z' = R' z
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(LATENT), rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.encode(x), model.encode(x).numpy() @ rotation.T, **ALGEBRA)
    before, after = (m.posterior(x).variance[0].numpy() for m in (model, other))
    np.testing.assert_allclose(after, np.diag(rotation @ np.diag(before) @ rotation.T), **ALGEBRA)
    elbo = ELBO(reconstruction="analytic")
    gain = (elbo(other, x, Step()).value - elbo(model, x, Step()).value).numpy()
    expected = (np.log(after).sum() - np.log(before).sum()) / 2  # Hadamard's inequality: not negative
    assert expected > 0.01
    np.testing.assert_allclose(gain, expected, rtol=0, atol=1e-8)


def test_twice_is_once() -> None:
    for make in (*AUTOENCODERS.values(), *GENERATIVE.values()):
        once = canonical(random(make), rows())
        np.testing.assert_allclose(weight_of(canonical(once, rows())), weight_of(once), rtol=0, atol=1e-8)


def test_a_collapsed_dimension_stays_last() -> None:
    model = random(lowerbound.ppca)
    model.likelihood.weight[:, 0] = 0
    np.testing.assert_allclose(weight_of(canonical(model))[:, -1], 0, rtol=0, atol=1e-12)


# What is not linear


def test_an_order_needs_data_where_there_is_no_prior() -> None:
    with pytest.raises(ValueError, match="give rows x"):
        canonical(random(lowerbound.pca))


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_networks_have_no_axes(name: str) -> None:
    with pytest.raises(ValueError, match="linear_gaussian"):
        maps_of(getattr(lowerbound, name)(DIM, LATENT, sizes=[8]))


def test_a_scale_of_its_own_for_every_x_does_not_rotate() -> None:
    model = lowerbound.linear_vae(DIM, LATENT)
    posterior = DiagonalGaussian(partial(Linear, inputs=DIM), LATENT)
    with pytest.raises(ValueError, match=r"posterior\.shared_scale=true"):
        canonical(LatentVariableModel(model.prior, model.likelihood, posterior), rows())


def test_who_has_an_encoder_of_its_own() -> None:
    assert encoder_of(lowerbound.linear_autoencoder(DIM, LATENT)) is not None
    assert encoder_of(lowerbound.linear_vae(DIM, LATENT)) is not None
    for model in (lowerbound.pca(DIM, LATENT), lowerbound.ppca(DIM, LATENT), lowerbound.linear_autoencoder(DIM, LATENT, tied=True)):
        assert encoder_of(model) is None


def test_missing_entries_have_no_canonical_axes() -> None:
    x = rows().clone()
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="missing entries"):
        canonical(lowerbound.pca(x.shape[1], 2), x)
