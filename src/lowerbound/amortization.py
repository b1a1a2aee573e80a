"""Amortised inference and the E-step of EM: what one network for all q(z | x) costs, and what training it in turn with p costs.

    log p(x) - ELBO(network) = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(network)]        Cremer et al. 2018, eq. 4 and 5
                                approximation gap       amortization gap

q* is the best Gaussian with diagonal covariance for one datum. Both gaps are at least 0: the first is KL(q*, p(z | x)), the
second is what the network leaves. Maximising the ELBO in q is the E-step, maximising it in p the M-step (Neal & Hinton 1998).
"""

from __future__ import annotations

from copy import deepcopy
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution

from lowerbound import study_plots
from lowerbound.bounds import quadrature_log_evidence
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import diagonal_normal
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.randomness import own_generators
from lowerbound.schedules import Step
from lowerbound.studies import CHUNK, Answer, Study, copied, needs_quadrature, rows_of


def log_weight_at(model: LatentVariableModel, x: Tensor, q: Distribution, noise: Tensor) -> Tensor:
    """log p(x, z) - log q(z) at z = loc + scale * noise ``[S, N, L]``; ``[S, N]``."""
    z = q.mean + q.stddev * noise
    return model.log_likelihood(x, z) + model.prior().log_prob(z) - q.log_prob(z)


def standard_noise(num_samples: int, like: Tensor) -> Tensor:
    """Draws ``[S, N, L]`` for each row of `like` ``[N, L]``, with mean 0 and covariance I over each row's own S draws."""
    half = torch.randn(num_samples // 2, *like.shape, dtype=torch.float64)
    noise = torch.cat([half, -half]).movedim(0, 1)  # [N, S, L]
    factor = torch.linalg.cholesky(noise.mT @ noise / noise.shape[1])  # [N, L, L]
    return torch.linalg.solve_triangular(factor, noise.mT, upper=False).movedim(-1, 0).to(like)


def best_posteriors(
    model: LatentVariableModel, x: Tensor, start: Distribution, steps: int = 300, num_samples: int = 64, lr: float = 0.05
) -> Distribution:
    """q* of each datum ``[N, D]``: the Gaussians with diagonal covariance that maximise the ELBO, by Adam from `start`.

    All steps see the same noise, so that what is maximised is one smooth function. Its first two moments are exactly those of
    N(0, I), so that the function is exact where log p(x, z) is quadratic in z.
    """
    loc, log_scale = (value.detach().clone().requires_grad_() for value in (start.mean, start.stddev.log()))  # [N, L]
    noise = standard_noise(num_samples, loc)
    optimizer = torch.optim.Adam([loc, log_scale], lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        elbo = log_weight_at(model, x, diagonal_normal(loc, log_scale.exp()), noise).mean(0)  # [N]
        loc.grad, log_scale.grad = torch.autograd.grad(-elbo.sum(), [loc, log_scale])
        optimizer.step()
        scheduler.step()
    return diagonal_normal(loc.detach(), log_scale.detach().exp())


@torch.no_grad()
def mean_elbo(model: LatentVariableModel, x: Tensor, num_samples: int = 10) -> float:
    """The mean ELBO over x ``[N, D]``, with the same noise every time."""
    with own_generators(0):
        return ELBO(num_samples=num_samples)(model, x, Step()).value.double().mean().item()


@final
class AmortizationGap(Study):
    """The two gaps between log p(x) and the ELBO on test data; and encoder and decoder trained in turn against together.

    The gaps are means over `num_data` test data: log p(x) by quadrature with `points` along each axis, both ELBOs with the same
    `num_samples` fresh draws, q* by `steps` steps of Adam. Training starts twice from the weights that the run started from and
    takes `training_steps` steps of Adam: on all parameters, or `turn` on the encoder's, `turn` on the decoder's, and so on.
    """

    name = "amortization"

    def __init__(
        self,
        num_data: int = 100,
        num_samples: int = 1000,
        points: int = 257,
        steps: int = 300,
        training_steps: int = 1000,
        turn: int = 10,
        batch_size: int = 128,
        lr: float = 1e-3,
    ) -> None:
        self.num_data, self.num_samples, self.points, self.steps = num_data, num_samples, points, steps
        self.training_steps, self.turn, self.batch_size, self.lr = training_steps, turn, batch_size, lr

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if log p(x) cannot be integrated or q is no diagonal Gaussian."""
        needs_quadrature(model)
        if not isinstance(model.posterior_rule, DiagonalGaussian):
            raise ValueError("AmortizationGap compares Gaussians with diagonal covariance: choose posterior=diagonal_gaussian")

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """The gaps of the trained model, and the curves of training it anew both ways."""
        model = copied(fit).requires_grad_(False)
        x = rows_of(data, "test", model, self.num_data)
        numbers, approximation, amortization = self.gaps(model, x)
        start = self.start.to(fit.device)
        train, held_out = (rows_of(data, part, start) for part in ("train", "val"))
        curves = {way: self.curve(deepcopy(start), train, held_out, way == "in turn") for way in ("together", "in turn")}
        numbers |= {f"elbo_{way.replace(' ', '_')}": curve[-1] for way, curve in curves.items()}
        numbers["elbo_together_halfway"] = curves["together"][len(curves["together"]) // 2]
        figure = study_plots.amortization(approximation, amortization, curves, self.training_steps, self.turn)
        return Answer(numbers, figure)

    def gaps(self, model: LatentVariableModel, x: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
        """The means over x ``[N, D]`` with their standard errors; the approximation and the amortization gap of each datum ``[N]``."""
        evidence, coarser = (quadrature_log_evidence(model, x, points, chunk=CHUNK) for points in (self.points, self.points // 2 + 1))
        network = model.posterior(x)
        best = best_posteriors(model, x, network, self.steps)
        noise = torch.randn(self.num_samples, *network.mean.shape).to(x)
        elbo = {name: log_weight_at(model, x, q, noise).double() for name, q in (("network", network), ("best", best))}  # [S, N]
        gaps = {"approximation_gap": evidence - elbo["best"], "amortization_gap": elbo["best"] - elbo["network"]}  # [S, N]
        numbers = {"log_evidence": evidence.mean().item(), "quadrature_error_nats": (evidence - coarser).abs().mean().item()}
        numbers |= {f"elbo_of_{name}_q": values.mean().item() for name, values in elbo.items()}
        for name, values in gaps.items():
            numbers[name] = values.mean().item()
            numbers[f"{name}_se"] = (values.mean(1).std() / len(values) ** 0.5).item()
        return numbers, gaps["approximation_gap"].mean(0), gaps["amortization_gap"].mean(0)

    def curve(self, model: LatentVariableModel, x: Tensor, held_out: Tensor, in_turn: bool) -> list[float]:
        """Train a model in place on x ``[N, D]``; the mean ELBO of held-out data at 41 steps, equally far apart."""
        encoder, decoder = list(model.posterior_rule.parameters()), [*model.likelihood.parameters(), *model.prior.parameters()]
        groups = [encoder, decoder] if in_turn else [encoder + decoder]
        optimizers = [torch.optim.Adam(group, self.lr) for group in groups]
        seen = {round(self.training_steps * i / 40) for i in range(41)}
        curve = [mean_elbo(model, held_out)]
        for step in range(self.training_steps):
            batch = x[torch.randint(len(x), (self.batch_size,), device=x.device)]
            model.zero_grad()
            (-ELBO()(model, batch, Step()).value.mean()).backward()
            optimizers[step // self.turn % len(optimizers)].step()
            if step + 1 in seen:
                curve.append(mean_elbo(model, held_out))
        return curve
