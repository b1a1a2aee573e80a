"""A run from its beginning to its end: the only place where configuration becomes objects."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed import DistNetworkError  # pyright: ignore[reportPrivateImportUsage] where torch documents it

from lowerbound import claim, preemption
from lowerbound import folder as files
from lowerbound.callbacks import BestWeights, LastCheckpoint, Pictures
from lowerbound.circumstances import announce, announce_reached, circumstances
from lowerbound.data import InMemory
from lowerbound.devices import check_devices, is_first
from lowerbound.durable import DurableCheckpoints, tidy
from lowerbound.errors import NonFiniteError, whole
from lowerbound.faults import Entire
from lowerbound.fit import Fit
from lowerbound.instantiate import instantiate
from lowerbound.model import LatentVariableModel
from lowerbound.preemption import INTERRUPTED, Stopped
from lowerbound.report import as_table, write_report
from lowerbound.studies import Study
from lowerbound.tracking import MetricsFile, finish, send_table

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def learn(
    model: LatentVariableModel,
    fit: Callable[[LatentVariableModel], Fit],
    data: LightningDataModule | ArrayLike | Tensor,
    seed: int = 0,
    **trainer: Any,
) -> dict[str, float]:
    """Fit a model in place and return the test means of its last weights, in nats per datum.

    `data` is a LightningDataModule or an array ``[N, D]``; `fit` a way of learning, for instance
    ``GradientFit``, or ``partial(GradientFit, objective=IWAE(50))``; `trainer` goes to ``lightning.Trainer``. Nothing is written to disk.

    Raises:
        ValueError: the data do not fit the model, or an option is out of its range.
    """
    seed_everything(seed, verbose=False)
    module = data if isinstance(data, LightningDataModule) else InMemory(data, seed=seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    runner = Trainer(**(quiet | trainer))
    learner = fit(model)
    runner.fit(learner, datamodule=module)
    (results,) = runner.test(learner, datamodule=module, verbose=False)
    return {key: value for key, value in results.items() if key.startswith("test/")}


def train(config: DictConfig) -> float:
    """Run a configuration, or go on with it; write its folder; return the value of the model's monitor at the best weights.

    In a folder where it has finished nothing is run; where it was stopped it goes on from `last.ckpt`.

    Raises:
        ValueError: the configuration, the data and the machine do not fit each other, or the folder is another run's.
        Stopped: a signal asked for it.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if not is_first():
        return _train(config, folder)
    with claim.claimed(folder):
        return _train(config, folder)


def _train(config: DictConfig, folder: Path) -> float:
    claim.require_same(folder, config)
    if (value := claim.finished(folder)) is not None:
        rank_zero_only(print)(f"{os.path.relpath(folder)} has finished: nothing to run")
        if not (folder / files.REPORT).is_file():  # it was killed before it had written one
            rank_zero_only(write_report)(folder)
        return value
    rank_zero_only(files.begin)(folder)
    check_trainer(config.trainer)
    if not isinstance(config.name, str | int) or not str(config.name).strip():
        raise ValueError(f"name={config.name!r} must be a word: the run's folder is outputs/<name>/<date_time>")
    seed_everything(whole(config.seed, "seed", least=0), verbose=False)
    data, fit = instantiate(config.data), instantiate(config.fit)(instantiate(config.model))
    trainer = make_trainer(config, folder)
    if trainer.is_global_zero:
        files.write_whole(folder / files.CONFIG, OmegaConf.to_yaml(config, resolve=True))
        files.write_whole(folder / files.WORDS, OmegaConf.to_yaml(HydraConfig.get().overrides.task))
    log_config(trainer, config)
    try:
        trainer.fit(fit, datamodule=data, ckpt_path=_checkpoint(folder), weights_only=True)
        results = conclude(trainer, fit, data, folder)
        for logger in trainer.loggers:
            send_table(logger, "numbers", *as_table(results))
    except Stopped as stop:
        if stop.exit_code == INTERRUPTED:
            conclude_early(trainer, fit, folder)
        finish(trainer.loggers, {}, exit_code=stop.exit_code)
        wait_for_the_first(trainer)
        raise
    except BaseException as error:
        if not isinstance(error, ValueError):
            error.add_note(f"after optimizer step {fit.clock.now}")
        finish(trainer.loggers, {}, exit_code=1)
        if (answer := told(error, trainer)) is not None:
            raise answer from error
        raise
    finish(trainer.loggers, results)
    if trainer.is_global_zero:
        results |= circumstances(trainer, fit, data, str(config.name))
        files.write_results(folder, results)
        tidy(folder)
        write_report(folder)
        announce(results, folder)
    return results[fit.monitor]


def conclude_early(trainer: Trainer, fit: Fit, folder: Path) -> None:
    """Draw what Ctrl-C has left, and tell the numbers of the last validation."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] set in its constructor
    try:
        for callback in callbacks:
            if isinstance(callback, Pictures):
                callback.draw(trainer, fit)
    except Exception as error:  # it ends as it would without pictures
        print(f"no pictures: {type(error).__name__}: {error}", file=sys.stderr)
    announce_reached(folder)


def wait_for_the_first(trainer: Trainer) -> None:
    """Let the other processes end after the first: Lightning kills that one when one that it has started ends with an exit code."""
    if trainer.world_size > 1:
        with suppress(RuntimeError):  # it was killed
            trainer.strategy.barrier()


def told(error: BaseException, trainer: Trainer) -> ValueError | None:
    """What to raise for an error of a library's that does not say what does not fit; None for others."""
    if isinstance(error, MisconfigurationException | DistNetworkError):
        return ValueError(str(error))
    if isinstance(error, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage] documented there
        last = files.last_good(Path(trainer.default_root_dir))
        return NonFiniteError(f"optimizer step {trainer.global_step + 1}: {str(error).partition('. ')[0]}. {last}.")
    return None


def _checkpoint(folder: Path) -> str | None:
    """What to go on from; what is damaged is said on the screen."""
    found, remarks = claim.checkpoint_of(folder)
    for sentence in remarks:
        rank_zero_only(print)(sentence)
    return None if found is None else str(found)


def check_trainer(trainer: DictConfig) -> None:
    """Refuse what Lightning would change without saying so, or would find out only at the end.

    Raises:
        ValueError: as said.
    """
    if trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={trainer.precision} is none of {', '.join(PRECISIONS)}")
    if trainer.precision == "16-mixed" and (trainer.accelerator == "cpu" or not torch.cuda.is_available()):
        raise ValueError("trainer.precision=16-mixed needs a GPU: on a CPU choose bf16-mixed or 32-true")
    for limit in ("max_epochs", "max_steps"):
        if trainer[limit] is not None:
            whole(trainer[limit], f"trainer.{limit} (-1: no limit)", least=-1)
    whole(trainer.num_nodes, "trainer.num_nodes")
    for option in ("check_val_every_n_epoch", "log_every_n_steps"):
        if trainer[option] is not None:
            whole(trainer[option], f"trainer.{option}")
    if trainer.limit_train_batches == 0:
        raise ValueError("trainer.limit_train_batches=0 leaves nothing to learn from; leave it null, or give a number of blocks")
    check_devices(trainer)
    for part in ("val", "test"):
        if trainer[f"limit_{part}_batches"] == 0:
            raise ValueError(f"trainer.limit_{part}_batches=0: every run ends with a validation and a test; leave it null")


def named(config: DictConfig, group: str) -> list[DictConfig]:
    """What a group holds by name.

    Raises:
        ValueError: there is something that cannot be built.
    """
    nodes = {} if config[group] is None else config[group]
    for name, node in nodes.items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ValueError(f"{group}.{name}={node} must have a _target_; to leave it out of {group}, write ~{group}.{name}")
    return list(nodes.values())


def make_trainer(config: DictConfig, folder: Path) -> Trainer:
    """The Trainer with its callbacks and loggers; they write into the run folder."""
    callbacks: list[Callback] = [Entire(), MetricsFile(), *(instantiate(node) for node in named(config, "callbacks"))]
    loggers: list[Logger] = [instantiate(node, save_dir=str(folder)) for node in named(config, "logger")]
    watched = config.trainer.enable_progress_bar and sys.stderr.isatty()  # in a log file a bar is a thousand lines
    plugins: list[object] = [DurableCheckpoints()]
    if not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `preemption` asks for that, once the checkpoint is written
    if not any(isinstance(callback, LastCheckpoint) for callback in callbacks):
        preemption.uninstall()  # nobody would look at what the handler has noted
    trainer: Trainer = instantiate(
        config.trainer,
        default_root_dir=str(folder),
        callbacks=callbacks,
        logger=loggers or False,
        enable_progress_bar=watched,
        plugins=plugins,
    )
    # Lightning's handler of SIGTERM ends a run with exit code 0, and hangs several processes of which one was told.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def log_config(trainer: Trainer, config: DictConfig) -> None:
    """Give the resolved configuration to the loggers."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for logger in trainer.loggers:
        logger.log_hyperparams(plain)


def conclude(trainer: Trainer, fit: Fit, data: LightningDataModule, folder: Path) -> dict[str, Any]:
    """Take the best weights, test them, draw the last pictures; the numbers of validation and test."""
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] set in its constructor
    if best := next((callback.best_model_path for callback in callbacks if isinstance(callback, BestWeights)), ""):
        fit.load_state_dict(files.read_checkpoint(Path(best))["state_dict"])
    steps, epochs = trainer.global_step, trainer.current_epoch
    loggers, trainer.loggers = trainer.loggers, []  # the best weights are no point on the curves' last step
    (validation,) = trainer.validate(fit, datamodule=data, verbose=False)
    trainer.loggers = loggers
    (test,) = trainer.test(fit, datamodule=data, verbose=False)
    numbers = {key: float(value) for key, value in {**validation, **test}.items() if key.startswith(("val/", "test/"))}
    for callback in callbacks:
        if isinstance(callback, Pictures):
            callback.draw(trainer, fit)
        if isinstance(callback, Study):
            numbers |= callback.conclude(trainer, fit)
    if bad := [key for key, value in numbers.items() if not isfinite(value)]:
        raise NonFiniteError(f"{', '.join(bad)} not finite at the end, of the best weights. {files.last_good(folder)}.")
    return numbers | {"optimizer_steps": steps, "epochs": epochs}
