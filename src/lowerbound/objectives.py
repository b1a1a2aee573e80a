"""Objectives: what gradient learning maximises, per datum and in nats.

    Reconstruction  E_q log p(x | z)
    ELBO            E_q log p(x | z) - beta KL(q(z | x), p(z))            Kingma & Welling 2014, eq. 3; Higgins et al. 2017, eq. 4
    free bits       the KL of each latent dimension counts as at least lambda nats     after Kingma et al. 2016, eq. 15
    log evidence    log p(x), plus log p(parameters) / N where they have a prior     Bishop 2006, eq. 9.29 and section 9.3.4
    IWAE            E log 1/S sum_s w_s,  w_s = p(x, z_s) / q(z_s | x)    Burda et al. 2016, eq. 8

An objective returns a `Bound`: its own value, and the reconstruction and KL of which elbo = reconstruction - kl, both with
coefficient 1 and unclamped whatever was maximised. Where the gradient wanted is not the gradient of the value,
value = bound.detach() + (surrogate - surrogate.detach()), so that the number logged is always the bound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from lowerbound.distributions import full_precision, kl_per_dimension
from lowerbound.errors import real, whole
from lowerbound.model import Draw, LatentVariableModel
from lowerbound.schedules import Schedule, Step, as_schedule


class Bound(NamedTuple):
    """The terms of a bound, each ``[N]``, nats per datum. `kl` is None where the model has no evidence to bound."""

    value: Tensor
    reconstruction: Tensor
    kl: Tensor | None

    def detached(self) -> Bound:
        """The same numbers, without the way that led to them."""
        return Bound(self.value.detach(), self.reconstruction.detach(), None if self.kl is None else self.kl.detach())


class Objective(ABC):
    """What to maximise. Implement `__call__`; `beta` is the weight of the KL, where the objective has one."""

    beta: Schedule | None = None

    @abstractmethod
    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]`` at that optimizer step."""


def needs_evidence(model: LatentVariableModel, objective: Objective) -> None:
    """Refuse a bound on the evidence of a model that has none.

    Raises:
        ValueError: the model is an autoencoder.
    """
    if not model.is_bounded:
        name = type(objective).__name__
        raise ValueError(f"objective {name} bounds log p(x), and an autoencoder has none: choose objective=reconstruction")


def with_gradient_of(surrogate: Tensor, bound: Tensor) -> Tensor:
    """The value of `bound` with the gradient of `surrogate`."""
    return bound.detach() + (surrogate - surrogate.detach())


def sampled_kl(model: LatentVariableModel, draw: Draw) -> Tensor:
    """The mean over samples of log q(z | x) - log p(z), ``[N]``, an unbiased estimate of the KL."""
    return (draw.q.log_prob(draw.z) - model.prior().log_prob(draw.z)).mean(0)


def analytic_kl(model: LatentVariableModel, draw: Draw) -> Tensor:
    """KL(q(z | x), p(z)) in closed form, ``[N]``.

    Raises:
        ValueError: the pair has no closed form.
    """
    try:
        return kl_divergence(draw.q, model.prior())
    except NotImplementedError:
        pair = f"{type(model.posterior_rule).__name__} to {type(model.prior).__name__}"
        raise ValueError(f"objective.kl=analytic: the KL of {pair} has no closed form; set objective.kl=sampled") from None


def undrawn(q: Distribution) -> Draw:
    """q(z | x) without a sample of it."""
    nothing = q.mean.new_empty(0, *q.mean.shape)  # [0, N, L]
    return Draw(q, nothing, nothing.sum(-1))


def sampled_reconstruction(model: LatentVariableModel, x: Tensor, draw: Draw) -> Tensor:
    """The mean over samples of log p(x | z), ``[N]``, an unbiased estimate of E_q log p(x | z)."""
    return draw.log_likelihood.mean(0)


def analytic_reconstruction(model: LatentVariableModel, x: Tensor, draw: Draw) -> Tensor:
    """E_q log p(x | z) in closed form, ``[N]``.

    Raises:
        ValueError: the likelihood has none.
    """
    expected = model.likelihood.expected_log_prob(x, draw.q)
    if expected is None:
        name = type(model.likelihood).__name__
        raise ValueError(
            f"objective.reconstruction=analytic: E_q log p(x | z) of {name} has no closed form; set objective.reconstruction=sampled"
        )
    return expected


class LogEvidence(Objective):
    """log p(x) of a model whose posterior is exact, and so its own tightest bound: reconstruction - kl = log p(x)."""

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]``.

        Raises:
            ValueError: the posterior is not exact.
        """
        return evidence(model, x, model.posterior(x))


def evidence(model: LatentVariableModel, x: Tensor, q: Distribution) -> Bound:
    """The terms of log p(x) for x ``[N, D]`` and its exact posterior q.

    Raises:
        ValueError: the posterior is not exact.
    """
    log_evidence = model.posterior_rule.log_evidence(x, model, q)  # [N]
    with torch.no_grad():
        kl = kl_divergence(q, model.prior()).expand_as(log_evidence)
    return Bound(log_evidence + model.log_prior(), log_evidence + kl, kl)


class Reconstruction(Objective):
    """E_q log p(x | z), by `num_samples` samples of q: maximum likelihood of an autoencoder."""

    def __init__(self, num_samples: int = 1) -> None:
        self.num_samples = whole(num_samples, "objective.num_samples")

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]``."""
        draw = model.draw(x, self.num_samples)
        reconstruction = draw.log_likelihood.mean(0)  # [N]
        with full_precision(x):
            return Bound(reconstruction, reconstruction, sampled_kl(model, draw) if model.is_bounded else None)


class ELBO(Objective):
    """reconstruction - beta KL.

    `reconstruction` is ``sampled``, by `num_samples` samples of q, or ``analytic``, in closed form, which a linear Gaussian
    likelihood has; `kl` is ``analytic``, or ``sampled`` at the same z as the reconstruction. Nothing is drawn if both are analytic.
    `free_bits` is the least KL, in nats, that each latent dimension of each datum is charged with.
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        num_samples: int = 1,
        kl: str = "analytic",
        reconstruction: str = "sampled",
    ) -> None:
        self.beta = as_schedule(beta, "objective.beta")
        for option, value in (("kl", kl), ("reconstruction", reconstruction)):
            if value not in ("analytic", "sampled"):
                raise ValueError(f"objective.{option}={value!r} is unknown: analytic or sampled")
        self.free_bits = real(free_bits, "objective.free_bits, in nats per dimension,", least=0)
        if free_bits and kl == "sampled":
            raise ValueError(f"objective.free_bits={free_bits} needs the KL of each dimension: set objective.kl=analytic")
        self.kl = sampled_kl if kl == "sampled" else analytic_kl
        self.reconstruction = sampled_reconstruction if reconstruction == "sampled" else analytic_reconstruction
        num_samples = whole(num_samples, "objective.num_samples")
        self.num_samples = num_samples if "sampled" in (kl, reconstruction) else 0

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]`` at the beta of that step."""
        needs_evidence(model, self)
        assert self.beta is not None
        draw = model.draw(x, self.num_samples) if self.num_samples else undrawn(model.posterior(x))
        with full_precision(x):
            reconstruction = self.reconstruction(model, x, draw)  # [N]
            kl = self.kl(model, draw)  # [N]
            charged = kl_per_dimension(draw.q, model.prior()).clamp(min=self.free_bits).sum(-1) if self.free_bits else kl
        return Bound(reconstruction - self.beta(step) * charged, reconstruction, kl)


class IWAE(Objective):
    """The importance-weighted bound with `num_samples` samples; with one sample it is the ELBO.

    Its gradient is the reparameterised one of the paper, or, if `doubly_reparameterized`, that of Tucker et al. 2019 (eq. 8):
    the same in expectation, and for the posterior's parameters with a variance that does not grow as the bound tightens.
    """

    def __init__(self, num_samples: int = 50, doubly_reparameterized: bool = False) -> None:
        self.num_samples = whole(num_samples, "objective.num_samples")
        self.doubly_reparameterized = doubly_reparameterized

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]``."""
        needs_evidence(model, self)
        draw = model.draw(x, self.num_samples)
        with full_precision(x):
            kl = draw.q.log_prob(draw.z) - model.prior().log_prob(draw.z)  # [S, N]
            log_weight = draw.log_likelihood - kl  # [S, N]
            value = log_weight.logsumexp(0) - log(self.num_samples)  # [N]
        if self.doubly_reparameterized and torch.is_grad_enabled():
            value = with_gradient_of(self._surrogate(model, x, draw), value)
        return Bound(value, draw.log_likelihood.mean(0), kl.mean(0))

    @staticmethod
    def _surrogate(model: LatentVariableModel, x: Tensor, draw: Draw) -> Tensor:
        """sum_s w_s log_weight_s with normalised weights w; the path through z is weighted by w once more."""
        with torch.no_grad():
            frozen = model.posterior(x)  # q's parameters are constants here; only z carries the gradient
        with full_precision(x):
            log_weight = draw.log_likelihood + model.prior().log_prob(draw.z) - frozen.log_prob(draw.z)  # [S, N]
        weights = log_weight.detach().softmax(0)  # [S, N]
        if draw.z.requires_grad:
            draw.z.register_hook(lambda gradient: weights.unsqueeze(-1) * gradient)
        return (weights * log_weight).sum(0)


class ScoreFunctionELBO(Objective):
    """The ELBO with the score-function gradient in q's parameters (Williams 1992; Mnih & Gregor 2014, eq. 5).

    It needs no derivative through z, and shows by its variance what the pathwise gradient of `ELBO` is worth.
    """

    def __init__(self, num_samples: int = 1) -> None:
        self.num_samples = whole(num_samples, "objective.num_samples")

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]``."""
        needs_evidence(model, self)
        q = model.posterior(x)
        with full_precision(x):
            z = q.sample(torch.Size([self.num_samples])).detach()  # [S, N, L]
        log_likelihood = model.log_likelihood(x, z)  # [S, N]
        with full_precision(x):
            log_q = q.log_prob(z)
            kl = log_q - model.prior().log_prob(z)  # [S, N]
            log_weight = log_likelihood - kl
            surrogate = log_weight + log_weight.detach() * log_q
        value = with_gradient_of(surrogate.mean(0), log_weight.mean(0))
        return Bound(value, log_likelihood.mean(0), kl.mean(0))
