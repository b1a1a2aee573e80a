"""What is known of linear VAEs, looked at in the ladder: the identity on the way of one, and the collapse of several."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lowerbound.answers import GAP
from lowerbound.distributions import kl_per_dimension
from lowerbound.fit import Fit
from lowerbound.identities import Collapse, ascend, linear_vae, terms_of, with_moments
from lowerbound.plots import COLLAPSED
from lowerbound.statistics import Moments

BETAS = (1.0, 4.0, 1.0, 1.0, 4.0, 1.0)  # of the linear VAEs whose active dimensions are counted
STEPS = 400  # of L-BFGS, at most, that each of them takes


class Seen(NamedTuple):
    """Means over data of the terms of the identity after some optimizer steps, and the largest residual of any datum; nats."""

    step: int
    evidence: float
    elbo: float
    kl: float
    residual: float


@final
class Watch(Callback):
    """log p(x) = ELBO + KL(q, posterior) for x ``[N, D]`` at the start and the end of training, and as often as steps grow by a half."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.seen: list[Seen] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look before the first step."""
        if not self.seen:
            self._look(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look if it is time."""
        if trainer.global_step >= 1.5 * self.seen[-1].step:
            self._look(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more."""
        self._look(pl_module)

    def _look(self, fit: LightningModule) -> None:
        assert isinstance(fit, Fit)
        terms = terms_of(fit.model, self.x.to(next(fit.model.parameters())))
        evidence, elbo, kl = (value.mean().item() for value in (terms.log_evidence, terms.elbo, terms.kl_to_posterior))
        self.seen.append(Seen(fit.clock.now, evidence, elbo, kl, terms.residual.abs().max().item()))


def thresholds(eigenvalues: np.ndarray, latent_dim: int, count: int) -> list[float]:
    """At most `count` values of beta s^2, falling, each in one of the widest gaps between the first L + 1 eigenvalues."""
    first = eigenvalues[: latent_dim + 1].clip(min=1e-12 * eigenvalues[0])
    ratios = first[:-1] / first[1:]
    widest = np.sort(np.argsort(-ratios)[:count])
    return [float(np.sqrt(first[i] * first[i + 1])) for i in widest if ratios[i] > GAP]


def collapses(x: Tensor, eigenvalues: np.ndarray, latent_dim: int, seed: int) -> list[Collapse]:
    """Linear VAEs trained on x ``[N, D]`` with fixed noise, beta s^2 in the gaps between the eigenvalues."""
    rows = with_moments(Moments.of(x))
    found = []
    for beta, threshold in zip(BETAS, thresholds(eigenvalues, latent_dim, len(BETAS)), strict=False):
        torch.manual_seed(seed)
        model = linear_vae(x.shape[1], latent_dim, (threshold / beta) ** 0.5).to(rows)
        ascend(model, rows, beta, STEPS)
        with torch.no_grad():
            kl = kl_per_dimension(model.posterior(rows), model.prior()).mean(0).sort(descending=True).values
        predicted = np.log(eigenvalues[:latent_dim] / threshold).clip(min=0) / 2
        found.append(Collapse(beta, threshold, kl.cpu(), torch.from_numpy(predicted)))
    return found


def active(kl: Tensor) -> int:
    """How many dimensions have a KL that counts."""
    return int((kl > COLLAPSED).sum())
