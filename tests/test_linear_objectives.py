"""Objectives of linear autoencoders against loops, their optima against formulas, and what they learn against PCA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log, pi
from typing import final

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor
from torch.utils.data import DataLoader

import lowerbound
from lowerbound.axes import axis_angles, largest_angle, maps_of
from lowerbound.likelihoods import FixedNoise
from lowerbound.linear_objectives import NestedDropout, OrderedReconstruction, PenalizedReconstruction, square_errors
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Bound, Objective, Reconstruction
from lowerbound.run import learn
from lowerbound.schedules import Linear, Step

ALGEBRA = {"atol": 1e-10, "rtol": 1e-10}
SIX = 6  # standard errors
DIM, LATENT, SCALE = 6, 3, 0.7
OBJECTIVES: dict[str, Objective] = {
    "uniform": PenalizedReconstruction(0.02),
    "non_uniform": PenalizedReconstruction([0.01, 0.03, 0.04]),
    "nested": NestedDropout(0.6),
    "expected": NestedDropout(0.6, sampled=False),
    "ordered": OrderedReconstruction(),
}
PENALTIES = {"uniform": np.array([0.02, 0.02, 0.02]), "non_uniform": np.array([0.01, 0.03, 0.04])}


def model_of(tied: bool = False, scale: float = SCALE, latent_dim: int = LATENT) -> LatentVariableModel:
    """A linear autoencoder with every parameter drawn."""
    torch.manual_seed(0)
    model = lowerbound.linear_autoencoder(DIM, latent_dim, tied=tied)
    model.likelihood.noise = FixedNoise(DIM, scale)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def rows(count: int = 30, seed: int = 1) -> Tensor:
    """Data ``[N, D]`` with variances that are apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIM, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1.5, 1.1, 0.8, 0.3, 0.2])
    return x @ torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q


def of(objective: Objective, model: LatentVariableModel, x: Tensor) -> Bound:
    torch.manual_seed(3)
    return objective(model, x, Step())


def truncated(model: LatentVariableModel, x: Tensor) -> np.ndarray:
    """|x - x_i|^2 ``[N, L]``, every x_i written out."""
    weight, bias, gain, shift = (value.detach().numpy() for value in maps_of(model))
    errors = [[np.sum((row - bias - weight[:, :i] @ (gain @ row + shift)[:i]) ** 2) for i in range(1, len(gain) + 1)] for row in x.numpy()]
    return np.array(errors)


def log_densities(model: LatentVariableModel, x: Tensor) -> np.ndarray:
    """log N(x; x_i, s^2 I) ``[N, L]``."""
    return -truncated(model, x) / (2 * SCALE**2) - DIM / 2 * log(2 * pi * SCALE**2)


# Values


@pytest.mark.parametrize("tied", [False, True])
def test_squared_errors_of_all_beginnings_of_the_code(tied: bool) -> None:
    model, x = model_of(tied), rows()
    np.testing.assert_allclose(square_errors(maps_of(model), x).detach(), truncated(model, x), **ALGEBRA)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_reconstruction_is_that_of_the_whole_code(name: str, tied: bool) -> None:
    model, x = model_of(tied), rows()
    bound, plain = of(OBJECTIVES[name], model, x), of(Reconstruction(), model, x)
    np.testing.assert_allclose(bound.reconstruction.detach(), plain.reconstruction.detach(), **ALGEBRA)
    assert bound.kl is None
    assert bound.value.shape == (len(x),)


@pytest.mark.parametrize(
    ("penalty", "each"),
    [
        (0.02, [0.02, 0.02, 0.02]),
        ([0.01, 0.03, 0.04], [0.01, 0.03, 0.04]),
        ([0.01, 0.07], [0.01, 0.05, 0.07]),  # 0.05^2 lies in the middle of 0.01^2 and 0.07^2
    ],
)
def test_the_penalty_is_that_of_columns_of_w_and_rows_of_v(penalty: float | Sequence[float], each: list[float]) -> None:
    model, x = model_of(), rows()
    weight, _, gain, _ = (value.detach().numpy() for value in maps_of(model))
    charge = sum(each[j] * (np.sum(weight[:, j] ** 2) + np.sum(gain[j] ** 2)) for j in range(LATENT)) / (2 * SCALE**2)
    found = of(PenalizedReconstruction(penalty), model, x).value.detach()
    np.testing.assert_allclose(found, log_densities(model, x)[:, -1] - charge, **ALGEBRA)


def test_the_ordered_loss_is_the_sum_over_beginnings() -> None:
    model, x = model_of(), rows()
    np.testing.assert_allclose(of(OrderedReconstruction(), model, x).value.detach(), log_densities(model, x).sum(1), **ALGEBRA)


def test_nested_dropout_draws_a_beginning_for_each_datum() -> None:
    """Of one datum many times: only its L values, each as often as the geometric distribution says, and the mean that is computed."""
    model, keep, count = model_of(), 0.6, 40_000
    x = rows(1)
    each = log_densities(model, x)[0]
    drawn = of(NestedDropout(keep), model, x.expand(count, -1)).value.detach().numpy()
    nearest = np.abs(drawn[:, None] - each).argmin(1)
    np.testing.assert_allclose(drawn, each[nearest], **ALGEBRA)
    chances = np.array([1 - keep, keep * (1 - keep), keep**2])  # the last has what the others leave
    error = np.sqrt(chances * (1 - chances) / count)
    assert (np.abs(np.bincount(nearest, minlength=LATENT) / count - chances) < SIX * error).all()
    expected = of(NestedDropout(keep, sampled=False), model, x).value.item()
    assert expected == pytest.approx(chances @ each, abs=1e-10)


# Optima


def optimum(x: Tensor, penalty: np.ndarray, tied: bool) -> tuple[LatentVariableModel, PCA]:
    """W = U (1 - lambda / v)^(1/2), V = W': the best for penalties lambda ``[L]`` (Bao et al. 2020), with PCA's axes U and variances v."""
    pca = PCA().fit(x.numpy())
    variances = pca.explained_variance_[:LATENT] * (len(x) - 1) / len(x)
    model = model_of(tied)
    weight = torch.tensor(pca.components_[:LATENT].T * np.sqrt(np.clip(1 - penalty / variances, 0, None)))
    mean = torch.tensor(pca.mean_)
    with torch.no_grad():
        model.likelihood.weight.copy_(weight)
        model.likelihood.bias.copy_(mean)
        if not tied:
            model.posterior_rule.network.linear.weight.copy_(weight.T)
            model.posterior_rule.network.linear.bias.copy_(-weight.T @ mean)
    return model, pca


def gradient(objective: Objective, model: LatentVariableModel, x: Tensor) -> Tensor:
    found = torch.autograd.grad(objective(model, x, Step()).value.mean(), list(model.parameters()))
    return torch.cat([one.flatten() for one in found])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["uniform", "non_uniform", "expected", "ordered"])
def test_nothing_moves_at_the_optimum_and_everything_elsewhere(name: str, tied: bool) -> None:
    x, objective = rows(), OBJECTIVES[name]
    model, _ = optimum(x, PENALTIES.get(name, np.zeros(LATENT)), tied)
    np.testing.assert_allclose(gradient(objective, model, x), 0, rtol=0, atol=1e-10)
    best = of(objective, model, x).value.mean().item()
    with torch.no_grad():
        model.likelihood.weight += 0.01 * torch.randn(DIM, LATENT)
    assert gradient(objective, model, x).abs().max() > 1e-3
    assert of(objective, model, x).value.mean().item() < best


def test_what_is_penalised_shrinks() -> None:
    """Along an axis of variance v the share 1 - lambda / v is reconstructed, and nothing where v <= lambda."""
    x, penalty = rows(400), 1.5
    model, pca = optimum(x, np.full(LATENT, penalty), tied=False)
    variances = pca.explained_variance_ * (len(x) - 1) / len(x)
    assert variances[1] > penalty > variances[2], "two axes are kept, one is not"
    np.testing.assert_allclose(gradient(PenalizedReconstruction(penalty), model, x), 0, rtol=0, atol=1e-10)
    codes = (model.reconstruct(x).detach().numpy() - pca.mean_) @ pca.components_.T
    own = (x.numpy() - pca.mean_) @ pca.components_.T
    np.testing.assert_allclose(codes, own * np.clip(1 - penalty / variances, 0, None) * (np.arange(DIM) < LATENT), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_which_objectives_see_a_rotation(name: str) -> None:
    """One penalty for all leaves W R as good as W; the others do not."""
    x, objective = rows(), OBJECTIVES[name]
    model, _ = optimum(x, PENALTIES.get(name, np.zeros(LATENT)), tied=True)
    before = of(objective, model, x).value.mean().item()
    with torch.no_grad():
        model.likelihood.weight.copy_(model.likelihood.weight @ torch.linalg.qr(torch.randn(LATENT, LATENT).double()).Q)
    after = of(objective, model, x).value.mean().item()
    assert before - after == pytest.approx(0, abs=1e-10) if name == "uniform" else before - after > 1e-6


def test_two_columns_on_each_others_axes_cost_what_is_said() -> None:
    """(lambda_j^2 - lambda_i^2) (1 / v_j - 1 / v_i) of the loss, which counts 1 / (2 s^2) in nats; each W is the best for its order."""
    x, penalty = rows(), np.array([0.01, 0.03, 0.04])
    objective = OBJECTIVES["non_uniform"]
    best, pca = optimum(x, penalty, tied=True)
    other, _ = optimum(x, penalty[[1, 0, 2]], tied=True)
    with torch.no_grad():
        other.likelihood.weight.copy_(other.likelihood.weight[:, [1, 0, 2]])
    v = pca.explained_variance_ * (len(x) - 1) / len(x)
    cost = of(objective, best, x).value.mean().item() - of(objective, other, x).value.mean().item()
    assert cost == pytest.approx((0.03**2 - 0.01**2) * (1 / v[1] - 1 / v[0]) / (2 * SCALE**2), abs=1e-10)


# Learning


def digits() -> tuple[Tensor, np.ndarray, np.ndarray]:
    """128 rows with mean zero and the covariance of scikit-learn's digits / 16, with its eigenvalues and eigenvectors.

    Of all rows as a batch, each of these losses is a function of the mean and the covariance.
    """
    covariance = np.cov(load_digits().data.T / 16, bias=True)
    variances, axes = (value[..., ::-1].copy() for value in np.linalg.eigh(covariance))
    half = axes.T * np.sqrt(64 * variances.clip(0))[:, None]
    x = torch.tensor(np.concatenate([half, -half]))
    np.testing.assert_allclose(x.T @ x / len(x), covariance, rtol=0, atol=1e-12)
    return x, variances, axes


ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99))


@final
class OneBatch(LightningDataModule):
    """The same rows, so many times."""

    def __init__(self, x: Tensor, steps: int) -> None:
        super().__init__()
        self.x, self.steps = x, steps

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([self.x] * self.steps, batch_size=None)  # pyright: ignore[reportArgumentType]

    def test_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([self.x], batch_size=None)  # pyright: ignore[reportArgumentType]


def by_gradient_fit(model: LatentVariableModel, objective: Objective, x: Tensor, steps: int) -> None:
    fit = partial(lowerbound.GradientFit, objective=objective, optimizer=ADAM, scheduler=Linear(start=1.0, end=0.0, fraction=1.0))
    learn(model, fit, OneBatch(x, steps), max_epochs=1, limit_val_batches=0, enable_progress_bar=False, accelerator="cpu")


def by_hand(model: LatentVariableModel, objective: Objective, x: Tensor, steps: int) -> None:
    optimizer = ADAM(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        (-objective(model, x, Step()).value.mean()).backward()
        optimizer.step()


def learned(objective: Objective, steps: int, tied: bool = False, latent_dim: int = 10, ascend=by_hand) -> tuple[Tensor, Tensor, float]:
    """W of a linear autoencoder of the digits, their first L axes, and its squared error over that of PCA."""
    x, variances, axes = digits()
    torch.manual_seed(0)
    model = lowerbound.linear_autoencoder(64, latent_dim, tied=tied)
    ascend(model, objective, x, steps)
    with torch.no_grad():
        error = (x - model.reconstruct(x)).square().sum(1).mean().item()
    return maps_of(model).weight.detach(), torch.tensor(axes[:, :latent_dim]), error / variances[latent_dim:].sum()


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_autoencoder_finds_the_subspace_of_pca_and_not_its_axes(tied: bool) -> None:
    weight, axes, error = learned(Reconstruction(), 400, tied, ascend=by_gradient_fit)
    assert 1 - 1e-10 < error < 1 + 1e-3
    assert largest_angle(weight, axes) < 1
    assert axis_angles(weight, axes).max() > 20


@pytest.mark.parametrize(
    ("objective", "steps", "latent_dim"),
    [(OrderedReconstruction(), 1000, 10), (NestedDropout(sampled=False), 500, 4)],
    ids=["ordered", "expected"],
)
def test_ordered_losses_find_the_axes(objective: Objective, steps: int, latent_dim: int) -> None:
    weight, axes, error = learned(objective, steps, latent_dim=latent_dim)
    assert 1 - 1e-10 < error < 1 + 1e-3
    assert axis_angles(weight, axes).max() < 2


def test_a_uniform_penalty_finds_the_axes_as_left_singular_vectors() -> None:
    weight, axes, error = learned(PenalizedReconstruction(0.05), 500)
    assert axis_angles(torch.linalg.svd(weight, full_matrices=False).U, axes).max() < 2
    assert axis_angles(weight, axes).max() > 20
    _, variances, _ = digits()
    assert error == pytest.approx(1 + np.sum(0.05**2 / variances[:10]) / variances[10:].sum(), rel=1e-6)  # the shrinkage


def test_penalties_that_increase_find_the_axes() -> None:
    """Of data whose variances are far apart; where they are near, what separates two axes is small, and learning slow."""
    x = rows(200)
    x = x - x.mean(0)
    torch.manual_seed(0)
    model = lowerbound.linear_autoencoder(DIM, LATENT)
    by_hand(model, PenalizedReconstruction([0.2, 0.8]), x, 500)
    axes = torch.tensor(PCA(LATENT).fit(x.numpy()).components_.T.copy())
    assert axis_angles(maps_of(model).weight, axes).max() < 2


# What does not fit


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("make", ["vae", "autoencoder", "pca", "ppca", "linear_vae"])
def test_other_models_are_refused(make: str, name: str) -> None:
    with pytest.raises(ValueError, match="model=linear_autoencoder"):
        OBJECTIVES[name](getattr(lowerbound, make)(DIM, LATENT), rows(), Step())


@pytest.mark.parametrize("penalty", [0, -1.0, [], [0.1, 0.1], [0.2, 0.1], [0.0, 0.1], "much"])
def test_penalties_out_of_range_are_refused(penalty: float | Sequence[float]) -> None:
    with pytest.raises(ValueError, match=r"objective\.penalty"):
        PenalizedReconstruction(penalty)


def test_a_list_of_penalties_has_one_for_each_dimension() -> None:
    with pytest.raises(ValueError, match=r"4 numbers, and latent_dim=3"):
        of(PenalizedReconstruction([0.1, 0.2, 0.3, 0.4]), model_of(), rows())


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.5])
def test_nested_dropout_keeps_a_share(keep: float) -> None:
    with pytest.raises(ValueError, match=r"objective\.keep"):
        NestedDropout(keep)
