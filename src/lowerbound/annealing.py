"""Annealed importance sampling: log p(x) from below, and on simulated data from above too.

    path        p_t(z) = p(z) p(x | z)^beta_t,  0 = beta_0 < ... < beta_T = 1              Neal 2001; Wu et al. 2017, eq. 4
    forward     z_0 ~ p(z),  z_t ~ T_t(. | z_(t-1)):  log w = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1))
                E log 1/C sum_c w_c <= log p(x)
    reverse     z_T ~ p(z | x),  z_(t-1) ~ T_t(. | z_t), the same sum:  E -log 1/C sum_c 1/w_c >= log p(x)     Grosse et al. 2015

T_t leaves p_t as it is: Hamiltonian Monte Carlo, a few leapfrog steps and a Metropolis test (Neal 2011, section 5.3). Its step sizes,
one for each temperature, are found in a run of their own and frozen: steps that adapt to the chain they move would leave p_t.
An exact sample of p(z | x) is at hand where z and x were drawn from the model together, which is what the reverse way is for: between
the two bounds lies log p(x), and their distance is what annealing may have missed.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import torch
from torch import Tensor

from lowerbound.distributions import full_precision
from lowerbound.errors import whole
from lowerbound.model import LatentVariableModel

ACCEPTED = 0.65  # the share of proposals at which Hamiltonian Monte Carlo is most efficient (Beskos et al. 2013)
STEEPNESS = 4.0  # of the schedule: temperatures lie densest at both ends


class Path(NamedTuple):
    """Temperatures ``[T + 1]`` from 0 to 1, a step size for each of the last T, and leapfrog steps to a proposal."""

    temperatures: Tensor
    step_sizes: Tensor
    leapfrogs: int


class Energy(NamedTuple):
    """log p(z) and log p(x | z) of chains ``[C, N]``, with the gradients of both ``[C, N, L]``."""

    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor

    def at(self, beta: Tensor) -> Tensor:
        """log p(z) + beta log p(x | z)."""
        return self.log_prior + beta * self.log_likelihood

    def gradient(self, beta: Tensor) -> Tensor:
        """Its gradient in z."""
        return self.prior_gradient + beta * self.likelihood_gradient


def temperatures(count: int) -> Tensor:
    """beta_0, ..., beta_T on a sigmoid, from 0 to 1 (Wu et al. 2017, section 2.3)."""
    sigmoid = torch.linspace(-STEEPNESS, STEEPNESS, count + 1, dtype=torch.float64).sigmoid()
    return (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])


def energy(model: LatentVariableModel, x: Tensor, z: Tensor) -> Energy:
    """That of chains z ``[C, N, L]`` for data x ``[N, D]``."""
    with torch.enable_grad(), full_precision(x):
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = model.prior().log_prob(z), model.log_likelihood(x, z)
        (of_prior,) = torch.autograd.grad(log_prior.sum(), z)
        (of_likelihood,) = torch.autograd.grad(log_likelihood.sum(), z)
    return Energy(log_prior.detach(), log_likelihood.detach(), of_prior, of_likelihood)


@torch.no_grad()
def transition(
    model: LatentVariableModel, x: Tensor, z: Tensor, now: Energy, beta: Tensor, step_size: Tensor, leapfrogs: int
) -> tuple[Tensor, Energy, Tensor]:
    """A proposal for every chain, taken or not: z, its energy, and the share of proposals that were taken."""
    velocity = torch.randn_like(z)
    proposed, then = z, now
    turned = velocity + step_size / 2 * now.gradient(beta)
    for step in range(leapfrogs):
        proposed = proposed + step_size * turned
        then = energy(model, x, proposed)
        turned = turned + step_size * (0.5 if step == leapfrogs - 1 else 1.0) * then.gradient(beta)
    before, after = now.at(beta) - velocity.square().sum(-1) / 2, then.at(beta) - turned.square().sum(-1) / 2
    taken = torch.rand_like(before).log() < (after - before).nan_to_num(-torch.inf)  # [C, N]
    merged = (torch.where(taken if a.ndim == 2 else taken.unsqueeze(-1), b, a) for a, b in zip(now, then, strict=True))
    return torch.where(taken.unsqueeze(-1), proposed, z), Energy(*merged), taken.double().mean()


def require_annealing(model: LatentVariableModel) -> None:
    """Refuse a model without an evidence, or whose z is not continuous.

    Raises:
        ValueError: the message says which.
    """
    if not model.is_bounded:
        raise ValueError("an autoencoder has no p(x): its prior is flat")
    if not model.prior().has_rsample:
        raise ValueError(f"annealing moves z along gradients, and {type(model.prior).__name__} is not continuous: its evidence is a sum")


@torch.no_grad()
def tuned(model: LatentVariableModel, x: Tensor, num_temperatures: int = 1000, num_chains: int = 1, leapfrogs: int = 10) -> Path:
    """A path whose step sizes were found in a forward run on x ``[N, D]``: longer where more than 65% of the proposals were taken.

    Raises:
        ValueError: the model has no evidence, or a z that is not continuous; or a number is not positive.
    """
    require_annealing(model)
    whole(num_temperatures, "num_temperatures")
    betas, sizes = temperatures(num_temperatures).to(x.device), []
    z = model.prior().sample(torch.Size([whole(num_chains, "num_chains"), len(x)]))  # [C, N, L]
    now, size = energy(model, x, z), torch.tensor(0.5, device=x.device)
    for beta in betas[1:].to(z):
        z, now, share = transition(model, x, z, now, beta, size, whole(leapfrogs, "leapfrogs"))
        sizes.append(size)
        size = size * exp(min(share.item() - ACCEPTED, 0.1))
    return Path(betas, torch.stack(sizes), leapfrogs)


@torch.no_grad()
def annealed_bound(model: LatentVariableModel, x: Tensor, path: Path, num_chains: int = 16) -> Tensor:
    """log 1/C sum_c w_c ``[N]`` for x ``[N, D]``: nats per datum, float64; below log p(x) in expectation."""
    require_annealing(model)
    z = model.prior().sample(torch.Size([num_chains, len(x)]))  # [C, N, L]
    now, log_weight = energy(model, x, z), torch.zeros(num_chains, len(x), dtype=torch.float64, device=x.device)
    for beta, difference, size in _steps(path, z):
        log_weight += difference * now.log_likelihood.double()
        z, now, _ = transition(model, x, z, now, beta, size, path.leapfrogs)
    return log_weight.logsumexp(0) - log(num_chains)


@torch.no_grad()
def reverse_annealed_bound(model: LatentVariableModel, x: Tensor, z: Tensor, path: Path, num_chains: int = 16) -> Tensor:
    """-log 1/C sum_c 1/w_c ``[N]`` for x ``[N, D]``: nats per datum, float64; above log p(x) in expectation.

    All chains of a datum begin at the sample z ``[N, L]`` of p(z | x): each 1/w_c has the mean 1/p(x), whatever the others are.
    """
    require_annealing(model)
    z = z.expand(num_chains, *z.shape)  # [C, N, L]
    now, log_weight = energy(model, x, z), torch.zeros(num_chains, len(x), dtype=torch.float64, device=x.device)
    for beta, difference, size in reversed(_steps(path, z)):
        z, now, _ = transition(model, x, z, now, beta, size, path.leapfrogs)
        log_weight += difference * now.log_likelihood.double()
    return log(num_chains) - (-log_weight).logsumexp(0)


def _steps(path: Path, like: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """beta_t, beta_t - beta_(t-1) and the step size for t = 1, ..., T."""
    betas = path.temperatures
    return list(zip(betas[1:].to(like), betas.diff(), path.step_sizes.to(like), strict=True))
