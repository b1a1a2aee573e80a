"""The command lines: Hydra, and an answer of at most three lines to what it does not understand."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path

import hydra
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from lowerbound import own_files, preemption, sweepers
from lowerbound.commands import EVALUATE, LADDER, PREDICT, REPORT, SWEEP, TRAIN, Command
from lowerbound.defaults import conf_folder
from lowerbound.devices import check_started, check_sweep, is_first, without_folder
from lowerbound.errors import FaultError, NonFiniteError, OccupiedError, Remark, flag
from lowerbound.explaining import HYDRA_VERSION, USER_ERRORS, explain, items
from lowerbound.jobs import quoted
from lowerbound.preemption import Stopped

WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")
PROGRAM = TRAIN.name


def main(command: Command = TRAIN) -> int:
    """Run the command line in ``sys.argv``.

    Returns:
        The exit code: 0; 2: a command or a configuration that does not fit; 1: a loss that was not finite, or a sweep with a failed run;
        75: stopped by a signal, to be gone on with; 130: by Ctrl-C.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra.main raises, where it would print and exit

    def task(cfg: DictConfig) -> object:
        return _task(cfg, command)

    try:
        _settle(command)
        _refuse_keys(sys.argv[1:])
        sys.argv[1:] = _resumed(sys.argv[1:]) if command == TRAIN else sys.argv[1:]
        hydra.main(config_path=str(conf_folder()), config_name=command.config, version_base=HYDRA_VERSION)(task)()
    except (*USER_ERRORS, OSError) as error:
        if "debug=true" in sys.argv:
            raise
        if not isinstance(error, USER_ERRORS):  # Hydra's own, of a folder that cannot be made or written
            place = error.filename or "the run folder, while it was begun"
            error = FaultError(f"{place}: {error.strerror}.\nChoose another place with hydra.run.dir=FOLDER.")
        return _report(error, command)
    return 0


def _settle(command: Command) -> None:
    """Put the words of the command line in the form and order that Hydra takes, and listen to signals."""
    words = [*_with_keys(sys.argv[1:], command), *(without_folder() if command == TRAIN else ())]
    if command == TRAIN and not {"-m", "--multirun"} & set(words):
        preemption.install()  # before anything that takes time: the parent of a sweep is stopped as any other program
    # argparse wants overrides in one piece
    sys.argv[1:] = sorted(words, key=lambda word: word.startswith("-") or not ("=" in word or word.startswith("~")))
    own_files.by_words(words)


def ladder() -> int:
    """Climb the ladder: `main`, and 1 also for what misses its exact answer."""
    return main(LADDER)


def evaluate() -> int:
    """Evaluate fitted models: `main`."""
    return main(EVALUATE)


def predict() -> int:
    """Write what a fitted model makes of rows: `main`."""
    return main(PREDICT)


def report() -> int:
    """Write the report of a sweep: `main`."""
    return main(REPORT)


def sweep() -> int:
    """Look at a sweep: `main`."""
    return main(SWEEP)


def _with_keys(words: Sequence[str], command: Command) -> list[str]:
    """The words, in which paths that stand alone have the key they are for; the word that says what to do with them is left out."""
    if command.verb in words[:1]:
        words = words[1:]
    after_option = {i + 1 for i, word in enumerate(words) if word in WITH_VALUE}
    alone = [i for i, word in enumerate(words) if i not in after_option and (os.path.exists(word) or not re.search("^[-+~]|=", word))]
    if command.path is None or not alone:
        return list(words)
    paths = [quoted(words[i]) for i in alone]
    value = paths[0] if len(paths) == 1 else f"[{','.join(paths)}]"
    return [f"{command.path}={value}", *(word for i, word in enumerate(words) if i not in alone)]


def _refuse_keys(words: Sequence[str]) -> None:
    """Refuse a key of W&B among the words, all of which are kept with the run."""
    for name in (word.partition("=")[0] for word in words if "api_key" in word):
        raise ValueError(f"{name}: a key on the command line would be kept in the run's folder.\nSet WANDB_API_KEY in the environment.")


def _resumed(words: Sequence[str]) -> list[str]:
    """The words, in which ``resume=FOLDER`` stands for the words that made that run folder; those that are given again are the user's."""
    folders = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    if not folders:
        return list(words)
    from lowerbound.folder import CONFIG, WORDS, read_overrides, require_own  # here, so that a typo need not wait for torch
    from lowerbound.trust import check_words

    folder = Path(folders[-1].strip("'\""))
    require_own(folder)
    overrides = read_overrides(folder, WORDS)
    if overrides is None or not (folder / CONFIG).is_file():
        raise ValueError(f"resume={folder}: that is no run folder; one looks like outputs/<name>/<date_time>")
    if {"-m", "--multirun"} & set(words):
        raise ValueError(f"resume={folder} goes on with one run; a sweep goes on by itself: give its command again, with sweep=NAME")
    others = [word for word in words if not word.startswith("resume=")]
    kept = [word for word in overrides if word not in others]
    try:
        check_words(kept)
    except ValueError as error:
        raise ValueError(f"resume={folder}: {error}") from error
    return [*kept, "hydra.mode=RUN", "hydra.output_subdir=null", f"hydra.run.dir={quoted(folder)}", *others]


def short(overrides: str, limit: int = 100) -> str:
    """A folder's name for the overrides of a run in a sweep: themselves, or a prefix and a hash where that cannot be."""
    name = re.sub(r"[^\w=.,+\[\]-]", "-", overrides) or "defaults"
    if name == overrides and len(name) <= limit:
        return name
    return f"{name[: limit - 11]}-{hashlib.sha256(overrides.encode()).hexdigest()[:10]}" if overrides else name


OmegaConf.register_new_resolver("short", short, replace=True)
sweepers.register()


def _task(cfg: DictConfig, command: Command) -> object:
    """One run. A sweep is told of an error, a single run answers it: Hydra would first print the command once more."""
    try:
        if command == TRAIN:
            _begin(cfg)
        check_overrides(cfg, command)
        run = command.load()
        own_files.by_targets(cfg, HydraConfig.get().runtime.cwd)
        _quieten_lightning()
        return check_value(run(cfg))
    except Stopped as stop:
        if is_first():
            print("\n".join(filter(None, [str(stop), preemption.requeue()])), file=sys.stderr)
        raise SystemExit(stop.exit_code) from stop
    except BaseException as error:
        if command != TRAIN:
            _answer(error, cfg, command)
            raise
        if isinstance(error, KeyboardInterrupt | SystemExit) and preemption.received():  # a second Ctrl-C
            raise SystemExit(Stopped().exit_code) from error
        known = _understood(error, cfg)
        if not isinstance(error, OccupiedError):
            _note_failure(known)
        _answer(known, cfg, command)
        if cfg.debug is True or known is error:
            raise
        raise known from error


def _answer(error: BaseException, cfg: DictConfig, command: Command) -> None:
    """End a single run with an answer, if the error is one."""
    if isinstance(error, USER_ERRORS) and cfg.debug is not True and HydraConfig.get().mode is RunMode.RUN:
        raise SystemExit(_report(error, command)) from error


def _understood(error: BaseException, cfg: DictConfig) -> BaseException:
    """The error as an answer; a library's end with exit code 0 is none of a run. What is an answer already stays as it is."""
    if isinstance(error, SystemExit) and not error.code:
        return FaultError("something in the run has ended the program with exit code 0, before there were results")
    if isinstance(error, USER_ERRORS) or not isinstance(error, Exception):
        return error
    from lowerbound.faults import explained  # here, so that help and a typo need not wait for torch

    return explained(error, cfg, Path(HydraConfig.get().runtime.output_dir))


def _begin(cfg: DictConfig) -> None:
    """Listen to signals, agree with the other processes of a run on its folder, and refuse those that could not be one run."""
    from lowerbound.one_folder import share

    preemption.install()
    share()
    check_started(cfg.trainer)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        check_sweep(cfg.trainer, HydraConfig.get().launcher)


def check_value(value: object) -> object:
    """What a run returned, which a sweep may maximise.

    Raises:
        NonFiniteError: it is a number that is not finite: a run that ends so has failed.
    """
    if isinstance(value, float) and not isfinite(value):
        raise NonFiniteError(f"the model's monitor ended at {value}")
    return value


def _note_failure(error: BaseException) -> None:
    """Let the run folder say why it has no results; one that has finished has them, whatever is asked of it later.

    Other processes than the first do so where that one has died.
    """
    from lowerbound.claim import is_claimed
    from lowerbound.folder import CONFIG, FAILURE, RESULTS, write_whole

    folder = Path(HydraConfig.get().runtime.output_dir)
    is_ours = is_first() or ((folder / CONFIG).is_file() and not (folder / FAILURE).exists())
    with suppress(OSError):  # of which it may be about
        if is_ours and not is_claimed(folder) and (isinstance(error, NonFiniteError) or not (folder / RESULTS).exists()):
            lines = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
            write_whole(folder / FAILURE, "\n".join(lines) + "\n")


def _quieten_lightning() -> None:
    """Keep Lightning's greetings and advertisements, its use of what torch deprecates, and what is noted at the end, off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # as it is wherever jobs are submitted from
    warnings.filterwarnings("ignore", category=Remark)


def check_overrides(cfg: DictConfig, command: Command = TRAIN) -> None:
    """Refuse what composes and would then be ignored, or fail without a name.

    Raises:
        ConfigCompositionException: a key added with ``+`` that nothing reads, a missing value, or an interpolation that leads nowhere.
        ValueError: a schedule from the group `beta` together with a number at `objective.beta`.
    """
    choices = dict(HydraConfig.get().runtime.choices)
    known = {*choices, *OmegaConf.load(conf_folder() / f"{command.config}.yaml")}
    for override in OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False) or ():
        added = re.match(r"\+{1,2}(\w+)=", str(override))
        if added and added[1] not in known:
            raise ConfigCompositionException(f"Could not override '{added[1]}'.")
    _check_values(cfg)
    flag(cfg.debug, "debug")
    if choices.get("beta") and not OmegaConf.is_dict(OmegaConf.select(cfg, "objective.beta")):
        raise ValueError(f"objective.beta={cfg.objective.beta} replaces the schedule beta={choices['beta']}: give one of the two.")


def _check_values(cfg: DictConfig) -> None:
    missing = [key for key, value in items(cfg) if value == "???"]
    if missing:
        raise ConfigCompositionException(f"No value is set for {' and '.join(missing)}.\nAdd {' '.join(f'{key}=...' for key in missing)}")
    for key, _ in items(cfg):
        try:
            OmegaConf.select(cfg, key)
        except InterpolationResolutionError as error:
            raise ConfigCompositionException(f"{key}: {str(error).splitlines()[0]}{_lacking(str(error))}") from None


def _lacking(message: str) -> str:
    """Which choices do not fit each other, where a group is referred to that none of them brings along."""
    key = re.search(r"Interpolation key '([^'.]+)", message)
    chosen = dict(HydraConfig.get().runtime.choices)
    parts = [f"{group}={chosen[group]}" for group in ("model", "prior", "likelihood", "posterior") if chosen.get(group)]
    is_typed = "${" in str(OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))  # then it is a slip of the pen
    if key is None or not parts or is_typed:
        return ""
    return f"\nThere is no {key[1]} with {', '.join(parts)}: choose parts that fit the model, or the model that they are of."


def _report(error: Exception, command: Command) -> int:
    GlobalHydra.instance().clear()  # an error within a run; composing what was meant starts Hydra afresh
    args = get_args(sys.argv[1:])
    lines = explain(error, args.overrides, args.config_dir, command)
    print(f"{command.name}: " + "\n  ".join(lines), file=sys.stderr)
    return 1 if isinstance(error, FaultError) else 2


if __name__ == "__main__":
    sys.exit(main())
