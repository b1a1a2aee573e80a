"""A run folder as objects: `load`, and what can be asked of its model in the data's own units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig
from torch import Tensor

from lowerbound import folder as files
from lowerbound.bounds import importance_weighted_bound
from lowerbound.data.prepare import Preparation
from lowerbound.data.source import as_table
from lowerbound.errors import reading, whole
from lowerbound.model import TAKES_MISSING, LatentVariableModel
from lowerbound.randomness import own_generators
from lowerbound.trust import packages, safe_instantiate

T = TypeVar("T")
ROWS = 100  # at a time


@dataclass(frozen=True)
class Loaded:
    """A run folder as objects: the model with its best weights, the data's preparation, the configuration, the trusted packages.

    `model` takes and gives prepared rows. The methods take rows ``[N, D]`` in the data's own units and give them back so, NumPy for
    NumPy and tensors for tensors; where the preparation is random (dequantization), it has one draw, the same every time.
    """

    model: LatentVariableModel
    prepare: Preparation | None
    config: DictConfig
    trust: tuple[str, ...] = ()

    def encode(self, rows: ArrayLike | Tensor) -> Any:
        """The mean of q(z | x) ``[N, L]``."""
        return self._asked("encode", rows)

    def decode(self, z: ArrayLike | Tensor) -> Any:
        """The mean of p(x | z) ``[N, D]`` of codes ``[N, L]``.

        Raises:
            ValueError: there are not L columns.
        """
        codes = torch.as_tensor(z)
        if codes.ndim != 2 or codes.shape[1] != self.model.latent_dim:
            raise ValueError(f"codes of shape {tuple(codes.shape)}, and the model's are [N, {self.model.latent_dim}]")
        return _like(z, self._in_batches(lambda z: self.original(self.model.likelihood(z).mean), codes))

    def reconstruct(self, rows: ArrayLike | Tensor) -> Any:
        """The mean of p(x | z) ``[N, D]`` at the mean of q(z | x)."""
        return self._asked("reconstruct", rows)

    def impute(self, rows: ArrayLike | Tensor) -> Any:
        """The rows ``[N, D]``, in which missing entries (NaN) are E[x_missing | x_observed].

        Raises:
            ValueError: the model does not accept missing entries.
        """
        return self._asked("impute", rows)

    def log_prob(self, rows: ArrayLike | Tensor, num_samples: int = 100) -> Any:
        """log p(x) ``[N]`` in nats, of the prepared rows: exact where the model has it, else a lower bound by samples of z."""
        return self._asked("log_prob", rows, num_samples)

    def sample(self, num_data: int) -> Tensor:
        """Means of p(x | z) ``[num_data, D]`` at z drawn from the prior.

        Raises:
            ValueError: the prior is flat and cannot be sampled, or `num_data` is no number of rows.
        """
        return self.original(self.model.sample(whole(num_data, "num_data", least=0)))

    def prepared(self, rows: ArrayLike | Tensor, name: str = "rows") -> Tensor:
        """Rows ``[N, D]`` as the model takes them.

        Raises:
            ValueError: there are other columns, or values that the preparation or the model does not take; `name` is that of the rows.
        """
        raw, dim = as_table(rows), self.model.data_dim
        if raw.shape[1] != dim:
            raise ValueError(f"{name} has {raw.shape[1]} columns, and the model of run={self.config.name} has {dim}")
        if not self.model.accepts_missing and (lost := int(raw.isnan().any(1).sum())):
            raise ValueError(f"{name}: NaN in {lost} of {len(raw)}, which the model does not marginalise:\n{TAKES_MISSING}")
        if self.prepare is None:
            return raw
        try:
            self.prepare.check(raw)
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).splitlines()[0]}, as those of the run are") from error
        return self.prepare(raw, torch.Generator().manual_seed(0))

    def original(self, y: Tensor) -> Tensor:
        """Prepared rows in the data's own units."""
        return y if self.prepare is None else self.prepare.inverse(y)

    def outputs(self, num_samples: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """What can be asked of prepared rows ``[n, D]``, by name; log p(x) is a bound by `num_samples` samples where it is not known."""
        model = self.model

        def log_prob(x: Tensor) -> Tensor:
            return model.log_prob(x) if model.is_exact else importance_weighted_bound(model, x, num_samples)

        return {
            "encode": model.encode,
            "reconstruct": lambda x: self.original(model.reconstruct(x)),
            "log_prob": log_prob,
            "impute": lambda x: self.original(model.impute(x).mean),
        }

    def answered(self, output: str, x: Tensor, num_samples: int = 1) -> Tensor:
        """One of the outputs of all prepared rows ``[N, D]``, with the same noise every time."""
        return self._in_batches(self.outputs(num_samples)[output], x)

    def _asked(self, output: str, rows: ArrayLike | Tensor, num_samples: int = 1) -> Any:
        return _like(rows, self.answered(output, self.prepared(rows), num_samples))

    def _in_batches(self, of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad(), own_generators(0):
            return torch.cat([of(part) for part in x.to(next(self.model.parameters())).split(ROWS)])


def load(folder: str | Path, trust: str | Sequence[str] = ()) -> Loaded:
    """The model of a run folder, with the same log-densities to the last bit; nothing in the folder can run code.

    Args:
        folder: it may be a stranger's.
        trust: packages of your own, whose classes it may build beside those of this package.

    Raises:
        ValueError: the folder is no complete run folder, or something in it could do more than hold a model.
    """
    files.require_own(folder)
    config = files.read_config(files.existing(folder, files.CONFIG))
    if not config.get("model") or not config.get("data"):
        raise ValueError(f"{folder}/{files.CONFIG} is no configuration of a run, which has a model and data: put the run's own back")
    checkpoint = files.read_checkpoint(files.existing(folder, files.WEIGHTS))
    state = files.model_state(checkpoint)
    with reading(Path(folder) / files.CONFIG):
        files.require_fitting(_outline(config, trust).state_dict(), state, str(Path(folder) / files.WEIGHTS))
        model = _built(config, "model", LatentVariableModel, trust)
        model.to(next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32))
        model.load_state_dict(state)
        return Loaded(model.eval(), load_preparation(config, checkpoint, trust), config, packages(trust))


def load_preparation(config: DictConfig, checkpoint: dict[str, Any], trust: str | Sequence[str] = ()) -> Preparation | None:
    """How the data were prepared, with the statistics of the training part; None for data modules that do not say."""
    if "preparation" not in checkpoint:
        return None
    prepare = _built(config, "data.prepare", Preparation, trust)
    prepare.load_state_dict(checkpoint["preparation"])
    return prepare


def _outline(config: DictConfig, trust: str | Sequence[str]) -> LatentVariableModel:
    """The model without memory for its parameters, so that their shapes are known before a stranger's sizes are taken at their word."""
    try:
        with torch.device("meta"):
            return _built(config, "model", LatentVariableModel, trust)
    except RuntimeError:  # also of a class that looks at its values, which ours do not
        if not packages(trust):
            raise
        return _built(config, "model", LatentVariableModel, trust)


def _built(config: DictConfig, key: str, kind: type[T], trust: str | Sequence[str]) -> T:
    """What stands at a key of a run's configuration, if it is of the kind that has to stand there."""
    found = safe_instantiate(config, key, trust)
    if not isinstance(found, kind):
        raise ValueError(f"{key} of the run folder is a {type(found).__name__}, and no {kind.__name__}")
    return found


def _like(rows: ArrayLike | Tensor, found: Tensor) -> Tensor | NDArray[Any]:
    """A tensor for a tensor, an array for anything else."""
    return found if isinstance(rows, Tensor) else found.cpu().numpy()
