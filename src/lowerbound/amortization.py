"""Amortised inference and the E-step of EM: what one network for all q(z | x) costs, and what training it in turn with p costs.

    log p(x) - ELBO(network) = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(network)]        Cremer et al. 2018, eq. 4 and 5
                                approximation gap       amortization gap

q* is the best Gaussian with diagonal covariance for one datum. Both gaps are at least 0: the first is KL(q*, p(z | x)), the
second is what the network leaves. Maximising the ELBO in q is the E-step, maximising it in p the M-step (Neal & Hinton 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound import study_plots
from lowerbound.bounds import quadrature_log_evidence
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import diagonal_normal
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.schedules import Step
from lowerbound.studies import Answer, Study, copied, needs_quadrature, rows_of


def log_weight_at(model: LatentVariableModel, x: Tensor, q: Distribution, noise: Tensor) -> Tensor:
    """log p(x, z) - log q(z) at z = loc + scale * noise ``[S, N, L]``; ``[S, N]``."""
    z = q.mean + q.stddev * noise
    return model.log_likelihood(x, z) + model.prior().log_prob(z) - q.log_prob(z)


def best_posteriors(
    model: LatentVariableModel, x: Tensor, start: Distribution, steps: int = 400, num_samples: int = 32, lr: float = 0.02
) -> Distribution:
    """q* of each datum ``[N, D]``: the Gaussians with diagonal covariance that maximise the ELBO, by Adam from `start`.

    All steps see the same noise, each draw with its mirror image, so that what is maximised is one smooth function.
    """
    loc, log_scale = (value.detach().clone().requires_grad_() for value in (start.mean, start.stddev.log()))  # [N, L]
    half = torch.randn(num_samples // 2, *loc.shape).to(loc)
    noise = torch.cat([half, -half])  # [S, N, L]
    optimizer = torch.optim.Adam([loc, log_scale], lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        elbo = log_weight_at(model, x, diagonal_normal(loc, log_scale.exp()), noise).mean(0)  # [N]
        loc.grad, log_scale.grad = torch.autograd.grad(-elbo.sum(), [loc, log_scale])
        optimizer.step()
        scheduler.step()
    return diagonal_normal(loc.detach(), log_scale.detach().exp())


def ascend(
    model: LatentVariableModel, x: Tensor, steps: int, turns: Sequence[Sequence[nn.Parameter]], turn: int, batch_size: int, lr: float
) -> LatentVariableModel:
    """`steps` steps of Adam on the ELBO of random batches of x ``[N, D]``, `turn` steps on each group of parameters in turn; in place."""
    optimizers = [torch.optim.Adam(group, lr) for group in turns]
    for step in range(steps):
        batch = x[torch.randint(len(x), (batch_size,), device=x.device)]
        active = optimizers[step // turn % len(optimizers)]
        model.zero_grad()
        (-ELBO()(model, batch, Step()).value.mean()).backward()
        active.step()
    return model


@torch.no_grad()
def mean_elbo(model: LatentVariableModel, x: Tensor, num_samples: int = 10) -> float:
    """The mean ELBO over x ``[N, D]``, with the same noise every time."""
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        return ELBO(num_samples=num_samples)(model, x, Step()).value.double().mean().item()
