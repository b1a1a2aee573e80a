"""Missing entries are marginalised out, where a model is asked and where it learns, against means filled in for them.

    asked    E[x_missing | x_observed] from p(x_observed, x_missing)     against the mean of each dimension
    learns   EM with sums under p(z | x_observed), so that log p(x_observed) ascends     against EM on filled-in rows

Entries are hidden completely at random (Rubin 1976). A row of means looks more like the mean than any row does: a model that
learns from such rows finds variances and covariances that are too small (Little & Rubin 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import final

import torch
from torch import Tensor

from lowerbound import linear_plots
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import real
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.studies import Answer, Study, copied, rows_of


def learnt(start: LatentVariableModel, x: Tensor, steps: int) -> LatentVariableModel:
    """A copy of the model after EM steps on x ``[N, D]``, NaN marginalised out, from the start that its parts make of x."""
    model = deepcopy(start)
    model.initialize(x, len(x))
    with torch.no_grad():
        for _ in range(steps):
            model.maximize(model.statistics(x))
    return model


def mean_filled(x: Tensor) -> Tensor:
    """x ``[N, D]`` with the mean of what is left of a dimension in the place of each NaN; 0 where nothing is left."""
    return torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.0), x)


def root_mean_square(error: Tensor) -> float:
    """Over all entries."""
    return error.square().mean().sqrt().item()


@final
class Imputation(Study):
    """Hidden entries of test rows filled in by the model and by training means, and what learning from holes costs either way.

    Each of `fractions` of the entries is hidden, the smaller ones within the larger. The root mean square errors are over hidden
    entries, in the units of x; ``within_two_std`` is the share of hidden entries that lie within two standard deviations of what the
    model fills in (95.4% of draws from a Gaussian do). Both models that learn from holes take `steps` EM steps from starts of
    their own; log p(x) is that of complete test rows.
    """

    name = "imputation"

    def __init__(self, fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7), steps: int = 50, num_images: int = 8) -> None:
        self.fractions = [real(fraction, "callbacks.study.fractions, each", above=0, below=1) for fraction in fractions]
        if self.fractions != sorted(set(self.fractions)) or not self.fractions:
            raise ValueError(f"callbacks.study.fractions={list(fractions)} must increase, and there must be one")
        self.steps, self.num_images = steps, num_images

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the model does not marginalise missing entries, or learns by gradient only."""
        if not (model.is_exact and model.accepts_missing):
            raise ValueError(
                "Imputation marginalises missing entries and learns by EM: choose model=ppca, factor_analysis, gaussian or mixture"
            )

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Hide, fill in, and learn anew."""
        model = copied(fit)
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        uniform = {"train": torch.rand(train.shape).to(train), "test": torch.rand(test.shape).to(test)}
        numbers = {"complete_log_evidence": model.log_prob(test).mean().item()}
        for fraction in self.fractions:
            hidden = (uniform["test"] < fraction) & ~test.isnan()
            found = self._asked(model, test, hidden, train.nanmean(0))
            found |= self._learning(train.masked_fill(uniform["train"] < fraction, torch.nan), test)
            numbers |= {f"hidden_{100 * fraction:.0f}_percent_{name}": value for name, value in found.items()}
        shown = self.fractions[len(self.fractions) // 2]
        holes = test.masked_fill(uniform["test"] < shown, torch.nan)[: self.num_images]
        rows = {
            f"{100 * shown:.0f}% hidden": holes,
            "training mean": torch.where(holes.isnan(), train.nanmean(0), holes),
            "E[missing | observed]": model.impute(holes).mean,
            "truth": test[: self.num_images],
        }
        return Answer(numbers, linear_plots.imputation(self.fractions, numbers, rows, data.shape))

    def _asked(self, model: LatentVariableModel, x: Tensor, hidden: Tensor, mean: Tensor) -> dict[str, float]:
        """How far off the model and the means ``[D]`` are in the hidden entries of x ``[N, D]``."""
        filled = model.impute(x.masked_fill(hidden, torch.nan))
        assert filled.std is not None
        error = (filled.mean - x)[hidden]
        return {
            "model_rmse": root_mean_square(error),
            "mean_rmse": root_mean_square((mean - x)[hidden]),
            "within_two_std_share": (error.abs() < 2 * filled.std[hidden]).double().mean().item(),
        }

    def _learning(self, holes: Tensor, test: Tensor) -> dict[str, float]:
        """log p(test) after learning from rows with holes ``[N, D]``: marginalised out, and filled in with means of what is left."""
        start = self.start.to(holes.device)
        models = {"marginalised": learnt(start, holes, self.steps), "mean_filled": learnt(start, mean_filled(holes), self.steps)}
        return {f"{name}_log_evidence": model.log_prob(test).mean().item() for name, model in models.items()}
