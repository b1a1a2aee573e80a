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

from lowerbound.annealing import annealed_bound, reverse_annealed_bound, tuned
from lowerbound.bounds import MAX_QUADRATURE_DIM, importance_weighted_bounds, quadrature_log_evidence
from lowerbound.errors import whole
from lowerbound.identities import exact
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot, StandardNormal
from lowerbound.randomness import own_generators

ROWS = 50  # that are measured at once, each with `CHUNK` samples of z
CHUNK = 100
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
        whole(self.num_data, "annealing.num_data", least=0)
        for option in ("num_temperatures", "num_chains", "leapfrogs"):
            whole(getattr(self, option), f"annealing.{option}")


@torch.no_grad()
def estimates(model: LatentVariableModel, x: Tensor, num_samples: Sequence[int], annealing: Annealing) -> Iterator[Estimate]:
    """All that the model allows, for x ``[N, D]``; nothing of a model without an evidence. A generator of its own for each."""
    if not model.is_bounded:
        return
    x = x.to(next(model.parameters()))
    for name, function in closed_ways(model).items():
        yield _of(name, False, *_timed(function, x))
    if model.is_exact:
        return
    yield from importance_weighted(model, x, num_samples)
    if is_annealed(model, annealing):
        yield annealed(model, x[: annealing.num_data], annealing)


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
def exact_estimate(name: str, model: LatentVariableModel, x: Tensor) -> Estimate:
    """log p(x) of x ``[N, D]`` under a model with an exact posterior."""
    return _of(name, False, *_timed(model.log_prob, x.to(next(model.parameters()))))


def importance_weighted(model: LatentVariableModel, x: Tensor, num_samples: Sequence[int]) -> Iterator[Estimate]:
    """The bounds at all numbers of samples, in one pass, of which each has the seconds."""
    started = perf_counter()
    with own_generators(0):
        parts = [importance_weighted_bounds(model, rows, num_samples, CHUNK) for rows in x.split(ROWS)]
    seconds = perf_counter() - started
    for i, count in enumerate(num_samples):
        values, effective = (torch.cat([part[field][i] for part in parts]) for field in range(2))
        yield _of(f"IWAE-{count}", True, values, seconds, effective.median().item())


def annealed(model: LatentVariableModel, x: Tensor, annealing: Annealing) -> Estimate:
    """That of x ``[N, D]``; the seconds are those of finding the step sizes too."""
    started = perf_counter()
    with own_generators(0):
        path = tuned(model, x, annealing.num_temperatures, 1, annealing.leapfrogs)
        values = annealed_bound(model, x, path, annealing.num_chains)
    return _of("AIS", True, values, perf_counter() - started)


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
        path = tuned(model, x, annealing.num_temperatures, 1, annealing.leapfrogs)
        below = annealed_bound(model, x, path, annealing.num_chains)
        above = reverse_annealed_bound(model, x, z, path, annealing.num_chains)
    gap = above - below
    return Sandwich(below.mean().item(), above.mean().item(), gap.mean().item(), gap.std().item() / len(gap) ** 0.5)


def is_annealed(model: LatentVariableModel, annealing: Annealing) -> bool:
    """Whether there is anything to anneal: a real z, and no exact answer."""
    return bool(annealing.num_data) and model.is_bounded and not model.is_exact and not isinstance(model.prior, OneHot)


def _timed(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
    started = perf_counter()
    return torch.cat([function(rows) for rows in x.split(ROWS)]), perf_counter() - started


def _of(quantity: str, is_bound: bool, values: Tensor, seconds: float, effective: float | None = None) -> Estimate:
    values = values.double()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(quantity, is_bound, values.mean().item(), error, len(values), effective, seconds)
