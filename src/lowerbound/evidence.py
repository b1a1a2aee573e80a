"""What is known of log p(x) of some rows under a fitted model: exactly, by quadrature, or from below, each with its error.

exact         where Bayes' posterior is known, also that of a linear model with an amortised one
quadrature    over a grid of z, for L <= 2
AIS           annealed importance sampling with Hamiltonian Monte Carlo, of the first rows
IWAE-S        importance weighting by q(z | x) with S samples;  ELBO: S = 1 in expectation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from lowerbound.annealing import Path, annealed_bound, reverse_annealed_bound, tuned
from lowerbound.bounds import MAX_QUADRATURE_DIM, importance_weighted_bounds, quadrature_log_evidence
from lowerbound.errors import whole
from lowerbound.identities import exact
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot, StandardNormal
from lowerbound.randomness import own_generators
from lowerbound.ranks import by_blocks

ROWS = 50  # that are measured at once
WEIGHTED_ROWS = 10  # of importance weighting, each with `CHUNK` samples of z at a time: as much as a processor's cache holds
CHUNK = {"cpu": 200, "cuda": 10_000}
LEAST_EFFECTIVE = 5.0  # samples: of fewer, the estimate is that of a few lucky ones


@dataclass(frozen=True)
class Estimate:
    """A mean over data in nats per datum, with its standard error over data; `is_bound`: log p(x) is at least that, in expectation.

    `effective` is the median over data of the effective sample size, of estimates by importance weighting.
    """

    quantity: str
    is_bound: bool
    mean: float
    standard_error: float
    num_data: int
    effective: float | None
    seconds: float

    @property
    def warning(self) -> str | None:
        """A sentence if the estimate rests on too few effective samples."""
        if self.effective is None or self.effective >= LEAST_EFFECTIVE or self.quantity == "IWAE-1":
            return None
        return f"{self.quantity}: half of the data have at most {self.effective:.1f} effective samples; log p(x) may lie far above"


@dataclass(frozen=True)
class Annealing:
    """How annealed importance sampling is done: on how many rows, and how finely."""

    num_data: int = 200
    num_temperatures: int = 1000
    num_chains: int = 16
    leapfrogs: int = 10

    def __post_init__(self) -> None:
        if whole(self.num_data, "annealing.num_data", least=0) == 1:
            raise ValueError("annealing.num_data=1: a standard error takes at least 2 rows; 0 is no annealing")
        for option in ("num_temperatures", "num_chains", "leapfrogs"):
            whole(getattr(self, option), f"annealing.{option}")


@torch.no_grad()
def estimates(model: LatentVariableModel, x: Tensor, num_samples: Sequence[int], annealing: Annealing) -> Iterator[Estimate]:
    """All that the model allows, for x ``[N, D]``; nothing of a model without an evidence."""
    if not model.is_bounded:
        return
    x = x.to(next(model.parameters()))
    for name, function in closed_ways(model).items():
        yield exactly(name, function, x)
    if model.is_exact:
        return
    first = x[: annealing.num_data] if is_annealed(model, annealing) else x[:0]
    yield from importance_weighted(model, x, num_samples, len(first))
    if len(first):
        yield annealed(model, first, annealing)


def closed_ways(model: LatentVariableModel) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways of knowing log p(x) itself, by name."""
    if model.is_exact:
        return {"exact": model.log_prob}
    if isinstance(model.likelihood, LinearGaussian) and isinstance(model.prior, StandardNormal):
        return {"exact": exact(model).log_prob}
    if model.latent_dim <= MAX_QUADRATURE_DIM and isinstance(model.prior, StandardNormal):
        return {"quadrature": lambda rows: quadrature_log_evidence(model, rows)}
    return {}


@torch.no_grad()
def exactly(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Estimate:
    """log p(x) of x ``[N, D]`` by a function that knows it."""
    (values,), seconds = _timed(lambda rows: function(x[rows]).unsqueeze(0), (1, len(x)), x, name)
    return _of(name, False, values, seconds)


def importance_weighted(model: LatentVariableModel, x: Tensor, num_samples: Sequence[int], num_first: int = 0) -> Iterator[Estimate]:
    """The bounds at all numbers of samples, in one pass, of which each has the seconds; the last also of the first rows alone.

    Those are the rows that annealing sees: the two compare only on the same data.
    """

    def weighted(rows: slice) -> Tensor:
        return torch.cat(importance_weighted_bounds(model, x[rows], num_samples, CHUNK.get(x.device.type, CHUNK["cpu"])))  # [2 K, n]

    values, seconds = _timed(weighted, (2 * len(num_samples), len(x)), x, f"IWAE-{num_samples[-1]}", WEIGHTED_ROWS)
    bounds, effective = values.split(len(num_samples))
    for count, bound, size in zip(num_samples, bounds, effective, strict=True):
        yield _of(f"IWAE-{count}", True, bound, seconds, size.median().item())
    if 0 < num_first < len(x):
        yield _of(f"IWAE-{num_samples[-1]}", True, bounds[-1, :num_first], seconds, effective[-1, :num_first].median().item())


def annealed(model: LatentVariableModel, x: Tensor, annealing: Annealing) -> Estimate:
    """That of x ``[N, D]``; the seconds are those of finding the step sizes too."""
    started = perf_counter()
    path = found_path(model, x, annealing)
    (values,), _ = _timed(lambda rows: annealed_bound(model, x[rows], path, annealing.num_chains).unsqueeze(0), (1, len(x)), x, "AIS")
    return _of("AIS", True, values, perf_counter() - started)


def found_path(model: LatentVariableModel, x: Tensor, annealing: Annealing) -> Path:
    """Step sizes found on all of x ``[N, D]``, by one chain each, the same in every process."""
    with own_generators(0):
        return tuned(model, x, annealing.num_temperatures, 1, annealing.leapfrogs)


class Sandwich(NamedTuple):
    """Means over data drawn from the model, nats per datum: a bound from below, one from above, and the standard error of their distance.

    What lies between is all that annealing can have missed on data like these (bidirectional Monte Carlo, Grosse et al. 2015).
    """

    below: float
    above: float
    gap: float
    standard_error: float


@torch.no_grad()
def sandwich(model: LatentVariableModel, annealing: Annealing) -> Sandwich:
    """Both ways on `num_data` simulated rows, of which z is known, by one path that is tuned on them and frozen."""
    with own_generators(1):
        z = model.prior().sample(torch.Size([annealing.num_data]))  # [N, L]
        x = model.likelihood(z).sample()
    path = found_path(model, x, annealing)

    def both(rows: slice) -> Tensor:
        below = annealed_bound(model, x[rows], path, annealing.num_chains)
        return torch.stack([below, reverse_annealed_bound(model, x[rows], z[rows], path, annealing.num_chains)])

    (below, above), _ = _timed(both, (2, len(x)), x, "AIS both ways")
    gap = above - below
    return Sandwich(below.mean().item(), above.mean().item(), gap.mean().item(), gap.std().item() / len(gap) ** 0.5)


def is_annealed(model: LatentVariableModel, annealing: Annealing) -> bool:
    """Whether there is anything to anneal: a real z, and no exact answer."""
    return bool(annealing.num_data) and model.is_bounded and not model.is_exact and not isinstance(model.prior, OneHot)


def _timed(function: Callable[[slice], Tensor], shape: tuple[int, int], x: Tensor, what: str, size: int = ROWS) -> tuple[Tensor, float]:
    started = perf_counter()
    return by_blocks(function, shape, size, x.device, what), perf_counter() - started


def _of(quantity: str, is_bound: bool, values: Tensor, seconds: float, effective: float | None = None) -> Estimate:
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(quantity, is_bound, values.mean().item(), error, len(values), effective, seconds)
