"""The models as scikit-learn estimators, for its pipelines, grid searches and cross-validations.

Each has the name under which a user of scikit-learn looks for it, and that library's words for its parameters: `n_components` is L,
or of a mixture K. They live here and not at the top of the package, where `pca` in small letters makes the model itself. What
`fit` has learnt is `model_`, for everything else in the package.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final
from zlib import crc32

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lowerbound import models
from lowerbound.axes import canonical
from lowerbound.bounds import importance_weighted_bound
from lowerbound.covariances import Covariance, Diagonal, Spherical
from lowerbound.dense_covariances import Full, Tied
from lowerbound.errors import real, whole
from lowerbound.errors import sizes as checked
from lowerbound.estimator import Estimator, Random, Solved, follow, in_batches
from lowerbound.gradient import GradientFit
from lowerbound.model import LatentVariableModel
from lowerbound.randomness import own_generators
from lowerbound.solve import ClosedFormFit
from lowerbound.starts import FromPCA

__all__ = ["PCA", "PPCA", "VAE", "FactorAnalysis", "GaussianMixture"]

Make = Callable[[int, int], LatentVariableModel]  # of data_dim and latent_dim

COVARIANCES: dict[str, Callable[[int, int], Covariance]] = {"full": Full, "tied": Tied, "diag": Diagonal, "spherical": Spherical}


class LinearEstimator(Solved, ABC):
    """The parameters of the linear models, whose codes are along principal axes, in order."""

    def __init__(self, n_components: int = 1, *, tol: float = 1e-6, max_iter: int = 1000, random_state: Random = 0) -> None:
        self.n_components = n_components
        self.tol, self.max_iter = tol, max_iter
        self.random_state = random_state

    def _closed_form(self, make: Make, x: NDArray[Any], seed: int) -> LatentVariableModel:
        """The model of that constructor in closed form, or by EM where entries are missing."""
        if np.isnan(x).any():
            return self._ascended(make, x, seed)
        model = self._made(make, x)
        follow(ClosedFormFit(model), x, seed, max_epochs=1)
        self.n_iter_, self.converged_ = 1, True
        return model

    def _ascended(self, make: Make, x: NDArray[Any], seed: int) -> LatentVariableModel:
        """The model of that constructor by EM, which leaves any rotation of the axes, turned to the principal ones."""
        model = self._by_em(self._made(make, x), x, seed)
        whole_rows = None if model.prior.is_proper else torch.from_numpy(in_batches(lambda rows: model.impute(rows).mean, x))
        return canonical(model, whole_rows)

    def _made(self, make: Make, x: NDArray[Any]) -> LatentVariableModel:
        return make(x.shape[1], self._below(("n_features", x.shape[1]), ("n_samples", x.shape[0])))


@final
class PCA(LinearEstimator):
    """The plane nearest to the rows, of dimension `n_components`: codes are orthogonal projections.

    It has no density of its own: `score_samples` and `sample` are those of the probabilistic PCA of the same rows,
    `density_model_`. In closed form, or by EM where entries are missing.
    """

    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """The plane, and its probabilistic PCA."""
        self.density_model_ = self._closed_form(models.ppca, x, seed)
        self.model_ = self._closed_form(models.pca, x, seed)


@final
class PPCA(LinearEstimator):
    """Probabilistic PCA (Tipping & Bishop 1999) with `n_components` latents, in closed form, or by EM where entries are missing."""

    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """The maximum of the likelihood."""
        self.model_ = self.density_model_ = self._closed_form(models.ppca, x, seed)


@final
class FactorAnalysis(LinearEstimator):
    """Factor analysis (Rubin & Thayer 1982) with `n_components` factors, by EM."""

    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """A maximum of the likelihood."""
        self.model_ = self.density_model_ = self._ascended(models.factor_analysis, x, seed)


@final
class GaussianMixture(Solved):
    """A mixture of `n_components` Gaussians, by EM from k-means; `transform` gives responsibilities.

    `covariance_type` is full, tied, diag or spherical. `pseudo_counts` is the prior of the parameters: so many further data for each
    component, with the variances of all rows; 0 is maximum likelihood.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        pseudo_counts: float = 1.0,
        tol: float = 1e-6,
        max_iter: int = 1000,
        random_state: Random = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type, self.pseudo_counts = covariance_type, pseudo_counts
        self.tol, self.max_iter = tol, max_iter
        self.random_state = random_state

    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """A maximum of the likelihood times the prior of the parameters."""
        count, dim = self._below(("n_samples + 1", x.shape[0] + 1)), x.shape[1]
        if self.covariance_type not in COVARIANCES:
            raise ValueError(f"covariance_type={self.covariance_type!r} is unknown: one of {', '.join(COVARIANCES)}")
        covariance = COVARIANCES[self.covariance_type](count, dim)
        self.model_ = self.density_model_ = self._by_em(models.gaussian_mixture(dim, count, covariance, self.pseudo_counts), x, seed)

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """p(z | x) ``[N, K]``: what `transform` gives."""
        x = self._checked(X)
        return in_batches(self.model_.encode, x)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """The component that is likeliest for each row, ``[N]``."""
        return self.predict_proba(X).argmax(1)


@final
class VAE(Estimator):
    """A variational autoencoder (Kingma & Welling 2014) with `n_components` latents, by `max_epochs` of Adam; NaN is refused.

    `likelihood` is gaussian, with one learnt scale, or bernoulli, for rows in [0, 1]. Encoder and decoder are MLPs with hidden
    layers of `hidden_layer_sizes`, and start as probabilistic PCA: each layer is at least twice as wide as z. Learning is in
    float32, and the last weights are kept, with no rows set aside to choose others: `max_epochs` is a parameter to be searched.
    log p(x) is not known, and `score_samples` is a lower bound of it in expectation, importance-weighted by `num_samples` draws of z
    (Burda et al. 2016), with noise that the row itself seeds: its score is the same in any company.
    """

    accepts_missing = False

    def __init__(
        self,
        n_components: int = 1,
        *,
        likelihood: str = "gaussian",
        hidden_layer_sizes: Sequence[int] = (512,),
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        max_epochs: int = 100,
        num_samples: int = 100,
        random_state: Random = 0,
    ) -> None:
        self.n_components = n_components
        self.likelihood, self.hidden_layer_sizes = likelihood, hidden_layer_sizes
        self.learning_rate, self.batch_size, self.max_epochs = learning_rate, batch_size, max_epochs
        self.num_samples = num_samples
        self.random_state = random_state

    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """Ascend the ELBO."""
        latent_dim = self._below(("n_features", x.shape[1]), ("n_samples", x.shape[0]))
        sizes = checked(self.hidden_layer_sizes, "hidden_layer_sizes")
        if min(sizes, default=2 * latent_dim) < 2 * latent_dim:
            raise ValueError(f"hidden_layer_sizes={sizes} must be at least {2 * latent_dim} each, twice n_components={latent_dim}")
        whole(self.num_samples, "num_samples")
        model = models.vae(x.shape[1], latent_dim, self.likelihood, sizes)
        optimizer = partial(torch.optim.Adam, lr=real(self.learning_rate, "learning_rate", above=0))
        steps = {"batch_size": whole(self.batch_size, "batch_size"), "max_epochs": whole(self.max_epochs, "max_epochs")}
        follow(GradientFit(model, optimizer=optimizer, start=FromPCA()), x, seed, **steps)
        self.model_ = self.density_model_ = model.double()

    def _log_prob(self, x: Tensor) -> Tensor:
        """A lower bound of log p(x) ``[N]``, in expectation."""
        with own_generators(0):
            return torch.cat([self._bound(row) for row in x.double().split(1)])

    def _bound(self, row: Tensor) -> Tensor:
        """That of one row ``[1, D]``, with noise that only the row decides: neither its place nor its neighbours do."""
        torch.default_generator.manual_seed(crc32(row.numpy().tobytes()))  # that of the CPU: those of all devices take longer than a row
        return importance_weighted_bound(self.model_, row, self.num_samples)
