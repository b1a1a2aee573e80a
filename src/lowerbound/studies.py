"""Studies: one question each, asked of a trained model and answered with numbers and a picture.

    BruteForce         what does log p(x) cost as a sum over a grid of z, and what do the bounds cost?
    GradientVariance   what is the pathwise gradient worth beside the score-function gradient?
    DeadAreas          do draws from N(0, I) fall where the decoder has seen codes?
    NoiseScale         does the noise s of a Gaussian likelihood say how far reconstructions are off?
    DecoderUnits       of what is the ELBO a bound: of a density or of a probability?

A study is one named key under `callbacks` of an experiment. Numbers are nats unless the last word of their name is one of
`PLAIN`; they go into results.json as ``study/<name>``, the picture into figures/.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from math import log
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from lowerbound import plots, study_plots
from lowerbound.bounds import MAX_QUADRATURE_DIM, quadrature_log_evidence
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import Factorized, kl_per_dimension
from lowerbound.fit import Fit
from lowerbound.folder import FIGURES
from lowerbound.likelihoods import Gaussian
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, Objective, ScoreFunctionELBO
from lowerbound.schedules import Step
from lowerbound.tracking import send_picture

PLAIN = ("dimensions", "error", "evaluations", "points", "ratio", "scale", "share", "variance")


class Answer(NamedTuple):
    """Numbers by name, and the picture."""

    numbers: dict[str, float]
    figure: Figure


class Study(Callback, ABC):
    """One question asked of a trained model. Implement `name` and `answer`; override `check` where not every model has one.

    `start` is a copy of the model as it was before training.
    """

    name: str
    start: LatentVariableModel

    @abstractmethod
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Ask it of `fit.evaluation_model`, or of a copy of it (`copied`): a study leaves the fit as it is."""

    def check(self, model: LatentVariableModel) -> None:
        """Refuse a model that the question cannot be asked of, before it is trained.

        Raises:
            ValueError: the message says what would fit.
        """
        return

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model and its data, and keep the start."""
        assert isinstance(pl_module, Fit)
        if not isinstance(getattr(trainer, "datamodule", None), TensorDataModule):
            raise ValueError(f"{type(self).__name__} looks at train and test rows by name: it needs a data module of lowerbound.data")
        self.check(pl_module.model)
        self.start = deepcopy(pl_module.model)

    def conclude(self, trainer: Trainer, fit: Fit) -> dict[str, float]:
        """Answer on rank zero, save and send the picture; the numbers as ``study/<name>``."""
        data = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, TensorDataModule):
            return {}
        with torch.random.fork_rng([fit.device] if fit.device.type == "cuda" else []):
            torch.manual_seed(0)
            numbers, figure = self.answer(fit, data)
        path = Path(trainer.default_root_dir) / FIGURES / f"{self.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = plots.pixels(figure)
        Image.fromarray(pixels).save(path)
        for logger in trainer.loggers:
            send_picture(logger, f"figures/{self.name}", pixels, trainer.global_step)
        return {f"study/{key}": float(value) for key, value in numbers.items()}


def copied(fit: Fit) -> LatentVariableModel:
    """A copy of the fit's model in evaluation mode, to be used up."""
    return deepcopy(fit.evaluation_model).eval().requires_grad_(True)


def rows_of(data: TensorDataModule, part: str, model: LatentVariableModel, limit: int | None = None) -> Tensor:
    """The first `limit` rows ``[N, D]`` of a part, where the model is."""
    return data.part(part, limit).x.to(next(model.parameters()))


def needs_quadrature(model: LatentVariableModel) -> None:
    """Refuse a model whose evidence cannot be integrated over a grid.

    Raises:
        ValueError: it has none, or latent_dim is above 2.
    """
    if not model.is_bounded:
        raise ValueError("an autoencoder has no p(x) to integrate: choose model=vae")
    if model.latent_dim > MAX_QUADRATURE_DIM:
        raise ValueError(f"log p(x) is summed over a grid of z: latent_dim={model.latent_dim} must be at most {MAX_QUADRATURE_DIM}")


@final
class BruteForce(Study):
    """log p(x) as a sum over a grid of z, against the points along each axis, with the bounds of the same weights.

    `points` must increase; the last is taken as exact. A grid is fine enough when log p(x) is off by less than `tolerance`
    nats in the mean over data, for it and all finer ones.
    """

    name = "brute_force"

    def __init__(
        self,
        points: Sequence[int] = (5, 9, 17, 33, 65, 129, 257),
        num_samples: Sequence[int] = (1, 10, 100, 1000),
        num_data: int = 100,
        tolerance: float = 0.01,
        limit: float = 6.0,
    ) -> None:
        if list(points) != sorted(set(points)) or len(points) < 2:
            raise ValueError(f"points={list(points)} per axis must increase, and there must be two of them: the last one is taken as exact")
        self.points, self.num_samples, self.num_data = list(points), list(num_samples), num_data
        self.tolerance, self.limit = tolerance, limit

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if log p(x) is no integral over at most two dimensions."""
        needs_quadrature(model)

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Sum over grids and draw samples, both on the same test data."""
        model = copied(fit)
        x = rows_of(data, "test", model, self.num_data)
        coarser = [quadrature_log_evidence(model, x, points, self.limit) for points in self.points[:-1]]
        started = perf_counter()
        exact = quadrature_log_evidence(model, x, self.points[-1], self.limit)
        per_second = self.points[-1] ** model.latent_dim * len(x) / (perf_counter() - started)
        needed = self._needed([(values - exact).abs().mean().item() for values in coarser])
        bounds = self._bounds(model, x)
        numbers = {"log_evidence": exact.mean().item()} | {("elbo" if k == 1 else f"iwae_{k}"): value for k, value in bounds.items()}
        costs = {f"dimension_{dim}_evaluations": float(needed) ** dim for dim in (1, 2, 3, 8)}
        evidence = [values.mean().item() for values in (*coarser, exact)]
        figure = study_plots.brute_force(self.points, evidence, bounds, model.latent_dim, needed, per_second)
        return Answer(numbers | {"needed_points": needed} | costs, figure)

    @torch.no_grad()
    def _bounds(self, model: LatentVariableModel, x: Tensor) -> dict[int, float]:
        """The importance-weighted bound for each number of samples, all from the same draws."""
        log_weight = model.log_weight(x, max(self.num_samples)).double()  # [S, N]
        means = {}
        for k in self.num_samples:
            groups = log_weight[: len(log_weight) // k * k].unflatten(0, (-1, k))  # [S / k, k, N]
            means[k] = (groups.logsumexp(1) - log(k)).mean().item()
        return means

    def _needed(self, errors: list[float]) -> int:
        """The fewest points along each axis that are enough."""
        too_coarse = [i for i, error in enumerate(errors) if not error < self.tolerance]
        return self.points[too_coarse[-1] + 1 if too_coarse else 0]


def gradients(model: LatentVariableModel, objective: Objective, x: Tensor, repeats: int) -> Tensor:
    """Gradients ``[repeats, P]`` of the mean objective over x ``[N, D]`` in the P parameters of the posterior."""
    parameters = list(model.posterior_rule.parameters())

    def once() -> Tensor:
        found = torch.autograd.grad(objective(model, x, Step()).value.mean(), parameters)
        return torch.cat([gradient.flatten() for gradient in found])

    return torch.stack([once() for _ in range(repeats)])


@final
class GradientVariance(Study):
    """The variance of the pathwise and of the score-function gradient of one ELBO on one batch, before and after training.

    Both are the gradient in the posterior's parameters of the mean of log p(x, z) - log q(z | x) over one z for each datum; they
    differ in the path of the derivative only. The variance is total: the trace of the covariance over `repeats` draws of z.
    """

    name = "gradient_variance"

    def __init__(self, repeats: int = 300, num_data: int = 128) -> None:
        if repeats < 2:
            raise ValueError(f"repeats={repeats}: a variance takes at least 2")
        self.repeats, self.num_data = repeats, num_data

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if there is no ELBO with a posterior to be differentiated."""
        if not model.is_bounded or not any(True for _ in model.posterior_rule.parameters()):
            raise ValueError("GradientVariance compares gradients of an ELBO in the parameters of q(z | x): choose model=vae")

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Draw both gradients at the start and at the end."""
        numbers: dict[str, float] = {}
        scales: dict[str, tuple[Tensor, Tensor]] = {}
        for when, model in (("start", self.start.eval()), ("trained", copied(fit))):
            x = rows_of(data, "train", model.to(fit.device), self.num_data)
            pathwise, score = (
                gradients(model, objective, x, self.repeats).var(0) for objective in (ELBO(kl="sampled"), ScoreFunctionELBO())
            )
            totals = {"pathwise": pathwise.sum().item(), "score_function": score.sum().item()}
            numbers |= {f"{when}_{name}_variance": value for name, value in totals.items()}
            numbers[f"{when}_ratio"] = totals["score_function"] / totals["pathwise"]
            scales[when] = pathwise.sqrt(), score.sqrt()
        return Answer(numbers, study_plots.gradient_scales(scales))


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """The distance of each point ``[N, L]`` to the nearest of the others, ``[N]``."""
    return torch.cdist(points, others).min(1).values


@final
class DeadAreas(Study):
    """Where draws from N(0, I) fall among the codes of the training data, and what the decoder makes of them.

    A draw is dead if it is farther from every training code than 99% of the codes of test data are. A code is unreached if it
    is farther from every draw than 99% of further draws are. A code is one draw of q(z | x), which is what the decoder learnt from.
    """

    name = "dead_areas"

    def __init__(self, num_draws: int = 2000, num_images: int = 64) -> None:
        self.num_draws, self.num_images = num_draws, num_images

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the codes are not two-dimensional, as the picture is."""
        if model.latent_dim != 2:
            raise ValueError(f"DeadAreas draws the plane of codes: latent_dim={model.latent_dim} must be 2")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Draw from N(0, I), and from the Gaussian with the mean and covariance of the codes."""
        model = copied(fit)
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        codes, held_out = (model.draw(x).z[0] for x in (train, test))  # [N, L]
        draws, further = torch.randn(2, self.num_draws, model.latent_dim).to(codes)
        fitted = MultivariateNormal(codes.mean(0), codes.T.cov()).sample(torch.Size([self.num_draws]))
        radius, reach = nearest(held_out, codes).quantile(0.99), nearest(further, draws).quantile(0.99)
        dead = nearest(draws, codes) > radius
        numbers = {
            "dead_share": dead.double().mean().item(),
            "fitted_gaussian_dead_share": (nearest(fitted, codes) > radius).double().mean().item(),
            "unreached_share": (nearest(held_out, draws) > reach).double().mean().item(),
        }
        errors = {part: (x - model.reconstruct(x)).square().sum(-1).mean().item() for part, x in (("train", train), ("test", test))}
        numbers |= {f"{part}_squared_error": error for part, error in errors.items()}
        decoded = model.likelihood(draws[: self.num_images]).mean
        title = "VAE" if model.is_bounded else "autoencoder"
        figure = study_plots.dead_areas(codes, draws, dead, decoded, data.shape, train, title)
        return Answer(numbers, figure)


@final
class NoiseScale(Study):
    """The scale s of a Gaussian likelihood beside the residuals x - f(z) of test data, dimension by dimension.

    Also the number of latent dimensions that are active, that is with a KL above 0.01 nats in the mean over test data.
    """

    name = "noise_scale"

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the likelihood is not Gaussian, or there is no KL."""
        if not isinstance(model.likelihood, Gaussian) or not model.is_bounded:
            raise ValueError("NoiseScale looks at the s of N(f(z), diag s^2) in a model with a KL: choose likelihood=gaussian model=vae")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Compare at one z ~ q(z | x) for each test datum."""
        model = copied(fit)
        x = rows_of(data, "test", model)
        kl = kl_per_dimension(model.posterior(x), model.prior()).mean(0)  # [L]
        p = model.likelihood(model.draw(x).z[0])
        assert isinstance(p, Factorized)
        assert isinstance(p.base_dist, Normal)
        residual = (x - p.mean).square().mean(0).sqrt()  # [D]
        scale = p.stddev.square().mean(0).sqrt()  # [D]
        numbers = {
            "active_dimensions": float((kl > plots.COLLAPSED).sum()),
            "squared_error": residual.square().sum().item(),
            "mean_scale": scale.mean().item(),
        }
        return Answer(numbers, study_plots.noise_scale(residual, scale))


@final
class DecoderUnits(Study):
    """Test data, their reconstructions and draws from p(x | z), and the ELBO under the name of what it bounds.

    A density is also told of the original integers, which are no longer spread over (0, 1): it changes with the unit of x, and a
    probability does not.
    """

    name = "decoder_units"

    def __init__(self, num_images: int = 12) -> None:
        self.num_images = num_images

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if there is no bound."""
        if not model.is_bounded:
            raise ValueError("an autoencoder bounds no log p(x): choose model=vae")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """The ELBO of the test data as prepared and, of a density, in the original unit."""
        model = copied(fit)
        x = rows_of(data, "test", model)
        bound = fit.objective(model, x, fit.clock)
        assert bound.kl is not None
        elbo = (bound.reconstruction - bound.kl).double().mean().item()
        if data.prepare.is_discrete:
            numbers = {"log_probability": elbo}
        else:
            numbers = {"log_density": elbo, "log_density_in_original_unit": elbo + data.prepare.log_jacobian(x.cpu()).mean().item()}
        if model.check_data(x) is not None:  # grey values under a Bernoulli likelihood
            numbers = {"negative_cross_entropy": elbo}
        shown = x[: self.num_images]
        p = model.likelihood(model.draw(shown).z[0])
        kind = type(model.likelihood).__name__
        return Answer(numbers, study_plots.decoder(kind, numbers, shown, p.mean, p.sample(), data.shape))
