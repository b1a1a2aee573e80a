"""What simple models know of the same data: a VAE that does not beat them has learnt nothing that they could not say.

densities       independent Gaussians, probabilistic PCA with as many latents, a mixture of diagonal Gaussians
probabilities   independent Bernoullis, a mixture of Bernoullis
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor

from lowerbound import models
from lowerbound.covariances import Diagonal
from lowerbound.data.module import TensorDataModule
from lowerbound.em import EMFit
from lowerbound.evidence import Estimate, exactly
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.run import learn

COMPONENTS = 20
EPOCHS = 100  # of EM, at most
ALONE: dict[str, Any] = {"accelerator": "cpu", "plugins": [LightningEnvironment()], "enable_progress_bar": False}  # also under torchrun
EXACTLY, NEARLY = partial(EMFit, tolerance=1e-6), partial(EMFit, tolerance=0.01)  # nats per datum


class Baseline(NamedTuple):
    """A simple model's exact log p(x) of the test rows, and a sentence if it ended at its variance floor."""

    estimate: Estimate
    floored: str | None


def baselines(data: TensorDataModule, x: Tensor, latent_dim: int, is_discrete: bool, seed: int = 0) -> Iterator[Baseline]:
    """Learnt by EM on the data's training rows, also where entries are missing, and measured on x ``[N, D]``."""
    for name, make, fit in _ways(x.shape[1], latent_dim, is_discrete):
        torch.manual_seed(seed)
        model = make()
        learn(model, fit, data, seed, **ALONE, max_epochs=EPOCHS, limit_val_batches=0)
        x = x.to(next(model.parameters()))
        yield Baseline(exactly(name, model.log_prob, x), model.likelihood.floored())


def _ways(
    dim: int, latent_dim: int, is_discrete: bool
) -> list[tuple[str, Callable[[], LatentVariableModel], Callable[[LatentVariableModel], Fit]]]:
    if is_discrete:
        return [
            ("independent Bernoullis", lambda: models.bernoulli(dim), EXACTLY),
            (f"mixture of {COMPONENTS} Bernoullis", lambda: models.bernoulli_mixture(dim, COMPONENTS), NEARLY),
        ]
    latent_dim = min(latent_dim, dim - 1)
    linear = [(f"probabilistic PCA, L = {latent_dim}", lambda: models.ppca(dim, latent_dim), EXACTLY)] if latent_dim else []
    return [
        ("independent Gaussians", lambda: models.gaussian(dim, Diagonal(1, dim)), EXACTLY),
        *linear,
        (f"mixture of {COMPONENTS} Gaussians", lambda: models.gaussian_mixture(dim, COMPONENTS, Diagonal(COMPONENTS, dim)), NEARLY),
    ]
