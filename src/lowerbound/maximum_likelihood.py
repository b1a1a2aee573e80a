"""Studies of the way to a maximum of the likelihood.

    MaximumLikelihood   where there is a closed form, does gradient ascent arrive at the same place?
    TwoWays             where there is none, because p(x) is a sum over z, do EM and gradient ascent arrive at the same place?

The run itself is one of the ways: its parameters are kept after every step. Values are the objective that both maximise, log p(x)
plus log p(parameters) / N where the parameters have a prior, in nats per training datum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lowerbound import em_plots
from lowerbound.data.module import TensorDataModule
from lowerbound.em import EMFit
from lowerbound.errors import real, whole
from lowerbound.fit import Fit
from lowerbound.mixture import Components
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import LogEvidence
from lowerbound.parts import ClosedForm
from lowerbound.schedules import Step
from lowerbound.solve import ClosedFormFit
from lowerbound.studies import Answer, Study, copied, rows_of

State = dict[str, Tensor]
BETAS = (0.9, 0.95)  # of Adam: no noise to average over, and a gradient that shrinks by orders of magnitude


class StepwiseStudy(Study, ABC):
    """A study of the steps of a run: `states` are its parameters at the start and after each step. Implement `check_fit` too."""

    states: list[State]

    @abstractmethod
    def check_fit(self, fit: Fit) -> None:
        """Refuse another way of learning than the one in question.

        Raises:
            ValueError: the message says what would fit.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin without steps; those of a run that is resumed are loaded afterwards."""
        if stage == "fit":
            self.states = []

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, for the checkpoint."""
        return {"states": self.states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.states = list(state_dict["states"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model, its data and the way of learning."""
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, Fit)
        self.check_fit(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the start, which the fit has taken by now."""
        if not self.states:
            self._keep(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the step has made."""
        self._keep(pl_module)

    def _keep(self, fit: LightningModule) -> None:
        assert isinstance(fit, Fit)
        self.states.append({name: value.detach().clone() for name, value in fit.model.state_dict().items()})

    def models(self, fit: Fit) -> Iterator[LatentVariableModel]:
        """The run's model at each of its steps, one after the other in the same object."""
        model = copied(fit)
        for state in self.states:
            model.load_state_dict(state)
            yield model


class StudyOfEM(StepwiseStudy, ABC):
    """A study of the steps by which EM learns a mixture."""

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the model is no mixture."""
        if not isinstance(model.likelihood, Components):
            raise ValueError(f"{type(self).__name__} looks at the steps of a mixture's EM: choose model=mixture")

    def check_fit(self, fit: Fit) -> None:
        """Raise ValueError if the run is not by EM."""
        if not isinstance(fit, EMFit):
            raise ValueError(f"{type(self).__name__} looks at the steps of EM: choose fit=em")


def objective(model: LatentVariableModel, x: Tensor) -> Tensor:
    """What is maximised, for each row ``[N, D]``, ``[N]``."""
    return LogEvidence()(model, x, Step()).value


@torch.no_grad()
def mean_objective(model: LatentVariableModel, x: Tensor) -> float:
    """Its mean."""
    return objective(model, x).mean().item()


def ascent(model: LatentVariableModel, x: Tensor, steps: int, lr: float) -> Iterator[Tensor]:
    """The objective of each row ``[N]`` at the start and after every step of Adam on all rows, which changes the model in place.

    The learning rate falls from `lr` to 0 along half a cosine.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr, BETAS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        values = objective(model, x)
        yield values.detach()
        optimizer.zero_grad()
        (-values.mean()).backward()
        optimizer.step()
        scheduler.step()
    yield objective(model, x).detach()


def steps_to(gaps: Tensor, tolerance: float) -> int:
    """The first step from which on the gap ``[T + 1]`` is less than the tolerance; T + 1 if there is none."""
    too_far = (~(gaps < tolerance)).nonzero()
    return int(too_far[-1]) + 1 if len(too_far) else 0


@final
class MaximumLikelihood(StepwiseStudy):
    """The closed form, which is the run, and `steps` steps of gradient ascent from where the run began.

    Gradient ascent has arrived when it stays less than `tolerance` nats below the closed form.
    """

    name = "maximum_likelihood"

    def __init__(self, steps: int = 500, lr: float = 0.05, tolerance: float = 1e-3, stages: Sequence[int] = (0, 10, 50)) -> None:
        self.steps, self.lr = whole(steps, "steps"), real(lr, "lr", above=0)
        self.tolerance, self.stages = real(tolerance, "tolerance", above=0), [stage for stage in stages if stage < steps]

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if there is no closed form, or no log p(x) to ascend."""
        if not isinstance(model.likelihood, ClosedForm) or not model.is_exact:
            raise ValueError("MaximumLikelihood compares a closed form with ascent of log p(x): choose model=gaussian, bernoulli or ppca")

    def check_fit(self, fit: Fit) -> None:
        """Raise ValueError if the run is not by the closed form."""
        if not isinstance(fit, ClosedFormFit):
            raise ValueError("MaximumLikelihood takes the run for the closed form: choose fit=closed_form")

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Ascend on the rows that the closed form was made from."""
        start, *_, solved = map(deepcopy, self.models(fit))
        x = rows_of(data, "train", solved)
        with torch.no_grad():
            exact = objective(solved, x)
        values = torch.stack(list(ascent(start, x, self.steps, self.lr)))  # [T + 1, N]
        gaps = exact.mean() - values.mean(1)
        numbers = {
            "closed_form": exact.mean().item(),
            "gradient_ascent": values[-1].mean().item(),
            "gap_at_start": gaps[0].item(),
            "gap_at_end": gaps[-1].item(),
            "needed_steps": steps_to(gaps, self.tolerance),
            "largest_difference": (exact - values[-1]).abs().max().item(),
        }
        stages = {step: values[step] for step in (*self.stages, self.steps)}
        return Answer(numbers, em_plots.arrival(gaps, exact, stages, self.tolerance))


def component_means(model: LatentVariableModel) -> Tensor:
    """E[x | z_k = 1] of every component, ``[K, D]``."""
    z = torch.eye(model.latent_dim).to(next(model.parameters()))
    return model.likelihood(z).mean.detach()


@final
class TwoWays(StudyOfEM):
    """EM, which is the run, and `steps` steps of gradient ascent from where the run began.

    The log of a sum over components couples all parameters, so neither ends after one step. The maximum is the better end of the two;
    a way has arrived when it stays less than `tolerance` nats below it.
    """

    name = "two_ways"

    def __init__(self, steps: int = 1000, lr: float = 0.05, tolerance: float = 1e-3) -> None:
        self.steps, self.lr, self.tolerance = whole(steps, "steps"), real(lr, "lr", above=0), real(tolerance, "tolerance", above=0)

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """The curves of both, and the paths of the components' means."""
        model = deepcopy(next(self.models(fit)))
        x = rows_of(data, "train", model)
        ways = {
            "EM": [(mean_objective(own, x), component_means(own)) for own in self.models(fit)],
            "gradient ascent": [(values.mean().item(), component_means(model)) for values in ascent(model, x, self.steps, self.lr)],
        }
        curves = {way: torch.tensor([value for value, _ in steps], dtype=torch.float64) for way, steps in ways.items()}
        best = max(curve[-1].item() for curve in curves.values())
        numbers: dict[str, float] = {"at_start": curves["EM"][0].item()}
        for way, curve in curves.items():
            key = way.lower().replace(" ", "_")
            numbers |= {key: curve[-1].item(), f"{key}_smallest_increase": curve.diff().min().item()}
            numbers[f"{key}_needed_steps"] = steps_to(best - curve, self.tolerance)
        numbers["difference"] = (curves["EM"][-1] - curves["gradient ascent"][-1]).item()
        gaps = {way: best - curve for way, curve in curves.items()}
        paths = {way: torch.stack([means for _, means in steps]) for way, steps in ways.items()}
        return Answer(numbers, em_plots.two_ways(gaps, paths, x))
