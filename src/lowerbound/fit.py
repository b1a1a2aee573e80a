"""Learning. ``Fit(model)`` is the LightningModule of that model.

`Fit` owns validation, test, prediction and logging, so that every way of learning reports the same quantities, in nats per
datum. The ways of learning are its subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lowerbound.data.module import TensorDataModule
from lowerbound.metrics import BoundMeans, sums
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, Objective, Reconstruction
from lowerbound.schedules import Step

EVALUATION_SEED = 0


def rows(batch: Any, data_dim: int) -> Tensor:
    """The data of a batch: x of x or (x, labels), images flattened; ``[B, D]``, or a block ``[K, B, D]``.

    Raises:
        ValueError: the batch does not hold rows of `data_dim` numbers.
    """
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    x = x if x.ndim == 3 and x.shape[-1] == data_dim else x.flatten(1)
    if x.shape[-1] != data_dim:
        raise ValueError(f"the loader yields {tuple(x.shape)}, which are no rows of the model's data_dim={data_dim} numbers")
    return x


class Fit(LightningModule, ABC):
    """The LightningModule of a model. Implement `training_step` and `configure_optimizers`; inherit the rest.

    Logs ``{train,val,test}/{loss,elbo,reconstruction,kl}``, training means since the last validation together with each
    validation. Validation draws from generators of its own, so it does not change training.
    """

    steps_per_execution: int = 1

    def __init__(self, model: LatentVariableModel, objective: Objective | None = None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or (ELBO() if model.is_bounded else Reconstruction())
        self.clock = Step()
        self.rows_seen = 0
        self.remarks: list[str] = []
        self.train_means, self.val_means, self.test_means = (BoundMeans(model.is_bounded) for _ in range(3))

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Learn from a batch ``[B, D]`` or a block ``[K, B, D]``."""

    @property
    def evaluation_model(self) -> LatentVariableModel:
        """The model that is validated, tested and saved as the result."""
        return self.model

    @property
    def monitor(self) -> str:
        """The logged key by which the best weights are chosen: the larger the better."""
        return f"val/{self.model.monitor}"

    def on_fit_start(self) -> None:
        """Check the training data, where they are known beforehand, against the model."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TensorDataModule):
            for x in data.chunks("train"):
                self._check_data(x)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the first batch of a loader of the user's, of which nothing else is known, against the model."""
        if not self.rows_seen and not isinstance(getattr(self.trainer, "datamodule", None), TensorDataModule):
            self._check_data(rows(batch, self.model.data_dim).flatten(0, -2))

    def _check_data(self, x: Tensor) -> None:
        remark = self.model.check_data(x)
        if remark and remark not in self.remarks:
            self.remarks.append(remark)
            rank_zero_warn(remark, category=UserWarning)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the optimizer step that schedules are functions of, and how the data were prepared."""
        checkpoint["clock"] = [self.clock.now, self.clock.total]
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TensorDataModule):
            checkpoint["preparation"] = dict(data.prepare.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the optimizer step."""
        self.clock = Step(*checkpoint["clock"])

    def log_means(self, stage: str, means: BoundMeans, **others: float) -> None:
        """Log the means under ``stage/``, at the optimizer step, and begin anew."""
        values = {f"{stage}/{name}": value for name, value in means.compute().items()}
        means.reset()
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in {**others, "step": self.clock.now}.items()}
        # The means are already those of all ranks; saying so once more only keeps Lightning from warning.
        self.log_dict(values | exact, sync_dist=True)

    @property
    def settings(self) -> dict[str, float]:
        """What changes over the run and is logged with each validation."""
        beta = self.objective.beta
        return {} if beta is None else {"beta": beta(self.clock)}

    def evaluate(self, batch: Any, means: BoundMeans) -> None:
        """Add a batch to the means of validation or test."""
        x = rows(batch, self.model.data_dim)
        means.update(sums(self.objective(self.evaluation_model, x, self.clock)), len(x))

    def on_validation_epoch_start(self) -> None:
        """Set the generators aside: every validation sees the same draws, and training does not see validation."""
        self._generators = (torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
        torch.manual_seed(EVALUATION_SEED + self.global_rank)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation's means."""
        self.evaluate(batch, self.val_means)

    def on_validation_epoch_end(self) -> None:
        """Log training and validation side by side and go on with the generators of training."""
        cpu, cuda = self._generators
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if self.trainer.sanity_checking:
            self.val_means.reset()
            return
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.log_means("train", self.train_means)
        self.log_means("val", self.val_means, **(self.settings if fitting else {}))

    def on_test_epoch_start(self) -> None:
        """Draw the same noise in every test."""
        torch.manual_seed(EVALUATION_SEED + self.global_rank)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test's means."""
        self.evaluate(batch, self.test_means)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self.log_means("test", self.test_means)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The codes ``[B, L]`` of a batch: the posterior means."""
        return self.evaluation_model.encode(rows(batch, self.model.data_dim))
