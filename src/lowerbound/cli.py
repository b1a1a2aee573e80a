"""The command lines: Hydra, and an answer of at most three lines to what it does not understand."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from lowerbound.defaults import conf_folder
from lowerbound.errors import NonFiniteError, Remark, near_matches

USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
_HYDRA_VERSION = "1.3"
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")


class Command(NamedTuple):
    """A command by name, its file in ``conf/``, where to get what it does with the configuration, and the key that a path is for."""

    name: str
    config: str
    load: Callable[[], Callable[[DictConfig], object]]
    path: str | None = None


def _train() -> Callable[[DictConfig], object]:
    from lowerbound.run import train  # here, so that help and a typo need not wait for it

    return train


def _climb() -> Callable[[DictConfig], object]:
    from lowerbound.ladder import climb_and_tell

    return climb_and_tell


def _evaluate() -> Callable[[DictConfig], object]:
    from lowerbound.evaluation import evaluate

    return evaluate


def _predict() -> Callable[[DictConfig], object]:
    from lowerbound.prediction import predict

    return predict


def _report_sweep() -> Callable[[DictConfig], object]:
    from lowerbound.sweep_report import report

    return report


TRAIN = Command("lowerbound-train", "config", _train)
LADDER = Command("lowerbound-ladder", "ladder", _climb)
EVALUATE = Command("lowerbound-evaluate", "evaluate", _evaluate, "run")
PREDICT = Command("lowerbound-predict", "predict", _predict, "run")
REPORT = Command("lowerbound-report", "report", _report_sweep, "folder")
PROGRAM = TRAIN.name


def main(command: Command = TRAIN) -> int:
    """Run the command line in ``sys.argv``.

    Returns:
        The exit code: 0; 2: a command or a configuration that does not fit; 1: a loss that was not finite, or a sweep with a failed run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra.main raises, where it would print and exit
    words = _with_keys(sys.argv[1:], command)
    # argparse wants overrides in one piece
    sys.argv[1:] = sorted(words, key=lambda word: word.startswith("-") or not ("=" in word or word.startswith("~")))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a `_target_` in a file of the user's, which must not hide a library's

    def task(cfg: DictConfig) -> object:
        return _task(cfg, command)

    try:
        hydra.main(config_path=str(conf_folder()), config_name=command.config, version_base=_HYDRA_VERSION)(task)()
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
            _failure().unlink(missing_ok=True)
        check_overrides(cfg, command)
        run = command.load()
        _quieten_lightning()
        return run(cfg)
    except BaseException as error:
        if command == TRAIN:
            _failure().write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        if not isinstance(error, USER_ERRORS) or cfg.debug or HydraConfig.get().mode is not RunMode.RUN:
            raise
        raise SystemExit(_report(error, command)) from error


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
    missing = [key for key, value in _items(cfg) if value == "???"]
    if missing:
        raise ConfigCompositionException(f"No value is set for {' and '.join(missing)}.\nAdd {' '.join(f'{key}=...' for key in missing)}")
    for key, _ in _items(cfg):
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


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None, command: Command = TRAIN) -> list[str]:
    """At most three lines: what was wrong, what was probably meant, where to look.

    Args:
        error: what composing the configuration, or the run, raised.
        overrides: the command line's ``key=value`` arguments.
        config_dir: a further folder of configuration, from Hydra's ``--config-dir``.
        command: which one it is.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _explain_choice(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException) and "=" in error.override:
        return [f"{error.override}: {error.message.splitlines()[0]}", "A value with =,(){}[] in it is quoted twice: 'key=\"value\"'"]
    unknown = re.search(r"Could not override '([^'@]+)|config group '([^'@]+)", str(error))
    if isinstance(error, OverrideParseException):
        return _explain_key(error.override, overrides, config_dir, command)
    if isinstance(error, ConfigCompositionException) and unknown:
        return _explain_key(unknown[1] or unknown[2], overrides, config_dir, command)
    return _explain_other(error)


def _explain_choice(missing: str, options: Sequence[str]) -> list[str]:
    group, _, choice = missing.rpartition("/")
    meant = [f"{group}={option}" for option in near_matches(choice, options)]
    return [f"{group}={choice}: there is no such choice.", *_question(meant), f"{group} is one of {', '.join(sorted(options))}."]


def _explain_key(key: str, overrides: Sequence[str], config_dir: str | None, command: Command) -> list[str]:
    typed = next((o for o in overrides if re.split("[=@]", o.lstrip("+~"))[0] == key), key)
    others = [o for o in overrides if o != typed]
    with hydra.initialize_config_dir(str(conf_folder()), version_base=_HYDRA_VERSION):
        cfg = _composed(others, config_dir, command)
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
        hydra_groups = [f"hydra/{group}" for group in loader.list_groups("hydra")]
    if key in groups:
        chosen = cfg.hydra.runtime.choices
        run = ", ".join(f"{group}={chosen[group]}" for group in ("model", "likelihood") if group in chosen)
        given = f"with {run} " if run else ""
        return [f"{typed}: {given}there is no {key} to choose.", f"{command.name} --help lists the groups."]
    known = [*groups, *hydra_groups, *(name for name, _ in _items(cfg))]
    meant = near_matches(key, [name for name in known if name.startswith("hydra") == key.startswith("hydra")])
    choices = [(choice, f"{group}={choice}") for group, options in groups.items() for choice in options]
    alike = near_matches(key, [choice for choice, _ in choices]) if "." not in key else []
    meant += [written for name in alike for choice, written in choices if choice == name]
    return [f"{typed}: there is no key {key}.", *_question(meant[:3]), f"{command.name} --cfg job lists every key, --help the groups."]


def _explain_other(error: Exception) -> list[str]:
    text = str(error) if error.__cause__ is None or not isinstance(error, HydraException) else f"{error}\n{error.__cause__}"
    if "add --multirun" in text:
        return [text.splitlines()[0], "To run all of them, add --multirun; for a list, write key=[a,b]."]
    lines = [line.strip().replace("full_key: ", "in ") for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("object_type=")] or [type(error).__name__]
    hint = [] if isinstance(error, HydraException) else ["debug=true shows the whole traceback."]
    answer = [*lines, *hint][: max(3, len(lines))]
    return [*answer[:2], *answer[2:][-1:]]


def _question(meant: Sequence[str]) -> list[str]:
    return [f"Did you mean {' or '.join(meant)}?"] if meant else []


def _composed(overrides: list[str], config_dir: str | None, command: Command) -> DictConfig:
    """The configuration of the overrides; where they do not compose either, that of none."""
    path = [f"hydra.searchpath=[file://{os.path.abspath(config_dir)}]"] if config_dir else []
    try:
        return hydra.compose(command.config, path + overrides, return_hydra_config=True)
    except USER_ERRORS:
        return hydra.compose(command.config, path, return_hydra_config=True)


def _items(cfg: DictConfig) -> Iterator[tuple[str, object]]:
    """The dotted keys and unresolved values of all that can be set, nodes before what is in them."""

    def walk(node: object, prefix: str) -> Iterator[tuple[str, object]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if not str(key).startswith("_"):
                    yield f"{prefix}{key}", value
                    yield from walk(value, f"{prefix}{key}.")

    return walk(OmegaConf.to_container(cfg, resolve=False), "")


if __name__ == "__main__":
    sys.exit(main())
