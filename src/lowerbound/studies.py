"""Studies: one question each, asked of a trained model and answered with numbers and a picture.

    BruteForce         what does log p(x) cost as a sum over a grid of z, and what do the bounds cost?
    GradientVariance   what is the pathwise gradient worth beside the score-function gradient?

Those of the decoder are in `decoding`, that of the encoder in `amortization`.

A study is one named key under `callbacks` of an experiment. Its numbers go into results.json as ``study/<name>``, its picture
into figures/. Numbers are nats unless the last word of their name says otherwise.
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

from lowerbound import plots, study_plots
from lowerbound.bounds import MAX_QUADRATURE_DIM, quadrature_log_evidence
from lowerbound.data.module import TensorDataModule
from lowerbound.fit import Fit
from lowerbound.folder import FIGURES
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, Objective, ScoreFunctionELBO
from lowerbound.randomness import own_generators
from lowerbound.schedules import Step
from lowerbound.tracking import send_picture

CHUNK = 128  # grid points at a time: a few megabytes, which stay in the processor's cache


class Answer(NamedTuple):
    """Numbers by name, and the picture."""

    numbers: dict[str, float]
    figure: Figure


class Study(Callback, ABC):
    """One question asked of a trained model. Implement `name` and `answer`; override `check` where not every model has one.

    `start` is a copy of the model as it was before training. `needs_all_entries` says that rows with missing entries have no answer.
    """

    needs_all_entries: bool = False
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
        if self.needs_all_entries and any(x.isnan().any() for x in trainer.datamodule.chunks("train")):  # pyright: ignore[reportAttributeAccessIssue] as just seen
            raise ValueError(f"{type(self).__name__} takes the moments of complete data, and the training rows have missing entries (NaN)")
        self.check(pl_module.model)
        self.start = deepcopy(pl_module.model)

    def conclude(self, trainer: Trainer, fit: Fit) -> dict[str, float]:
        """Answer on rank zero, save and send the picture; the numbers as ``study/<name>``."""
        data = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, TensorDataModule):
            return {}
        with own_generators(0):
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
        coarser = [quadrature_log_evidence(model, x, points, self.limit, CHUNK) for points in self.points[:-1]]
        started = perf_counter()
        exact = quadrature_log_evidence(model, x, self.points[-1], self.limit, CHUNK)
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
            numbers[f"{when}_variance_ratio"] = totals["score_function"] / totals["pathwise"]
            scales[when] = pathwise.sqrt(), score.sqrt()
        return Answer(numbers, study_plots.gradient_scales(scales))
