"""What is told of a run: `metrics.csv`, always, and Weights & Biases, if it is asked for.

Both count optimizer steps. W&B is told before it starts whether it may use the network, so that a run never waits for a key
or a connection; what it kept offline goes up later with ``wandb sync``.
"""

from __future__ import annotations

import csv
import json
import math
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any, final

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from lowerbound.connection import possible_mode, say_offline
from lowerbound.devices import is_first
from lowerbound.folder import SWEEP, append_whole, read_json, write_whole
from lowerbound.preemption import STOPPED

METRICS = "metrics.csv"
TOLD = ".wandb.json"  # in the run folder: the id of the W&B run, and the last optimizer step that it was told of


@final
class MetricsFile(Callback):
    """`metrics.csv` in the run folder: optimizer step, epoch and the metrics of each validation, a row each, written at once.

    The columns are those of the first row. There are no times in it, and a resumed run cuts the file back to the rows that its
    checkpoint knew, so the file of a run that was interrupted is that of one that was not.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.names: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are, and their metrics."""
        return {"rows": self.rows, "names": list(self.names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the checkpoint was written."""
        self.rows, self.names = state_dict["rows"], list(state_dict["names"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file, or cut off what was written after the checkpoint."""
        if not trainer.is_global_zero:
            return
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.read_text().splitlines(keepends=True)[: self.rows + 1] if self.rows and path.exists() else []
        write_whole(path, "".join(known))
        self.rows = max(len(known) - 1, 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a validation during training."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = _row(trainer)
        self.names = self.names or sorted(metrics)
        values = [repr(metrics[name]) if name in metrics else "" for name in self.names]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.rows:
            writer.writerow(["step", "epoch", *self.names])
        writer.writerow([trainer.global_step, trainer.current_epoch, *values])
        append_whole(self._path(trainer), text.getvalue())
        self.rows += 1

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / METRICS


def _row(trainer: Trainer) -> dict[str, float]:
    """The metrics of a validation; those without a slash that also exist under val/ are the progress bar's."""
    metrics = trainer.callback_metrics
    left_out = {"step", "epoch"} | {name.removeprefix("val/") for name in metrics if name.startswith("val/")}
    return {name: float(value) for name, value in metrics.items() if name not in left_out}


def read_metrics(path: str | Path) -> dict[str, list[float]]:
    """The columns of a `metrics.csv` by name; what a row does not have is NaN.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        with Path(path).open(newline="") as file:
            rows = list(csv.reader(file))
        names = rows[0] if rows else []
        whole = [row for row in rows[1:] if len(row) == len(names)]  # the last one may be being written
        return {name: [float(row[i]) if row[i] else math.nan for row in whole] for i, name in enumerate(names)}
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


class Forgiving:
    """A logger that may fail without the run, whose `metrics.csv` has it all: its own process may have been killed, its disk be full."""

    is_lost = False

    def tell(self, what: Callable[[], object]) -> None:
        """Do it; after the first failure, which is said, nothing more."""
        if self.is_lost:
            return
        try:
            what()
        except Exception as error:
            self.is_lost = True
            print(f"{type(self).__name__}: nothing more is told, because of {type(error).__name__}: {error}", file=sys.stderr)


@final
class TensorBoard(Forgiving, TensorBoardLogger):
    """TensorBoard, whose failure is not the run's."""

    @property
    def log_dir(self) -> str:
        """Where it writes: as it is called, while Lightning's puts the environment in the place of a `$`."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return str(Path(self.root_dir, version, self.sub_dir or ""))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Tell of an optimizer step."""
        self.tell(lambda: TensorBoardLogger.log_metrics(self, dict(metrics), step))

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Tell of the configuration."""
        self.tell(lambda: TensorBoardLogger.log_hyperparams(self, *arguments, **options))

    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show a picture ``[H, W, 3]``."""
        self.tell(lambda: self.experiment.add_image(name, pixels, step, dataformats="HWC"))

    def save(self) -> None:
        """Write what was told."""
        self.tell(lambda: TensorBoardLogger.save(self))

    def finalize(self, status: str) -> None:
        """Close the file."""
        self.tell(lambda: TensorBoardLogger.finalize(self, status))


@final
class WandB(Forgiving, WandbLogger):
    """Weights & Biases with a mode that is known before the run starts: never a prompt, and never a wait for the network.

    A run folder is one W&B run, however often it is gone on with: its id is kept there, and what was told of a step before a kill
    is not told again after it, so that steps never go back.

    Args:
        save_dir: the run folder; W&B writes into ``wandb/`` inside it.
        group: None: the sweep that the run folder is in, if it is in one.
        mode: ``online`` needs a key and a server that answers, and becomes ``offline`` without; None is what WANDB_MODE says,
            else online. ``offline`` and ``disabled`` are taken at their word.
        settings: further entries of ``wandb.Settings``.
    """

    def __init__(
        self,
        save_dir: str | Path = ".",
        project: str = "lowerbound",
        name: str | None = None,
        group: str | None = None,
        tags: Iterable[str] = (),
        mode: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.mode = possible_mode(mode)
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        options = _SETTINGS | {"silent": self.mode != "online"} | dict(settings or {})
        self._file = Path(save_dir) / TOLD
        told = (read_json(self._file) if self._file.is_file() else None) or {"id": secrets.token_hex(4), "step": 0}
        self._run_id, self._last_step = told["id"], told["step"]
        if not re.fullmatch(r"[\w-]{1,64}", self._run_id):  # W&B makes names of folders of it
            raise ValueError(f"{self._file} is damaged: {self._run_id!r} is no id.\nWithout that file W&B begins a new run.")
        if is_first():
            self._note()
        kept: dict[str, Any] = {"id": self._run_id, "resume": "allow", "group": group or _sweep(Path(save_dir)), "job_type": "train"}
        super().__init__(name, save_dir, project=project, tags=list(tags), mode=self.mode, settings=options, **kept)
        self._wandb_init.pop("anonymous", None)  # wandb warns about it whatever its value

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first use; offline if the server refuses it."""
        import wandb  # half a second, which only runs that log there should pay

        try:
            return super().experiment
        except wandb.Error as error:
            wandb.teardown()  # else the next init waits for the one that failed
            say_offline(f"the server did not take the run ({error})")
            self.mode = "offline"
            self._wandb_init["mode"], self._wandb_init["settings"]["silent"] = self.mode, True
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Tell of an optimizer step; of one before the last that was told of, nothing."""
        if step is None:
            self.tell(lambda: self.experiment.log(dict(metrics)))
        elif step >= self._last_step:
            self._last_step = step
            self.tell(self._note)
            self.tell(lambda: self.experiment.log({**metrics, "trainer/global_step": step}, step=step))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] Lightning's takes a namespace too
        """Tell of the configuration."""
        self.tell(lambda: super(WandB, self).log_hyperparams(params))

    def _note(self) -> None:
        write_whole(self._file, json.dumps({"id": self._run_id, "step": self._last_step}))

    @rank_zero_only
    def finish(self, summary: Mapping[str, float], exit_code: int = 0) -> None:
        """Add the final numbers to the summary and close the run, if it was started."""
        if self._experiment is None:
            return
        self.tell(lambda: self._finish(summary, exit_code))

    def _finish(self, summary: Mapping[str, float], exit_code: int) -> None:
        run = self.experiment
        if exit_code == STOPPED:
            run.mark_preempting()  # W&B shows it so, and not as failed
        run.summary.update(dict(summary))
        run.finish(exit_code=exit_code)
        if self.mode == "offline":  # the logs name the machine and its paths, and say nothing of the run
            rmtree(Path(run.dir).parent / "logs", ignore_errors=True)


def _sweep(folder: Path) -> str | None:
    """The name of the sweep that a run folder is in."""
    return folder.absolute().parent.name if (folder.absolute().parent / SWEEP).is_file() else None


# Nothing of the machine goes into the run, and neither a slow start nor a slow end holds up what it reports.
_SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "finish_timeout": 30.0,
    "host": "unknown",
    "init_timeout": 10.0,
    "save_code": False,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def finish(loggers: Iterable[Logger], summary: Mapping[str, float], exit_code: int = 0) -> None:
    """Tell the loggers that have an end of their own (W&B) how the run ended: its final numbers and its exit code."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.finish(summary, exit_code)


@rank_zero_only
def send_picture(logger: Logger, name: str, pixels: np.ndarray, step: int) -> None:
    """Give a picture ``[H, W, 3]`` (bytes) to a logger that shows pictures (W&B, TensorBoard), at an optimizer step."""
    if isinstance(logger, WandB):
        logger.tell(lambda: logger.log_image(name, [pixels], step))
    elif isinstance(logger, TensorBoard):
        logger.log_image(name, pixels, step)


@rank_zero_only
def send_table(logger: Logger, name: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Give a table of text to a logger that shows tables (W&B)."""
    if isinstance(logger, WandB):
        logger.tell(lambda: logger.log_table(name, columns=list(headings), data=[list(line) for line in lines]))
