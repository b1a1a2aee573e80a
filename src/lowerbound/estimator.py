"""What scikit-learn asks of an estimator, said once for all models; the estimators themselves are in `estimators`.

All rows given to `fit` are learnt from: none is kept for validation or test. A missing entry is NaN. Nothing is written to disk,
nothing is printed, and torch's, NumPy's and Python's own generators are left as they were.
"""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lowerbound.data import InMemory
from lowerbound.data.missing import never_observed
from lowerbound.em import EMFit
from lowerbound.errors import Remark, real, whole
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.randomness import own_generators

Random = int | np.random.RandomState | None

DTYPES: Any = (np.float64, np.float32)
ROWS = 100  # at a time
ALONE: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "limit_val_batches": 0, "limit_test_batches": 0, "num_sanity_val_steps": 0}
MUTE: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing inside: of what it was asked for, of the machine, of loaders."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Estimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """A model that is fitted to rows ``[N, D]``, NumPy in and NumPy out. Implement `_learn`.

    `transform` gives E[z | x] ``[N, L]``, `inverse_transform` E[x | z] ``[N, D]``, `score_samples` log p(x) ``[N]`` in nats per
    datum, of the observed entries. `random_state` is as everywhere in scikit-learn: a number gives the same bits at every fit, and
    None draws from NumPy's own generator.

    Attributes: `model_`, the fitted model; `density_model_`, the one whose p(x) is scored and sampled, in all but `PCA` the same.
    """

    accepts_missing = True
    n_components: int
    random_state: Random
    model_: LatentVariableModel
    density_model_: LatentVariableModel

    @abstractmethod
    def _learn(self, x: NDArray[Any], seed: int) -> None:
        """Set `model_` and `density_model_` from rows ``[N, D]``, with torch's generators seeded.

        Raises:
            ValueError: a parameter is out of its range, or does not fit the rows.
        """

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn from all rows ``[N, D]``; y is not looked at.

        Raises:
            ValueError: the rows are no finite numbers, or a parameter does not fit them.
        """
        x, seed = self._checked(X, reset=True), self._seed()
        with own_generators(seed):
            self._learn(x.astype(np.float64, copy=False), seed)
        self.model_.eval()
        self.density_model_.eval()
        self._n_features_out = self.model_.latent_dim
        self._tell(torch.tensor(x))
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """E[z | x] ``[N, L]`` of rows ``[N, D]``: codes, or of a mixture responsibilities."""
        x = self._checked(X)
        return in_batches(self.model_.encode, x).astype(x.dtype, copy=False)

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """E[x | z] ``[N, D]`` of codes ``[N, L]``.

        Raises:
            ValueError: there are not L columns.
        """
        check_is_fitted(self, "model_")
        z = check_array(X, dtype=DTYPES)
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"X has {z.shape[1]} columns, and this {type(self).__name__} makes codes of {self._n_features_out}")
        return in_batches(lambda z: self.model_.likelihood(z.double()).mean, z).astype(z.dtype, copy=False)

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """log p(x) of each row, ``[N]``, in nats."""
        return in_batches(self._log_prob, self._checked(X))

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean of log p(x) over rows, in nats per datum: the larger the better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> NDArray[np.float64]:
        """Draws from p(x) ``[n_samples, D]``, the same for the same `random_state`.

        Raises:
            ValueError: `n_samples` is no number of at least 1.
        """
        check_is_fitted(self, "model_")
        with own_generators(self._seed()):
            return self.density_model_.sample(whole(n_samples, "n_samples"), noise=True).double().numpy()

    def _log_prob(self, x: Tensor) -> Tensor:
        """log p(x) ``[N]``, exactly."""
        return self.density_model_.log_prob(x)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        assert tags.transformer_tags is not None
        tags.input_tags.allow_nan = self.accepts_missing
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _checked(self, X: ArrayLike, reset: bool = False) -> NDArray[Any]:
        """The rows as floats; a first time, at least two of them."""
        if not reset:
            check_is_fitted(self, "model_")
        rules: Any = {"ensure_all_finite": "allow-nan" if self.accepts_missing else True, "ensure_min_samples": 1 + reset}
        validate: Any = validate_data  # whose types are guessed from its defaults
        return validate(self, X, reset=reset, dtype=DTYPES, **rules)

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31))

    def _below(self, *limits: tuple[str, int]) -> int:
        """`n_components`, if it is below the limits."""
        count = whole(self.n_components, "n_components")
        for name, limit in limits:
            if count >= limit:
                raise ValueError(f"n_components={count} must be below {name}={limit}")
        return count

    def _shortfall(self) -> str | None:
        """A sentence if learning ended too soon."""
        return None

    def _tell(self, x: Tensor) -> None:
        """Warn of what a reader of the numbers must know."""
        if (sentence := self._shortfall()) is not None:
            warnings.warn(sentence, ConvergenceWarning, stacklevel=3)
        about_data = never_observed([x]) if x.isnan().any() else ()
        for remark in (self.density_model_.check_data(x), self.density_model_.likelihood.floored(), *about_data):
            if remark is not None:
                warnings.warn(remark, Remark, stacklevel=3)


def in_batches(of: Callable[[Tensor], Tensor], x: NDArray[Any]) -> NDArray[Any]:
    """What a function makes of rows, some at a time."""
    with torch.no_grad():
        return torch.cat([of(rows) for rows in torch.tensor(x).split(ROWS)]).numpy()


def follow(learner: Fit, x: NDArray[Any], seed: int, batch_size: int = 128, **limits: Any) -> None:
    """Fit to all rows ``[N, D]``, on the CPU, in this process alone."""
    with quiet():
        data = InMemory(x, batch_size=batch_size, val_fraction=0.0, test_fraction=0.0, seed=seed)
        Trainer(**ALONE, **MUTE, plugins=[LightningEnvironment()], **limits).fit(learner, datamodule=data)


class Solved(Estimator, ABC):
    """What is learnt by EM, or in closed form.

    EM ends with the step that raises the objective by less than `tol` nats per datum (`converged_`), or after `max_iter` steps, with
    a ``ConvergenceWarning``; `n_iter_` is how many it took.
    """

    tol: float
    max_iter: int
    n_iter_: int
    converged_: bool

    def _by_em(self, model: LatentVariableModel, x: NDArray[Any], seed: int) -> LatentVariableModel:
        """The model, fitted by EM."""
        tol, most = real(self.tol, "tol, in nats per datum,", least=0), whole(self.max_iter, "max_iter")
        learner = EMFit(model, tol)
        follow(learner, x, seed, max_steps=most, max_epochs=-1)
        self.n_iter_, self.converged_ = learner.clock.now, learner.has_converged or not tol
        return model

    def _shortfall(self) -> str | None:
        if self.converged_:
            return None
        return f"EM ended after max_iter={self.n_iter_} steps, before one raised the objective by less than tol={self.tol:g} nats per datum"
