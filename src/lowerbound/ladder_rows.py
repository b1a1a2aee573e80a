"""The lines of the ladder's tables: what a model knows of log p(x), how far it is from the exact answer, and its rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowerbound.answers import Truth
from lowerbound.axes import largest_angle
from lowerbound.bounds import importance_weighted_bound
from lowerbound.identities import exact
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO
from lowerbound.randomness import own_generators
from lowerbound.rungs import Climbed
from lowerbound.schedules import Step
from lowerbound.wording import markdown

CHUNK = 100  # rows that are measured at once
ALIKE = 0.005  # nats; what differs by less shares a rank
EXACT, SQUARED_ERROR = "exact", "squared error"
HEADINGS = ("rank", "rung", "by", "log p(x)", "test", "train", "gap", "allowed", "squared error", "angle", "seconds", "note")


@dataclass(frozen=True)
class Row:
    """What one model says of log p(x), means in nats per datum. `quantity` is exact, ELBO, IWAE-S, or that there is only a squared error.

    `gap` is the exact answer of training data minus `train`; of a squared error it is the excess over the least one, in per cent.
    """

    rung: str
    way: str
    quantity: str
    test: float | None
    train: float | None
    gap: float | None
    tolerance: float | None
    squared_error: float
    angle_degrees: float | None
    seconds: float
    floored: str | None
    rank: int | None = None

    @property
    def is_bound(self) -> bool:
        """Whether log p(x) is at least what is told of it."""
        return self.quantity not in (EXACT, SQUARED_ERROR)

    @property
    def unit(self) -> str:
        """That of the gap."""
        return "%" if self.quantity == SQUARED_ERROR else "nats"


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function of rows ``[N, D]``, some at a time."""
    return torch.cat([function(rows) for rows in x.split(CHUNK)])


@torch.no_grad()
def log_probs(model: LatentVariableModel, x: Tensor, num_samples: int) -> dict[str, Tensor]:
    """What the model knows of log p(x) for x ``[N, D]``, by quantity, the tightest first: each ``[N]``, float64, in host memory.

    Of a linear VAE the exact value too: that of the same prior and likelihood under the exact posterior.
    """
    x = x.to(next(model.parameters()))
    if not model.is_bounded:
        return {}
    if model.is_exact:
        return {EXACT: in_chunks(model.log_prob, x).double().cpu()}
    is_linear = isinstance(model.likelihood, LinearGaussian)
    elbo = ELBO(reconstruction="analytic") if is_linear else ELBO(num_samples=num_samples)
    found: dict[str, Callable[[Tensor], Tensor]] = {EXACT: exact(model).log_prob} if is_linear else {}
    found[f"IWAE-{num_samples}"] = lambda rows: importance_weighted_bound(model, rows, num_samples)
    found["ELBO"] = lambda rows: elbo(model, rows, Step()).value
    with own_generators(0):
        return {name: in_chunks(function, x).double().cpu() for name, function in found.items()}


@torch.no_grad()
def squared_error(model: LatentVariableModel, x: Tensor) -> float:
    """The mean over x ``[N, D]`` of |x - reconstruction|^2, summed over D."""
    x = x.to(next(model.parameters()))
    return in_chunks(lambda rows: (rows - model.reconstruct(rows)).square().sum(-1), x).double().mean().item()


def rows_of(one: Climbed, parts: Mapping[str, Tensor], known: Mapping[str, Mapping[str, Tensor]], truth: Truth) -> list[Row]:
    """The rows of a rung, given the `log_probs` of train and test: a row for each quantity, or one without any."""
    rung, model = one.rung, one.model
    angle = None
    if isinstance(model.likelihood, LinearGaussian):
        angle = largest_angle(model.likelihood.weight.cpu(), truth.axes[:, : model.latent_dim])
    floored = model.likelihood.floored()
    answer = None if floored else truth.answers.get(rung.answer)

    def row(quantity: str, test: float | None, train: float | None, gap: float | None) -> Row:
        tolerance = None if gap is None else rung.tolerances.get(quantity)
        error = squared_error(model, parts["test"])
        return Row(rung.name, rung.way, quantity, test, train, gap, tolerance, error, angle, one.seconds, floored)

    if not known["test"]:
        excess = None if answer is None else 100 * (squared_error(model, parts["train"]) / answer - 1)
        return [row(SQUARED_ERROR, None, None, excess)]
    means = {name: (known["test"][name].mean().item(), known["train"][name].mean().item()) for name in known["test"]}
    return [row(name, test, train, None if answer is None else answer - train) for name, (test, train) in means.items()]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows with ranks by test data: each fit by the tightest of its quantities, those at a variance floor not at all."""
    tightest: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.test is not None and not row.floored:
            tightest.setdefault((row.rung, row.way), row)
    values = [row.test for row in tightest.values() if row.test is not None]

    def rank(row: Row) -> int | None:
        if row.test is None or tightest.get((row.rung, row.way)) is not row:
            return None
        return 1 + sum(value > row.test + ALIKE for value in values)

    return [replace(row, rank=rank(row)) for row in rows]


def cells(row: Row, is_first: bool) -> list[str]:
    """A row as text; what belongs to a fit stands in its first row only."""
    angle = "" if row.angle_degrees is None else f"{row.angle_degrees:.2f}°"
    own = [f"{row.squared_error:.3f}", angle, f"{row.seconds:.1f}", "at its variance floor" if row.floored else ""]
    return [
        "" if row.rank is None else str(row.rank),
        *([row.rung, row.way] if is_first else ["", ""]),
        "no density" if row.quantity == SQUARED_ERROR else row.quantity,
        "" if row.test is None else f"{'≥ ' if row.is_bound else ''}{row.test:.2f}",
        "" if row.train is None else f"{row.train:.2f}",
        "" if row.gap is None else f"{small(row.gap)} {row.unit}",
        "" if row.tolerance is None else f"{row.tolerance:g} {row.unit}",
        *(own if is_first else [""] * len(own)),
    ]


def small(value: float) -> str:
    """With four decimals, or, where they say nothing, one digit and the power of ten."""
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.0e}" if value else "0"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a table in Markdown."""
    fits = [(row.rung, row.way) for row in rows]
    return markdown(HEADINGS, [cells(row, i == 0 or fits[i] != fits[i - 1]) for i, row in enumerate(rows)], left=(1, 2, 3, 11))
