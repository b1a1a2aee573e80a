"""The rungs of the ladder: models from a Gaussian to a VAE, how each is learnt, and what it must arrive at.

    densities       of real numbers: Gaussian, PCA, linear autoencoder, PPCA, factor analysis, mixtures, linear VAE, VAE
    probabilities   of bits: Bernoulli, mixture of Bernoullis, VAE

What they must arrive at is in `answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, final

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lowerbound import models
from lowerbound.covariances import Diagonal
from lowerbound.data.module import TensorDataModule, _take
from lowerbound.data.source import Source
from lowerbound.dense_covariances import LowRank
from lowerbound.em import EMFit
from lowerbound.errors import whole
from lowerbound.fit import Fit
from lowerbound.gradient import GradientFit
from lowerbound.likelihoods import NoisePerDimension
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, LogEvidence, Objective, Reconstruction
from lowerbound.run import learn
from lowerbound.schedules import Linear
from lowerbound.solve import ClosedFormFit
from lowerbound.starts import FromRows, Start

EPOCHS = 1000  # at most, of EM
BLOCK = 64  # optimizer steps between two looks of Lightning, or as many as the epoch has
Learner = Callable[[LatentVariableModel], Fit]


@final
@dataclass(kw_only=True, eq=False, repr=False)
class Prepared(TensorDataModule):
    """Parts that were split and prepared already: every fit sees the same rows with the same noise."""

    parts: Mapping[str, Tensor]

    def read(self) -> Source:
        """The rows that are trained and tested on."""
        return Source(self.parts["train"], test=self.parts["test"])

    def _split(self, source: Source) -> Any:
        return {name: _take(x, None, torch.arange(len(x))) for name, x in self.parts.items()}


@dataclass(frozen=True)
class Sizes:
    """How large and how long: L, K, the samples of the importance-weighted bound, the optimizer steps of gradient learning."""

    latent_dim: int = 10
    num_components: int = 10
    num_samples: int = 64
    steps: int = 2000

    def __post_init__(self) -> None:
        for option in ("latent_dim", "num_components", "num_samples", "steps"):
            whole(getattr(self, option), option)


@dataclass(frozen=True)
class Rung:
    """A model and a way of learning it.

    `answer` names what it must arrive at in training data, `tolerances` how near, for each quantity that the model knows of log p(x):
    nats, or, of squared errors, per cent. `degrees` is how far its plane may be off that of PCA.
    """

    name: str
    way: str
    model: Callable[[], LatentVariableModel]
    fit: Learner
    answer: str = ""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    degrees: float | None = None


class Climbed(NamedTuple):
    """A rung with the model that was learnt, and the seconds that it took."""

    rung: Rung
    model: LatentVariableModel
    seconds: float


def ascent(objective: Objective, lr: float, start: Start | None = None) -> Learner:
    """Adam, with a learning rate that falls linearly to a thousandth."""
    falling = Linear(start=1.0, end=1e-3, fraction=1.0)
    adam = partial(torch.optim.Adam, lr=lr)
    return partial(GradientFit, objective=objective, optimizer=adam, scheduler=falling, steps_per_execution=BLOCK, start=start)


def linear_ascent(objective: Objective) -> Learner:
    """`ascent` of a linear model, from the mean and the total variance of the data; the axes are for it to find."""
    return ascent(objective, 0.03, FromRows())


def network_vae(dim: int, latent_dim: int, per_dimension: bool) -> LatentVariableModel:
    """A VAE with one hidden layer each way, and a learnt scale for all dimensions or one for each."""
    model = models.vae(dim, latent_dim, sizes=(256,))
    if per_dimension:
        model.likelihood.noise = NoisePerDimension(dim)
    return model


def densities(dim: int, sizes: Sizes) -> list[Rung]:
    """The rungs of data that are real numbers."""
    latent, many = sizes.latent_dim, sizes.num_components
    elbo = ELBO(reconstruction="analytic")
    ppca = partial(models.ppca, dim, latent)
    return [
        Rung("Gaussian", "closed form", lambda: models.gaussian(dim), ClosedFormFit, "gaussian", {"exact": 1e-6}),
        Rung("PCA", "closed form", lambda: models.pca(dim, latent), ClosedFormFit, "pca", {"squared error": 1e-6}, degrees=1e-5),
        Rung(
            "linear autoencoder",
            "gradient",
            lambda: models.linear_autoencoder(dim, latent),
            linear_ascent(Reconstruction()),
            "pca",
            {"squared error": 0.1},
            degrees=1.0,
        ),
        Rung("PPCA", "closed form", ppca, ClosedFormFit, "ppca", {"exact": 1e-6}),
        Rung("PPCA", "EM", ppca, partial(EMFit, tolerance=1e-11), "ppca", {"exact": 1e-6}),
        Rung("PPCA", "gradient", ppca, linear_ascent(LogEvidence()), "ppca", {"exact": 0.05}),
        Rung("factor analysis", "EM", lambda: models.factor_analysis(dim, latent), partial(EMFit, tolerance=1e-8)),
        Rung(f"{many} Gaussians", "EM", lambda: models.gaussian_mixture(dim, many, Diagonal(many, dim)), partial(EMFit, tolerance=1e-4)),
        Rung(f"{many} PPCAs", "EM", lambda: models.gaussian_mixture(dim, many, LowRank(many, dim, latent)), partial(EMFit, tolerance=1e-4)),
        Rung("linear VAE", "gradient", lambda: models.linear_vae(dim, latent), linear_ascent(elbo), "ppca", {"exact": 0.05, "ELBO": 0.1}),
        Rung("VAE, shared noise", "gradient", partial(network_vae, dim, latent, False), ascent(ELBO(), 2e-3)),
        Rung("VAE, noise per dimension", "gradient", partial(network_vae, dim, latent, True), ascent(ELBO(), 2e-3)),
    ]


def probabilities(dim: int, sizes: Sizes) -> list[Rung]:
    """The rungs of data that are bits."""
    many = sizes.num_components
    return [
        Rung("Bernoulli", "closed form", lambda: models.bernoulli(dim), ClosedFormFit, "bernoulli", {"exact": 1e-6}),
        Rung(f"{many} Bernoullis", "EM", lambda: models.bernoulli_mixture(dim, many), partial(EMFit, tolerance=1e-4)),
        Rung("VAE", "gradient", lambda: models.vae(dim, sizes.latent_dim, "bernoulli", (256,)), ascent(ELBO(), 2e-3)),
    ]


def climb(rung: Rung, data: Prepared, steps: int, seed: int, callbacks: Sequence[Callback] = (), **trainer: Any) -> Climbed:
    """Learn a rung. Gradient learning takes `steps` optimizer steps, EM ends by its tolerance."""
    torch.manual_seed(seed)
    model = rung.model()
    length = {"max_epochs": -1, "max_steps": steps} if rung.way == "gradient" else {"max_epochs": EPOCHS}
    started = perf_counter()
    learn(model, rung.fit, data, seed, callbacks=list(callbacks), limit_val_batches=0, enable_progress_bar=False, **length, **trainer)
    return Climbed(rung, model, perf_counter() - started)
