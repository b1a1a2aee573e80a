"""The principal subspace: four ways to it, and what of its axes a model can know.

    eigenvectors         of the covariance X'X / N                               Hotelling 1933; Bishop 2006, section 12.1
    singular vectors     of the centred data X = U S V'                          Golub & Van Loan 2013, section 8.6
    EM                   Z = X W (W'W)^-1, W = X'Z (Z'Z)^-1                      Roweis 1998
    linear autoencoder   gradient descent on |x - W (V x + c) - b|^2             Baldi & Hornik 1989

All four minimise one squared error, which fixes the span of W and nothing more: W A and A^-1 V do as well as W and V.
Forming X'X squares the condition number of X, so that half of the digits of small variances are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from time import perf_counter
from typing import NamedTuple, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lowerbound import linear_plots
from lowerbound.axes import axis_angles, canonical, encoder_of, largest_angle, maps_of
from lowerbound.data.module import TensorDataModule
from lowerbound.fit import Fit
from lowerbound.likelihoods import FixedNoise
from lowerbound.linear_gaussian import LinearGaussian, affine_of, linear
from lowerbound.model import LatentVariableModel
from lowerbound.models import pca
from lowerbound.statistics import Moments, Spectrum, Triangle
from lowerbound.studies import Answer, Study, copied, rows_of


def needs_linear_autoencoder(model: LatentVariableModel) -> None:
    """Refuse a model that is no linear autoencoder with maps of its own.

    Raises:
        ValueError: as said.
    """
    p = model.likelihood
    if model.prior.is_proper or not isinstance(p, LinearGaussian) or not isinstance(p.noise, FixedNoise) or encoder_of(model) is None:
        raise ValueError("this study compares the W and V of a linear autoencoder: choose model=linear_autoencoder")


class Way(NamedTuple):
    """One way to the subspace: its W ``[D, L]``, squared error per datum, and seconds."""

    weight: Tensor
    squared_error: float
    seconds: float


def squared_error(model: LatentVariableModel, x: Tensor) -> float:
    """|x - reconstruction|^2, the mean over x ``[N, D]``."""
    return (x - model.reconstruct(x)).square().sum(-1).mean().item()


def solved(x: Tensor, latent_dim: int, route: type[Moments] | type[Triangle]) -> LatentVariableModel:
    """PCA of x ``[N, D]`` by the spectrum that a route gives."""
    model = pca(x.shape[1], latent_dim).to(x)
    linear(model).solve(route.of(x).spectrum(), model)
    return model


def by_em(x: Tensor, latent_dim: int, tolerance: float = 1e-10, most: int = 10_000) -> LatentVariableModel:
    """PCA of x ``[N, D]`` by EM on its moments, until a step lowers the squared error by no more than this share of it."""
    model, moments = pca(x.shape[1], latent_dim).to(x), Moments.of(x)
    model.initialize(x, len(x))
    p, before = linear(model), torch.inf
    for _ in range(most):
        residual = torch.eye(x.shape[1]).to(x) - p.weight @ affine_of(model).gain
        error = ((residual @ moments.scatter) * residual).sum().item()
        if before - error <= tolerance * error:
            break
        before = error
        model.maximize(p.expected(moments, model))
    return model


def graded(condition: float, num_data: int = 200, dim: int = 10) -> tuple[Tensor, Tensor]:
    """Centred rows ``[N, D]`` whose singular values fall evenly on a logarithmic scale to 1 / condition; and their variances ``[D]``."""
    columns = torch.cat([torch.ones(num_data, 1), torch.randn(num_data, dim)], 1).double()
    left, right = torch.linalg.qr(columns).Q[:, 1:], torch.linalg.qr(torch.randn(dim, dim).double()).Q
    singular = torch.logspace(0, -torch.tensor(condition).log10().item(), dim, dtype=torch.float64)
    return (left * singular) @ right.T, singular.square() / num_data


def smallest_errors(conditions: Sequence[float]) -> dict[str, list[float]]:
    """The relative error of the smallest variance of such rows by each route, in float64, at each condition number."""

    def error(spectrum: Spectrum, variances: Tensor) -> float:
        return (spectrum.variances[-1] / variances[-1] - 1).abs().item()

    data = [graded(condition) for condition in conditions]
    routes: dict[str, type[Moments] | type[Triangle]] = {"eigen": Moments, "svd": Triangle}
    return {name: [error(route.of(x).spectrum(), variances) for x, variances in data] for name, route in routes.items()}


@final
class FourWays(Study):
    """One subspace by eigenvectors, singular vectors, EM and the linear autoencoder that was trained; all of the training data.

    Angles are the largest principal angles to the plane of the eigenvectors, squared errors are summed over x. The seconds of the
    autoencoder are those of its fit, with validations. Then the angle between the planes with and without dividing each
    dimension by its standard deviation, both in the units of x; and the relative error of the smallest variance of matrices of
    growing condition number, by both routes.
    """

    name = "pca_four_ways"

    def __init__(self, condition_exponents: Sequence[int] = (0, 2, 4, 6, 8, 10)) -> None:
        self.exponents = list(condition_exponents)
        self._started = self._seconds = 0.0

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the fourth way is missing."""
        needs_linear_autoencoder(model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self._seconds = perf_counter() - self._started

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Go the other three ways, and compare."""
        model = copied(fit)
        x, latent_dim = rows_of(data, "train", model), model.latent_dim
        ways = {
            "eigenvectors": self._timed(lambda: solved(x, latent_dim, Moments), x),
            "singular_vectors": self._timed(lambda: solved(x, latent_dim, Triangle), x),
            "em": self._timed(lambda: by_em(x, latent_dim), x),
            "autoencoder": Way(maps_of(model).weight, squared_error(model, x), self._seconds),
        }
        plane = ways["eigenvectors"].weight
        angles = {name: largest_angle(way.weight, plane) for name, way in ways.items() if name != "eigenvectors"}
        numbers = {f"{name}_angle_degrees": angle for name, angle in angles.items()}
        numbers |= {f"{name}_squared_error": way.squared_error for name, way in ways.items()}
        numbers |= {f"{name}_seconds": way.seconds for name, way in ways.items()}
        scale = x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        standardized = linear(solved(x / scale, latent_dim, Moments)).weight * scale.unsqueeze(1)
        numbers["standardized_angle_degrees"] = largest_angle(standardized, plane)
        errors = smallest_errors([10.0**exponent for exponent in self.exponents])
        for route, values in errors.items():
            numbers |= {f"condition_1e{exponent}_{route}_error": value for exponent, value in zip(self.exponents, values, strict=True)}
        figure = linear_plots.four_ways({name: way._asdict() for name, way in ways.items()}, angles, self.exponents, errors)
        return Answer(numbers, figure)

    def _timed(self, solve: Callable[[], LatentVariableModel], x: Tensor) -> Way:
        started = perf_counter()
        model = solve()
        seconds = perf_counter() - started
        return Way(linear(model).weight, squared_error(model, x), seconds)


@torch.no_grad()
def stretched(model: LatentVariableModel, a: Tensor, mean: Tensor | float = 0.0) -> LatentVariableModel:
    """A copy of a linear autoencoder whose codes are A^-1 (z - mean), with W A in its decoder: the same reconstructions."""
    model = deepcopy(model)
    encoder, p = encoder_of(model), model.likelihood
    assert encoder is not None
    assert isinstance(p, LinearGaussian)
    p.bias.add_(p.weight @ (torch.zeros_like(encoder.bias) + mean))
    p.weight.copy_(p.weight @ a)
    encoder.weight.copy_(torch.linalg.solve(a, encoder.weight))
    encoder.bias.copy_(torch.linalg.solve(a, encoder.bias - mean))
    return model


def covariance(codes: Tensor) -> Tensor:
    """Of codes ``[N, L]``, ``[L, L]``."""
    return Moments.of(codes).scatter / len(codes)


@torch.no_grad()
def whitened(model: LatentVariableModel, x: Tensor) -> LatentVariableModel:
    """The equivalent linear autoencoder whose codes of x ``[N, D]`` have mean 0 and covariance I."""
    codes = model.encode(x)
    return stretched(model, torch.linalg.cholesky(covariance(codes)), codes.mean(0))


class Version(NamedTuple):
    """One of many equivalent autoencoders: W, the covariance of its codes, the losses of test data, the largest angle."""

    weight: Tensor  # [D, L]
    covariance: Tensor  # [L, L]
    losses: Tensor  # [N]
    degrees: float


@final
class Rotation(Study):
    """What of a linear autoencoder can be changed without its loss: as trained, W A, white codes, white codes rotated, ordered.

    Losses are those of test data, their difference the largest of any datum; codes are those of training data. The angle of a version
    is the largest of those of its columns of W to the principal axes of the training data, up to sign. ``unique`` is that between the
    ordered versions of two of them.
    """

    name = "rotation"

    def __init__(self, num_axes: int = 8) -> None:
        self.num_axes = num_axes

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if there is no W and V."""
        needs_linear_autoencoder(model)

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Change it, and measure."""
        model = copied(fit)
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        axes = Moments.of(train).spectrum().axes[:, : model.latent_dim]
        a, turn = torch.randn(2, model.latent_dim, model.latent_dim).to(train)
        white = whitened(model, train)
        models = {
            "trained": model,
            "stretched": stretched(model, a),
            "white": white,
            "rotated": stretched(white, torch.linalg.qr(turn).Q),
            "ordered": canonical(model, train),
        }
        versions = {name: self._measured(one, fit, train, test, axes) for name, one in models.items()}
        losses, identity = versions["trained"].losses, torch.eye(model.latent_dim).to(train)
        again = linear(canonical(models["stretched"], train)).weight
        spread = versions["ordered"].covariance
        difference = max((version.losses - losses).abs().max().item() for version in versions.values())
        numbers = {"loss": losses.mean().item(), "largest_loss_difference": difference}
        numbers |= {f"{name}_angle_degrees": version.degrees for name, version in versions.items()}
        numbers |= {f"{name}_covariance_error": (versions[name].covariance - identity).abs().max().item() for name in ("white", "rotated")}
        numbers["ordered_covariance_error"] = (spread - spread.diagonal().diag()).abs().max().item()
        numbers["unique_angle_degrees"] = axis_angles(again, versions["ordered"].weight).max().item()
        shown = {name: version._asdict() for name, version in versions.items()}
        return Answer(numbers, linear_plots.rotation(shown, data.shape, self.num_axes))

    def _measured(self, model: LatentVariableModel, fit: Fit, train: Tensor, test: Tensor, axes: Tensor) -> Version:
        losses, weight = -fit.objective(model, test, fit.clock).value, maps_of(model).weight
        return Version(weight, covariance(model.encode(train)), losses, axis_angles(weight, axes).max().item())
