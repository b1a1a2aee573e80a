"""Starts: what a model is before its first step, against scikit-learn, dense Gaussians and the affine maps that networks must compute."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn

import lowerbound
import oracles
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, NetworkNoise, NoisePerDimension, SharedNoise
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.networks import ACTIVATIONS, MLP, ConvEncoder, Linear, MaskedMLP, MLPDecoder
from lowerbound.objectives import ELBO, Reconstruction
from lowerbound.posteriors import Delta, DiagonalGaussian, FullGaussian
from lowerbound.priors import Flat, MixtureOfGaussians, StandardNormal
from lowerbound.run import learn
from lowerbound.schedules import Step
from lowerbound.starts import AsItIs, FromPCA, FromRows, become_affine

ALGEBRA = {"atol": 1e-10, "rtol": 1e-10}
DIM, LATENT = 8, 3
LINEAR = ("relu", "gelu", "silu", "softplus")  # a(h) - a(-h) = h


def rows(count: int = 200, seed: int = 1) -> Tensor:
    """Data ``[N, D]`` with a mean, correlated, and noise of several sizes."""
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(count, DIM)) @ (rng.normal(size=(DIM, DIM)) * np.linspace(2, 0.3, DIM)[:, None]) + 2)


def started(model: LatentVariableModel, x: Tensor) -> LatentVariableModel:
    FromPCA()(model, x, len(x))
    return model.requires_grad_(False)


def vae(likelihood: str = "gaussian", sizes: tuple[int, ...] = (16, 9), activation: str = "relu", **noise) -> LatentVariableModel:
    """A VAE in float64 of these hidden layers."""
    torch.manual_seed(0)
    decoder = partial(MLPDecoder, inputs=LATENT, sizes=sizes, activation=activation)
    make = noise.get("noise", SharedNoise)
    p = Bernoulli(decoder, LATENT, DIM) if likelihood == "bernoulli" else Gaussian(decoder, LATENT, DIM, make(DIM))
    q = DiagonalGaussian(partial(MLP, inputs=DIM, sizes=sizes, activation=activation), LATENT)
    return LatentVariableModel(StandardNormal(LATENT), p, q).double()


def ppca(x: Tensor, noise: float | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """W, b and s of probabilistic PCA by NumPy; with s^2 stated, the best W for it."""
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[LATENT:].mean() if noise is None else noise**2
    return vectors[:, :LATENT] * np.sqrt(np.clip(values[:LATENT] - variance, 0, None)), x.mean(0).numpy(), variance**0.5


# Rows, and nothing


def test_from_rows_asks_the_parts_and_leaves_networks() -> None:
    x, model = rows(), lowerbound.linear_vae(DIM, LATENT)
    before = {name: value.clone() for name, value in model.posterior_rule.state_dict().items()}
    FromRows()(model, x, len(x))
    np.testing.assert_allclose(model.likelihood.bias.detach(), x.mean(0), **ALGEBRA)
    assert all(torch.equal(value, before[name]) for name, value in model.posterior_rule.state_dict().items())


def test_as_it_is_moves_no_parameter() -> None:
    x, model = rows(), lowerbound.ppca(DIM, LATENT)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    AsItIs()(model, x, len(x))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    np.testing.assert_allclose(model.likelihood.offset, x.mean(0), **ALGEBRA)


# Linear models


def test_ppca_starts_at_its_maximum() -> None:
    x = rows()
    model = started(lowerbound.ppca(DIM, LATENT), x)
    np.testing.assert_allclose(model.log_prob(x), oracles.dense_gaussian(x.numpy(), *(np.asarray(v) for v in ppca(x))), rtol=0, atol=1e-8)


@pytest.mark.parametrize("make", [lowerbound.pca, lowerbound.linear_autoencoder, partial(lowerbound.linear_autoencoder, tied=True)])
def test_autoencoders_start_as_pca(make) -> None:
    x = rows()
    pca = PCA(LATENT).fit(x.numpy())
    model = started(make(DIM, LATENT), x)
    np.testing.assert_allclose(model.reconstruct(x), pca.inverse_transform(pca.transform(x.numpy())), **ALGEBRA)
    np.testing.assert_allclose(model.encode(x).abs(), np.abs(pca.transform(x.numpy())), **ALGEBRA)


def test_a_linear_vae_starts_where_its_bound_is_the_evidence() -> None:
    x = rows()
    model = started(lowerbound.linear_vae(DIM, LATENT), x)
    weight, bias, scale = ppca(x)
    mean, covariance = oracles.dense_linear_posterior(x.numpy(), model.likelihood.weight.numpy(), bias, scale)
    np.testing.assert_allclose(model.encode(x), mean, rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.posterior(x).variance[0], np.diag(covariance), rtol=0, atol=1e-8)
    elbo = ELBO(reconstruction="analytic")(model, x, Step()).value
    np.testing.assert_allclose(elbo, oracles.dense_gaussian(x.numpy(), weight, bias, np.asarray(scale)), rtol=0, atol=1e-8)


def test_factor_analysis_starts_with_the_variances_of_the_data() -> None:
    x = rows()
    model = started(lowerbound.factor_analysis(DIM, LATENT), x)
    np.testing.assert_allclose(model.likelihood.covariance.diagonal(), x.var(0, correction=0), rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.likelihood.weight @ model.likelihood.weight.T, ppca(x)[0] @ ppca(x)[0].T, rtol=0, atol=1e-8)


def test_a_stated_noise_stretches_the_axes() -> None:
    """W = U (Lambda - s^2 I)^(1/2) for the s that is stated, the maximum of the likelihood in W."""
    x = rows()
    model = lowerbound.linear_vae(DIM, LATENT)
    model.likelihood.noise = FixedNoise(DIM, 0.8)
    started(model, x)
    weight = ppca(x, 0.8)[0]
    np.testing.assert_allclose(model.likelihood.weight @ model.likelihood.weight.T, weight @ weight.T, **ALGEBRA)


def test_a_missing_entry_counts_as_the_mean_of_its_column() -> None:
    x = rows()
    holes = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2, torch.nan, x)
    holes[:, 2] = torch.nan  # of a column without an entry: zero
    filled = torch.where(holes.isnan(), holes.nanmean(0).nan_to_num(0.0), holes)
    one, other = started(lowerbound.ppca(DIM, LATENT), holes), started(lowerbound.ppca(DIM, LATENT), filled)
    np.testing.assert_allclose(one.likelihood.covariance, other.likelihood.covariance, **ALGEBRA)
    assert one.log_prob(holes).isfinite().all()


# Networks


def affine(network: nn.Module, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """What a network made affine says of points of unit size, and what it should say."""
    generator = torch.Generator().manual_seed(3)
    shift, last = torch.randn(len(inner), generator=generator).double(), torch.randn(len(outer) + 2, generator=generator).double()
    with torch.no_grad():
        become_affine(network, inner, shift, outer, last)
        x = torch.randn(50, inner.shape[1], generator=generator).double()
        expected = torch.cat([(x @ inner.T + shift) @ outer.T, torch.zeros(50, 2)], 1) + last
        return network(x), expected


@pytest.mark.parametrize("sizes", [(8,), (8, 7), (7, 12, 9)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_becomes_an_affine_map(activation: str, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = MLP(6, inputs=5, sizes=sizes, activation=activation).double()
    found, expected = affine(network, torch.randn(3, 5).double(), torch.randn(4, 3).double())
    if activation in LINEAR:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # odd parts of an activation are asked for in float32
    else:
        assert (found - expected).abs().mean() < 0.1 * expected.std()
    assert not torch.allclose(found[0], found[1]), "it depends on x"


def test_a_matrix_becomes_another_and_a_decoder_is_an_mlp_too() -> None:
    torch.manual_seed(0)
    for network in (Linear(6, inputs=5), MLPDecoder(6, inputs=5, sizes=[9, 7])):
        found, expected = affine(network.double(), torch.randn(3, 5).double(), torch.randn(4, 3).double())
        np.testing.assert_allclose(found, expected, **ALGEBRA)


@pytest.mark.parametrize("activation", LINEAR)
def test_a_vae_starts_as_its_linear_model(activation: str) -> None:
    x = rows()
    model, linear = started(vae(activation=activation), x), started(lowerbound.linear_vae(DIM, LATENT), x)
    for attribute in ("mean", "variance"):
        np.testing.assert_allclose(getattr(model.posterior(x), attribute), getattr(linear.posterior(x), attribute), rtol=0, atol=1e-5)
    z = torch.randn(20, LATENT, dtype=torch.float64)
    np.testing.assert_allclose(model.likelihood(z).log_prob(x[:20]), linear.likelihood(z).log_prob(x[:20]), rtol=1e-5)


def test_the_units_that_carry_nothing_learn_to() -> None:
    """The last layers hear them no more than zero at first, and differently after a step."""
    x, model = rows(), vae()
    FromPCA()(model, x, len(x))
    last = model.likelihood.network.network.layers[-1]
    assert (last.weight[:, 2 * LATENT :] == 0).all()
    (-ELBO()(model, x, Step()).value.mean()).backward()
    gradient = last.weight.grad
    assert gradient is not None
    assert (gradient[:, 2 * LATENT :] != 0).any()


def test_an_autoencoder_starts_as_pca_and_a_full_gaussian_as_a_diagonal_one() -> None:
    x = rows()
    pca = PCA(LATENT).fit(x.numpy())
    network = partial(MLP, inputs=DIM, sizes=[12])
    likelihood = Gaussian(partial(MLPDecoder, inputs=LATENT, sizes=[12]), LATENT, DIM, FixedNoise(DIM))
    model = started(LatentVariableModel(Flat(LATENT), likelihood, Delta(network, LATENT)).double(), x)
    np.testing.assert_allclose(model.reconstruct(x), pca.inverse_transform(pca.transform(x.numpy())), rtol=0, atol=1e-8)
    full = started(
        LatentVariableModel(StandardNormal(LATENT), LinearGaussian(LATENT, DIM, SharedNoise(DIM)), FullGaussian(network, LATENT)), x
    )
    linear = started(lowerbound.linear_vae(DIM, LATENT), x)
    np.testing.assert_allclose(full.posterior(x).mean, linear.posterior(x).mean, rtol=0, atol=1e-8)
    np.testing.assert_allclose(full.posterior(x).covariance_matrix[0], torch.diag(linear.posterior(x).variance[0]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("noise", [NoisePerDimension, NetworkNoise, FixedNoise])
def test_noises_of_a_vae(noise: type) -> None:
    """Of each dimension what W z leaves; where it depends on z, or is stated, as it was."""
    x, model = rows(), vae(noise=noise)
    scale = started(model, x).likelihood(torch.zeros(LATENT, dtype=torch.float64)).stddev
    if noise is NoisePerDimension:
        weight = ppca(x)[0]
        np.testing.assert_allclose(scale.square(), x.var(0, correction=0).numpy() - np.square(weight).sum(1), rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(scale, {NetworkNoise: 0.3, FixedNoise: 1.0}[noise], rtol=0, atol=1e-6)


def test_an_encoder_with_a_mask_takes_a_hole_for_the_mean() -> None:
    x, model = rows(), vae()
    model.posterior_rule = DiagonalGaussian(partial(MaskedMLP, inputs=DIM, sizes=[16]), LATENT).double()
    started(model, x)
    holes = torch.where(torch.eye(DIM, dtype=torch.bool), torch.nan, x[:DIM])
    filled = torch.where(holes.isnan(), x.mean(0), holes)
    np.testing.assert_allclose(model.encode(holes), model.encode(filled), rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.encode(x), started(lowerbound.linear_vae(DIM, LATENT), x).encode(x), rtol=0, atol=1e-8)


def test_bits_start_at_their_means_with_slopes_that_help() -> None:
    x = (torch.tensor(load_digits().data) >= 8).double()
    mean = x.mean(0)
    model = started(lowerbound.vae(64, LATENT, "bernoulli", sizes=[16]).double(), x)
    logits = model.likelihood(torch.zeros(LATENT, dtype=torch.float64)).base_dist.logits
    np.testing.assert_allclose(logits.sigmoid(), mean.clamp(0.01, 0.99), rtol=0, atol=1e-8)
    slopes = (model.likelihood(torch.eye(LATENT, dtype=torch.float64)).base_dist.logits - logits).T.numpy()
    seen = ((mean > 0.01) & (mean < 0.99)).numpy()
    expected = ppca(x)[0][seen] / (mean * (1 - mean)).numpy()[seen, None]
    np.testing.assert_allclose(np.abs(slopes[seen]), np.abs(expected), rtol=0, atol=1e-6)
    torch.manual_seed(0)
    elbo = ELBO(num_samples=20)(model, x, Step()).value.mean().item()
    chance = mean.clamp(1e-9, 1 - 1e-9)
    independent = (mean * chance.log() + (1 - mean) * (1 - chance).log()).sum().item()
    assert elbo > independent + 1, "better than bits that know nothing of each other"


def test_a_learnt_prior_stays_as_it_is() -> None:
    x, model = rows(), vae()
    model.prior = MixtureOfGaussians(LATENT).double()
    before = {name: value.clone() for name, value in model.prior.state_dict().items()}
    started(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.prior.state_dict().items())


@pytest.mark.parametrize("make", [lowerbound.vae, lowerbound.linear_vae])
def test_learning_begins_there(make) -> None:
    """In float32 too; a step of length zero changes nothing."""
    x, model = rows(), make(DIM, LATENT)
    still = partial(torch.optim.SGD, lr=0.0)
    fit = partial(lowerbound.GradientFit, optimizer=still, start=FromPCA())
    quiet = {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, "enable_progress_bar": False}
    found = learn(model, fit, x.float(), **quiet)
    blind = learn(make(DIM, LATENT), partial(lowerbound.GradientFit, optimizer=still), x.float(), **quiet)
    exact = learn(lowerbound.ppca(DIM, LATENT), lowerbound.ClosedFormFit, x.float(), **quiet)["test/log_evidence"]
    assert found["test/elbo"] == pytest.approx(exact, abs=1)  # one z for each of 40 rows
    assert blind["test/elbo"] < exact - 10


def test_em_and_gradient_start_from_pca() -> None:
    x = rows()
    found = learn(
        lowerbound.factor_analysis(DIM, LATENT),
        partial(lowerbound.EMFit, start=FromPCA()),
        x,
        accelerator="cpu",
        max_epochs=1,
        enable_progress_bar=False,
    )
    assert np.isfinite(found["test/log_evidence"])
    tied = partial(lowerbound.GradientFit, objective=Reconstruction(), start=FromPCA())
    learn(lowerbound.linear_autoencoder(DIM, LATENT, tied=True), tied, x, accelerator="cpu", max_epochs=1, enable_progress_bar=False)


# What cannot


def test_what_cannot_start_from_pca_says_what_would() -> None:
    x = rows()
    convolution = vae()
    convolution.posterior_rule = DiagonalGaussian(partial(ConvEncoder, shape=(1, 8, 8), channels=[2]), LATENT)
    for model, words in (
        (lowerbound.gaussian_mixture(DIM, 2), "start=rows"),
        (convolution, "ConvEncoder"),
        (vae(sizes=(5,)), r"5 units is too narrow for latent_dim=3.*6 or more"),
        (lowerbound.vae(DIM, DIM), "latent_dim=8 must be below"),
    ):
        with pytest.raises(ValueError, match=words):
            FromPCA()(model, x, len(x))
    with pytest.raises(ValueError, match="training rows span"):
        FromPCA()(lowerbound.ppca(DIM, LATENT), x[:3], 3)


def test_columns_that_w_z_leaves_nothing_of_start_at_the_floor() -> None:
    """Their variance less that of W z is below 0 by rounding."""
    digits = torch.tensor(load_digits().data) / 16
    model = lowerbound.factor_analysis(64, 10)
    FromPCA()(model, digits, len(digits))
    assert model.likelihood.scale.isfinite().all()
    assert model.likelihood.scale[0].item() == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["shared", "per_dimension", "bernoulli"])
def test_an_autoencoder_with_any_likelihood_starts_as_pca(kind: str) -> None:
    x = rows()
    x = (x > x.mean(0)).double() if kind == "bernoulli" else x
    decoder, noises = partial(MLPDecoder, inputs=LATENT, sizes=[12]), {"shared": SharedNoise, "per_dimension": NoisePerDimension}
    p = Bernoulli(decoder, LATENT, DIM) if kind == "bernoulli" else Gaussian(decoder, LATENT, DIM, noises[kind](DIM))
    model = LatentVariableModel(Flat(LATENT), p, Delta(partial(MLP, inputs=DIM, sizes=[12]), LATENT)).double()
    FromPCA()(model, x, len(x))
    axes = np.linalg.eigh(np.cov(x.numpy().T, bias=True))[1][:, ::-1][:, :LATENT]
    centred = (x - x.mean(0)).numpy()
    np.testing.assert_allclose(np.abs(model.encode(x).detach()), np.abs(centred @ axes), rtol=0, atol=1e-6)
    if kind != "bernoulli":
        left = centred - centred @ axes @ axes.T
        np.testing.assert_allclose(model.reconstruct(x).detach(), x.numpy() - left, rtol=0, atol=1e-6)
        variance = np.square(left).mean(0)
        expected = np.sqrt(variance if kind == "per_dimension" else np.full(DIM, variance.mean()))
        np.testing.assert_allclose(model.likelihood.noise(torch.empty(0)).detach().expand(DIM), expected, rtol=0, atol=1e-6)
