"""The command lines: Hydra, and an answer of at most three lines to what it does not understand."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from lowerbound.commands import EVALUATE, LADDER, PREDICT, REPORT, TRAIN, Command
from lowerbound.defaults import conf_folder
from lowerbound.devices import check_started, check_sweep, is_first, without_folder
from lowerbound.errors import NonFiniteError, Remark
from lowerbound.explaining import HYDRA_VERSION, USER_ERRORS, explain, items

WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")

PROGRAM = TRAIN.name


def main(command: Command = TRAIN) -> int:
    """Run the command line in ``sys.argv``.

    Returns:
        The exit code: 0; 2: a command or a configuration that does not fit; 1: a loss that was not finite, or a sweep with a failed run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra.main raises, where it would print and exit
    words = [*_with_keys(sys.argv[1:], command), *(without_folder() if command == TRAIN else ())]
    # argparse wants overrides in one piece
    sys.argv[1:] = sorted(words, key=lambda word: word.startswith("-") or not ("=" in word or word.startswith("~")))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a `_target_` in a file of the user's, which must not hide a library's

    def task(cfg: DictConfig) -> object:
        return _task(cfg, command)

    try:
        hydra.main(config_path=str(conf_folder()), config_name=command.config, version_base=HYDRA_VERSION)(task)()
    except USER_ERRORS as error:
        if "debug=true" in sys.argv:
            raise
        return _report(error, command)
    return 0


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


def _with_keys(words: Sequence[str], command: Command) -> list[str]:
    """The words, in which paths that stand alone have the key they are for; quoted, since names of run folders have = and , in them."""
    after_option = {i + 1 for i, word in enumerate(words) if word in WITH_VALUE}
    alone = [i for i, word in enumerate(words) if i not in after_option and (os.path.exists(word) or not re.search("^[-+~]|=", word))]
    if command.path is None or not alone:
        return list(words)
    quoted = ['"' + words[i].replace("\\", "\\\\").replace('"', '\\"') + '"' for i in alone]
    value = quoted[0] if len(quoted) == 1 else f"[{','.join(quoted)}]"
    return [f"{command.path}={value}", *(word for i, word in enumerate(words) if i not in alone)]


def short(overrides: str, limit: int = 100) -> str:
    """A folder's name for the overrides of a run in a sweep: themselves, or a prefix and a hash where that cannot be."""
    name = re.sub(r"[^\w=.,+\[\]-]", "-", overrides) or "defaults"
    if name == overrides and len(name) <= limit:
        return name
    return f"{name[: limit - 11]}-{hashlib.sha256(overrides.encode()).hexdigest()[:10]}" if overrides else name


OmegaConf.register_new_resolver("short", short, replace=True)


def _task(cfg: DictConfig, command: Command) -> object:
    """One run. A sweep is told of an error, a single run answers it: Hydra would first print the command once more."""
    try:
        if command == TRAIN:
            _begin(cfg)
        check_overrides(cfg, command)
        run = command.load()
        _quieten_lightning()
        return run(cfg)
    except BaseException as error:
        if command == TRAIN and is_first():
            _failure().write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        if not isinstance(error, USER_ERRORS) or cfg.debug or HydraConfig.get().mode is not RunMode.RUN:
            raise
        raise SystemExit(_report(error, command)) from error


def _begin(cfg: DictConfig) -> None:
    """Agree with the other processes of a run on its folder, and refuse those that could not be one run."""
    from lowerbound.one_folder import share

    share()
    if is_first():
        _failure().unlink(missing_ok=True)
    check_started(cfg.trainer)
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        check_sweep(cfg.trainer, HydraConfig.get().launcher)


def _failure() -> Path:
    """Where a run folder says why it has no results."""
    from lowerbound.folder import FAILURE

    return Path(HydraConfig.get().runtime.output_dir) / FAILURE


def _quieten_lightning() -> None:
    """Keep Lightning's greetings and advertisements, its use of what torch deprecates, and what is noted at the end, off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
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
            raise ConfigCompositionException(f"{key}: {str(error).splitlines()[0]}") from None


def _report(error: Exception, command: Command) -> int:
    GlobalHydra.instance().clear()  # an error within a run; composing what was meant starts Hydra afresh
    args = get_args(sys.argv[1:])
    lines = explain(error, args.overrides, args.config_dir, command)
    print(f"{command.name}: " + "\n  ".join(lines), file=sys.stderr)
    return 1 if isinstance(error, NonFiniteError) else 2


if __name__ == "__main__":
    sys.exit(main())
