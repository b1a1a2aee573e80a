"""Learning. ``Fit(model)`` is the LightningModule of that model.

`Fit` owns validation, test, prediction and logging, so that every way of learning reports the same quantities, in nats per
datum. The ways of learning are its subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lowerbound import resuming
from lowerbound.data.missing import never_observed
from lowerbound.data.module import PARTS, TensorDataModule
from lowerbound.errors import NonFiniteError, Remark, to_its_end
from lowerbound.folder import last_good
from lowerbound.metrics import BoundMeans, RootMeanSquare, sums
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, LogEvidence, Objective, Reconstruction
from lowerbound.randomness import own_generators
from lowerbound.schedules import Step
from lowerbound.starts import Start

START_ROWS = 10_000  # that a start is taken from
CHUNK = 250  # rows that are measured with one draw of noise
WHOLE = ("32-true", "64-true")  # precisions that leave a float64 model as it is


@dataclass
class Measured:
    """The means of a validation or test on its way: rows that wait for their chunk, and the chunks so far.

    `unhidden` are all rows ``[n, D]`` of this rank before entries were hidden, if any were.
    """

    means: BoundMeans
    unhidden: Tensor | None = None
    waiting: list[Tensor] = field(default_factory=list)
    chunks: int = 0


def default_objective(model: LatentVariableModel) -> Objective:
    """log p(x) where it is known, else the ELBO, else the reconstruction."""
    if model.is_exact:
        return LogEvidence()
    return ELBO() if model.is_bounded else Reconstruction()


def first_rows(loader: Any, data_dim: int) -> Tensor:
    """About `START_ROWS` rows ``[n, D]`` of a loader of the user's."""
    found: list[Tensor] = []
    for batch in loader:
        found.append(rows(batch, data_dim))
        if sum(map(len, found)) >= START_ROWS:
            break
    return torch.cat(found)


def rows(batch: Any, data_dim: int) -> Tensor:
    """The data ``[B, D]`` of a batch: x of x or (x, labels), images flattened.

    Raises:
        ValueError: the batch does not hold rows of `data_dim` numbers.
    """
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    x = x.flatten(1)
    if x.shape[-1] != data_dim:
        raise ValueError(f"the loader yields {tuple(x.shape)}, which are no rows of the model's data_dim={data_dim} numbers")
    return x


class Fit(LightningModule, ABC):
    """The LightningModule of a model. Implement `training_step` and `configure_optimizers`; inherit the rest.

    Logs ``{train,val,test}/{loss,elbo,reconstruction,kl}``, training means since the last validation together with each
    validation. Validation draws from generators of its own, so it does not change training. Where the data module has hidden
    entries, ``test/imputation_rmse`` is the root mean square error of the model's means of them, in the units of the prepared data.
    """

    steps_per_execution: int = 1

    rows_per_chunk: int | None = None  # a number: the training rows are asked for in order, so many at a time

    def __init__(self, model: LatentVariableModel, objective: Objective | None = None, start: Start | None = None) -> None:
        super().__init__()
        self.model, self.start = model, start
        self.objective = objective or default_objective(model)
        self.clock = Step()
        self.rows_seen = 0
        self.seconds_before, self._started = 0.0, 0.0
        self._is_checked = False
        self.remarks: list[str] = []
        self.num_data = 0
        self.has_missing = False
        self._resumed: dict[str, Any] = {}
        self.train_means, self.val_means, self.test_means = (BoundMeans(model.is_bounded, model.is_exact) for _ in range(3))
        self.imputation = RootMeanSquare()

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
        """Check the precision, and the data, where they are known beforehand, against the model."""
        self._started = perf_counter()
        if self.trainer.precision not in WHOLE and any(p.dtype == torch.float64 for p in self.model.parameters()):
            raise ValueError(
                f"trainer.precision={self.trainer.precision} has no effect on this model, which computes in float64:\n"
                "set trainer.precision=32-true or 64-true"
            )
        data, self.has_missing = getattr(self.trainer, "datamodule", None), False
        self._is_checked = isinstance(data, TensorDataModule)
        if isinstance(data, TensorDataModule):
            needed = [part for part in PARTS if part == "train" or getattr(self.trainer, f"limit_{part}_batches") != 0]
            data.require_rows(self.trainer.world_size, needed)
            for part in PARTS:
                for x in data.chunks(part):
                    self._check_data(x)
                    self.has_missing |= part == "train" and bool(x.isnan().any())
            for sentence in never_observed(data.chunks("train")) if self.has_missing else ():
                self._remark(sentence)

    def on_fit_end(self) -> None:
        """Stop the clock."""
        self.seconds_before, self._started = self.seconds, 0.0

    @property
    def seconds(self) -> float:
        """The time that the fit has taken so far, that before an interruption included."""
        return self.seconds_before + (perf_counter() - self._started if self._started else 0.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the first batch of a loader of the user's, of which nothing else is known, against the model."""
        if not self._is_checked:
            self._check_data(rows(batch, self.model.data_dim))
            self._is_checked = True

    def _check_data(self, x: Tensor) -> None:
        if remark := self.model.check_data(x):
            self._remark(remark)

    def _remark(self, sentence: str) -> None:
        """Say it, and keep it for the results; once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)
            rank_zero_warn(sentence, category=Remark)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what Lightning does not."""
        resuming.keep(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the optimizer step now, and the rest when training starts."""
        self._resumed = resuming.take(self, checkpoint)

    def on_train_start(self) -> None:
        """Take the start, or go on where the checkpoint was written."""
        self.num_data = self.count_data()
        if not self._resumed:
            self._begin()
        for part in self.model.solvable if self.num_data else ():
            part.expect_data(self.num_data)
        if self._resumed:
            resuming.put_back(self, self._resumed)
        self._resumed = {}

    def count_data(self) -> int:
        """The training rows of all ranks; 0 where a loader of the user's does not say."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, TensorDataModule):
            return data.count("train")
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else 0

    def _begin(self) -> None:
        """Give the model its start from training rows, drawn with a generator of its own: the same on any number of ranks."""
        data, loader = getattr(self.trainer, "datamodule", None), self.trainer.train_dataloader
        if self.start is None or loader is None:
            return
        x = data.some("train", START_ROWS) if isinstance(data, TensorDataModule) else first_rows(loader, self.model.data_dim)
        with own_generators(torch.initial_seed()):
            self.start(self.model, x.to(self.device), max(self.num_data, len(x)))
        self._agree()

    def _agree(self) -> None:
        """Let every rank have the start of rank 0: their loaders may have given them other rows."""
        for tensor in self.model.state_dict().values() if self.trainer.world_size > 1 else ():
            torch.distributed.broadcast(tensor, 0)

    def log_means(self, stage: str, means: BoundMeans, **others: float) -> None:
        """Log the means under ``stage/``, at the optimizer step, and begin anew."""
        values = {f"{stage}/{name}": value for name, value in means.compute().items()}
        means.reset()
        if bad := [name for name, value in values.items() if not value.isfinite()]:
            folder = Path(self.trainer.default_root_dir)
            raise NonFiniteError(f"after optimizer step {self.clock.now}: {', '.join(bad)} not finite. {last_good(folder)}.")
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in {**others, "step": self.clock.now}.items()}
        # The means are already those of all ranks; saying so once more only keeps Lightning from warning.
        self.log_dict(values | exact, sync_dist=True)

    @property
    def settings(self) -> dict[str, float]:
        """What changes over the run and is logged with each validation."""
        beta = self.objective.beta
        return {} if beta is None else {"beta": beta(self.clock)}

    def on_validation_epoch_start(self) -> None:
        """Begin to measure: every validation sees the same noise, and training does not see validation."""
        self._measured = Measured(self.val_means)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation's means."""
        self._add(batch)

    def on_validation_epoch_end(self) -> None:
        """Log training and validation side by side."""
        self._measure(all_rows=True)
        if self.trainer.sanity_checking:
            self.val_means.reset()
            return
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.train_means.update_called:
            self.log_means("train", self.train_means)
        self.log_means("val", self.val_means, **(self.settings if fitting else {}))

    def on_test_epoch_start(self) -> None:
        """Begin to measure, with the same noise in every test."""
        data, unhidden = getattr(self.trainer, "datamodule", None), None
        if isinstance(data, TensorDataModule) and data.missing.hides and self.model.accepts_missing:
            unhidden = data.unhidden_batches("test").rows()
        self._measured = Measured(self.test_means, unhidden)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test's means."""
        self._add(batch)

    def on_test_epoch_end(self) -> None:
        """Log the test."""
        self._measure(all_rows=True)
        rmse = None if self._measured.unhidden is None else self.imputation.compute()
        self.imputation.reset()
        self.log_means("test", self.test_means, **({} if rmse is None else {"test/imputation_rmse": rmse.item()}))

    def _add(self, batch: Any) -> None:
        self._measured.waiting.append(rows(batch, self.model.data_dim))
        self._measure(all_rows=False)

    @to_its_end
    def _measure(self, all_rows: bool) -> None:
        """Measure the rows that wait, in chunks of a fixed size, each with noise of its own: the loader's batches do not matter."""
        measured = self._measured
        if not all_rows and sum(map(len, measured.waiting)) < CHUNK:
            return
        chunks = torch.cat(measured.waiting).split(CHUNK) if measured.waiting else ()
        measured.waiting = [] if all_rows or not chunks or len(chunks[-1]) == CHUNK else [chunks[-1]]
        for x in chunks[: len(chunks) - len(measured.waiting)]:
            with own_generators(measured.chunks * self.trainer.world_size + self.global_rank):
                bound = self.objective(self.evaluation_model, x, self.clock)
            measured.means.update(sums(bound), len(x))
            if measured.unhidden is not None:
                self._impute(x, measured.unhidden[measured.chunks * CHUNK :][: len(x)])
            measured.chunks += 1

    def _impute(self, x: Tensor, truth: Tensor) -> None:
        """Add the errors of what the model fills in for the hidden entries of x ``[n, D]``."""
        with own_generators(self._measured.chunks * self.trainer.world_size + self.global_rank):
            filled = self.evaluation_model.impute(x).mean
        self.imputation.update((filled - truth)[x.isnan() & ~truth.isnan()])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Whatever ends a run, a validation ends it: also max_steps inside an epoch, and the clock."""
        trainer = self.trainer
        if 0 <= trainer.max_steps <= self.global_step:
            trainer.should_stop = True
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The codes ``[B, L]`` of a batch: the posterior means."""
        return self.evaluation_model.encode(rows(batch, self.model.data_dim))
