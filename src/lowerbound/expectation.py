"""Studies of the E-step: what it is for, and what is left of EM when it is sampled.

    log p(x) = F(q, theta) + KL(q, p(z | x, theta))                     Bishop 2006, eq. 9.70
    F(q, theta) = E_q [log p(x, z | theta) - log q(z)]                  eq. 9.71

    E-step   q = p(z | x, theta), so that the KL becomes 0 and the bound F touches log p(x)
    M-step   theta = argmax F(q, theta), so that the bound rises, and log p(x) by at least as much

EM is ascent of F in q and in theta in turn (Neal & Hinton 1998), and log p(x) cannot fall.

    CoordinateAscent   F and log p(X) at each half of a step
    MonteCarloEM       the E-step by samples of z (Wei & Tanner 1990): how many of them keep log p(X) from falling?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from lowerbound import em_plots
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import Delta
from lowerbound.errors import whole
from lowerbound.fit import Fit
from lowerbound.maximum_likelihood import StudyOfEM, mean_objective
from lowerbound.mixture import Components
from lowerbound.model import LatentVariableModel
from lowerbound.studies import Answer, rows_of

ROUNDING = 1e-12  # nats


@torch.no_grad()
def bound(model: LatentVariableModel, x: Tensor, q: Distribution) -> float:
    """F(q, theta) of a mixture, with the log-prior of its parameters: a sum over its components, mean over x ``[N, D]``."""
    likelihood, prior = model.likelihood, model.prior()
    assert isinstance(likelihood, Components)
    assert isinstance(prior, OneHotCategorical)
    assert isinstance(q, OneHotCategorical)
    log_joint = likelihood.log_densities(x) + prior.logits  # [N, K]
    return ((q.probs * (log_joint - q.logits)).sum(-1) + model.log_prior()).mean().item()


@final
class CoordinateAscent(StudyOfEM):
    """log p(X) and the bound at each half of the run's EM steps, on its training data.

    Those from after step `shown[0]` to after step `shown[1]` are drawn large: the first step is often larger than all others.
    """

    name = "coordinate_ascent"

    def __init__(self, shown: Sequence[int] = (1, 7)) -> None:
        if len(shown) != 2 or not 0 <= shown[0] < shown[1]:
            raise ValueError(f"shown={list(shown)} must be two numbers of EM steps, the first smaller than the second")
        self.shown = tuple(shown)

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Take each q to the parameters that its M-step made."""
        x = rows_of(data, "train", fit.evaluation_model)
        evidence, touching, raised = [], [], []
        q = None
        for model in self.models(fit):
            if q is not None:
                raised.append(bound(model, x, q))
            q = model.posterior(x)
            touching.append(bound(model, x, q))
            evidence.append(mean_objective(model, x))
        log_p, after_e, after_m = (torch.tensor(values, dtype=torch.float64) for values in (evidence, touching, raised))
        by_m, by_e = after_m - after_e[:-1], after_e[1:] - after_m
        numbers = {
            "log_evidence_at_start": log_p[0].item(),
            "log_evidence_at_end": log_p[-1].item(),
            "raised_by_m_step": by_m.sum().item(),
            "raised_by_e_step": by_e.sum().item(),
            "smallest_gain_of_m_step": by_m.min().item(),
            "smallest_gain_of_e_step": by_e.min().item(),
            "largest_gap_after_e_step": (log_p - after_e).abs().max().item(),
            "em_steps": len(by_m),
        }
        last = min(self.shown[1], len(by_m))
        return Answer(numbers, em_plots.zigzag(log_p, after_m, min(self.shown[0], last - 1), last))


def shares(q: Distribution, num_samples: int) -> Tensor:
    """The shares of the components among so many draws of one-hot z ~ q for each datum, ``[N, K]``.

    The counts are multinomial: each is binomial given those before it. Sums of an E-step are linear in z, so that those at the
    shares are the means of those at the draws.
    """
    left = torch.full_like(q.mean[:, 0], num_samples)
    mass = torch.ones_like(left)
    counts = []
    for probability in q.mean.unbind(1)[:-1]:
        count = torch.binomial(left, (probability / mass.clamp(min=torch.finfo(mass.dtype).tiny)).clamp(max=1))
        left, mass = left - count, mass - probability
        counts.append(count)
    return torch.stack([*counts, left], 1) / num_samples


@torch.no_grad()
def sampled_em(model: LatentVariableModel, x: Tensor, steps: int, num_samples: int) -> Iterator[float]:
    """The mean objective over x ``[N, D]`` at the start and after every step of Monte Carlo EM, which changes the mixture in place."""
    yield mean_objective(model, x)
    for _ in range(steps):
        model.maximize(model.statistics(x, Delta(shares(model.posterior(x), num_samples))))
        yield mean_objective(model, x)


def judged(values: Sequence[float], best: float) -> em_plots.Sampled:
    """What became of log p(X) in T steps, `values` being the T + 1 of them and `best` its maximum."""
    gaps = best - torch.tensor(values, dtype=torch.float64)
    descending = gaps.diff() > ROUNDING  # [T]
    first = int(descending.nonzero()[0]) if descending.any() else len(descending)
    left = gaps[-max(len(descending) // 4, 1) :].mean().item()
    return em_plots.Sampled(gaps, descending.double().mean().item(), first, left)


@final
class MonteCarloEM(StudyOfEM):
    """As many steps of Monte Carlo EM as the run took of exact EM, from the same start, for each number of samples.

    A step descends if log p(X) falls by more than rounding. The gap at the end is the mean over the last quarter of the steps of how
    far log p(X) lies below that of the run's end.
    """

    name = "monte_carlo_em"

    def __init__(self, num_samples: Sequence[int] = (1, 10, 100, 1000)) -> None:
        self.num_samples = [whole(count, "num_samples") for count in num_samples]

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Go the run's way again with samples."""
        x = rows_of(data, "train", fit.evaluation_model)
        exact = [mean_objective(model, x) for model in self.models(fit)]
        start, steps, best = next(self.models(fit)), len(exact) - 1, exact[-1]
        runs = {count: judged(list(sampled_em(deepcopy(start), x, steps, count)), best) for count in self.num_samples}
        numbers = {"exact_smallest_increase": min(after - before for before, after in pairwise(exact)), "em_steps": steps}
        for count, run in runs.items():
            numbers |= {f"samples_{count}_descending_share": run.descending, f"samples_{count}_gap_at_end": run.left}
            numbers[f"samples_{count}_ascending_steps"] = run.ascending
        return Answer(numbers, em_plots.sampled(runs, judged(exact, best)))
