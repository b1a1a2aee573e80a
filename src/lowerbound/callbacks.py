"""What is kept of a run and seen of it while it goes on: checkpoints and pictures.

What is monitored is known by the model (`Fit.monitor`), so no configuration repeats it; larger is better. All files go into the
run folder, ``trainer.default_root_dir``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any, final

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from lowerbound import pictures, plots, preemption
from lowerbound.data.batches import TensorBatches
from lowerbound.data.module import TensorDataModule
from lowerbound.durable import require_room
from lowerbound.errors import real, whole
from lowerbound.fit import Fit, rows
from lowerbound.folder import FIGURES, LAST, WEIGHTS, write_whole
from lowerbound.model import LatentVariableModel
from lowerbound.preemption import Stopped
from lowerbound.randomness import own_generators
from lowerbound.tracking import METRICS, read_metrics, send_picture

SHARE = 0.05  # of the time, for checkpoints that are written every so many seconds


@final
class BestWeights(ModelCheckpoint):
    """`weights.ckpt`: the weights at the best validation so far."""

    def __init__(self) -> None:
        name = Path(WEIGHTS).stem
        super().__init__(filename=name, mode="max", save_weights_only=True, enable_version_counter=False, auto_insert_metric_name=False)

    def state_dict(self) -> dict[str, Any]:
        """The best so far; paths as they are within the folder, which may be moved."""
        state = super().state_dict() | {"current_score": None}  # of the last validation, which a run that goes on has not had
        return state | {"dirpath": None} | _placed(state, WEIGHTS)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, for the folder as it is called now; Lightning deletes what was the best, so no name is the checkpoint's."""
        own = _placed(state_dict, str(Path(self.dirpath or "") / WEIGHTS))
        super().load_state_dict(state_dict | own | {"dirpath": self.dirpath, "last_model_path": ""})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the monitor from the model and the folder from the trainer."""
        assert isinstance(pl_module, Fit)
        self.monitor, self.dirpath = pl_module.monitor, trainer.default_root_dir
        with warnings.catch_warnings():  # a run folder holds other files too
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)


def _placed(state: dict[str, Any], path: str) -> dict[str, Any]:
    """What `BestWeights` says of its file, the only one that it writes, if that is at this path."""
    best = dict(zip([path], state["best_k_models"].values(), strict=False))
    return {"best_k_models": best} | dict.fromkeys(("best_model_path", "kth_best_model_path"), path if best else "")


@final
class LastCheckpoint(Checkpoint):
    """`last.ckpt`: everything that is needed to go on, written after a block or an epoch when it is time, when a signal asks the run to
    stop (where `preemption.install` has been called, as the command does), and at its end.

    It is time `every_seconds`, and, if that is given, `every_n_steps` optimizer steps, after the last writing; a large one is written
    less often, so that by seconds it takes no more than a twentieth of the time (0 seconds: after every block). Nothing is written after
    an exception: the last good state stays.

    Raises:
        ValueError: a number is out of its range.
        Stopped: a signal asked for it, in training or before validation and test.
    """

    def __init__(self, every_seconds: float = 10.0, every_n_steps: int | None = None) -> None:
        self.every_seconds = real(every_seconds, "callbacks.last.every_seconds", least=0)
        self.every_n_steps = None if every_n_steps is None else whole(every_n_steps, "callbacks.last.every_n_steps")
        self._pause = self.every_seconds
        self._saved_at, self._saved_step = monotonic(), -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a folder without room for the weights, before anything is learnt."""
        require_room(Path(trainer.default_root_dir) / LAST, sum(t.nbytes for t in pl_module.state_dict().values()))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, or say where the run goes on."""
        self._saved_at, self._saved_step = monotonic(), -1
        if trainer.ckpt_path:
            self._saved_step = trainer.global_step
            rank_zero_only(print)(f"going on after optimizer step {trainer.global_step}", flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop between blocks; not where a validation follows, which a resumed run would not repeat.

        A loader of the user's does not know its place within an epoch: it is begun again from the last end of one.
        """
        if not _validates_next(trainer, batch_idx):
            self._save_or_stop(trainer, is_resumable=isinstance(trainer.train_dataloader, TensorBatches))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop after the epoch's validation."""
        self._save_or_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation that is not part of training: that is done, and saved."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop(trainer, *_agreed(trainer, bool(preemption.received())))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the test."""
        self._stop(trainer, *_agreed(trainer, bool(preemption.received())))

    def _save_or_stop(self, trainer: Trainer, is_resumable: bool = True) -> None:
        steps = trainer.global_step - max(self._saved_step, 0)
        due = monotonic() - self._saved_at >= self._pause or (self.every_n_steps is not None and steps >= self.every_n_steps)
        stop, due = _agreed(trainer, bool(preemption.received()), due)
        if is_resumable and (stop or due):
            self._save(trainer)
        self._stop(trainer, stop)

    def _stop(self, trainer: Trainer, wanted: bool) -> None:
        if wanted:
            raise Stopped(
                f"stopped by a signal after optimizer step {trainer.global_step}; begun again in its folder, the run goes on there"
            )

    def _save(self, trainer: Trainer) -> None:
        started = monotonic()
        if all(parameter.isfinite().all() for parameter in trainer.lightning_module.parameters()):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST)
        self._pause = max(self.every_seconds, (monotonic() - started) / SHARE) if self.every_seconds else 0.0
        self._saved_at, self._saved_step = monotonic(), trainer.global_step


def _agreed(trainer: Trainer, *wishes: bool) -> list[bool]:
    """What any rank wishes: saving and stopping is done by all of them together."""
    if trainer.world_size == 1:
        return list(wishes)
    mine = torch.tensor(wishes, dtype=torch.float32, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(mine, reduce_op="max").bool().tolist()


def _validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation may follow this block: at the end of an epoch or of the run, or at an interval within the epoch."""
    has_ended = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
    interval = trainer.val_check_batch
    counted = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx  # as Lightning counts
    return trainer.is_last_batch or has_ended or (interval is not None and (counted + 1) % interval == 0)


@final
class StopEarly(EarlyStopping):
    """Stop when the model's monitor has not risen by `min_delta` nats in `patience` validations.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        whole(patience, "callbacks.early_stopping.patience")
        real(min_delta, "callbacks.early_stopping.min_delta", least=0)
        super().__init__(monitor="", patience=patience, min_delta=min_delta, mode="max")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the monitor from the model."""
        assert isinstance(pl_module, Fit)
        self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)


@final
class Pictures(Callback):
    """Pictures of the model and of the run, as files in ``figures/`` and as media of the loggers, every n epochs.

    Those of the end are drawn by `draw`, which whoever holds the best weights calls. Drawing never changes training: it has a
    state of the random generators of its own, the same every time, so that samples of different epochs are comparable.
    """

    def __init__(self, every_n_epochs: int = 50, num_images: int = 10, num_codes: int = 2000) -> None:
        if every_n_epochs < 1 or num_images < 1 or num_codes < num_images:
            raise ValueError(
                f"callbacks.pictures: every_n_epochs={every_n_epochs} and num_images={num_images} must be at least 1,\n"
                f"and num_codes={num_codes} at least num_images"
            )
        self.every_n_epochs, self.num_images, self.num_codes = every_n_epochs, num_images, num_codes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if it is time and not the end."""
        done = trainer.current_epoch + 1
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if done % self.every_n_epochs == 0 and done != trainer.max_epochs:
            self.draw(trainer, pl_module)

    @rank_zero_only
    def draw(self, trainer: Trainer, fit: LightningModule) -> None:
        """Draw the evaluation model as it is now, on validation data, into files and loggers."""
        assert isinstance(fit, Fit)
        folder = Path(trainer.default_root_dir) / FIGURES
        folder.mkdir(parents=True, exist_ok=True)
        model = fit.evaluation_model
        with torch.no_grad(), own_generators(0), _evaluating(model):
            for name, figure in self._figures(trainer, model):
                pixels = plots.pixels(figure)
                write_whole(folder / f"{name}.png", _png(pixels))
                for logger in trainer.loggers:
                    send_picture(logger, f"figures/{name}", pixels, trainer.global_step)

    def _figures(self, trainer: Trainer, model: LatentVariableModel) -> Iterator[tuple[str, Figure]]:
        """The pictures that this model has, by the names of their files."""
        metrics = Path(trainer.default_root_dir) / METRICS
        columns = read_metrics(metrics) if metrics.exists() else {}
        if len(columns.get("val/reconstruction", ())) > 1:  # one validation is no curve
            yield "learning_curves", plots.learning_curves(columns)
        x, labels, shape = _validation_data(trainer, model, self.num_codes)
        if len(x):
            yield from pictures.of_model(model, x, labels, shape, _unhidden(trainer, len(x)), self.num_images)


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _validation_data(trainer: Trainer, model: LatentVariableModel, most: int) -> tuple[Tensor, Tensor | None, tuple[int, ...] | None]:
    """Rows ``[N, D]`` of the validation data where the model is, their labels, and the shape of an image if they are images."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TensorDataModule):
        part, shape = data.part("val", most), data.shape
        batches = [(part.x, part.labels)]
    else:
        batches, shape = _collect(trainer, most)
    weights = next(model.parameters())
    x = torch.cat([rows(x, model.data_dim) for x, _ in batches])[:most] if batches else weights.new_empty(0, model.data_dim)
    known = [labels for _, labels in batches if labels is not None]
    labels = torch.cat(known)[:most] if known else None
    return x.to(weights), labels, None if shape is None else tuple(shape)


def _unhidden(trainer: Trainer, count: int) -> Tensor | None:
    """The first rows ``[count, D]`` of the validation data before entries were hidden, if any were."""
    data = getattr(trainer, "datamodule", None)
    return data.unhidden("val", count) if isinstance(data, TensorDataModule) and data.missing.hides else None


def _collect(trainer: Trainer, most: int) -> tuple[list[tuple[Tensor, Tensor | None]], tuple[int, ...] | None]:
    """Batches of a validation loader of the user's, until there are `most` rows."""
    loaders = trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list) else loaders
    batches, shape, count = [], None, 0
    for batch in () if loader is None else loader:
        x, *others = batch if isinstance(batch, (tuple, list)) else (batch,)
        labels = others[0] if others and isinstance(others[0], Tensor) and others[0].ndim == 1 else None
        batches.append((x, labels))
        shape = tuple(x.shape[1:]) if x.ndim == 4 else None
        count += len(x)
        if count >= most:
            break
    return batches, shape


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each of its modules in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
