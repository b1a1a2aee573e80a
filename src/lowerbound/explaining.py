"""What was wrong with a command line, in at most three lines: what, what was probably meant, where to look."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lowerbound.commands import TRAIN, Command
from lowerbound.defaults import conf_folder
from lowerbound.errors import near_matches
from lowerbound.wording import plain

USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
HYDRA_VERSION = "1.3"


def explain(error: Exception, overrides: Sequence[str], config_dir: str | None = None, command: Command = TRAIN) -> list[str]:
    """At most three lines: what was wrong, what was probably meant, where to look.

    Args:
        error: what composing the configuration, or the run, raised.
        overrides: the command line's ``key=value`` arguments.
        config_dir: a further folder of configuration, from Hydra's ``--config-dir``.
        command: which one it is.
    """
    return [plain(line) for line in _explained(error, overrides, config_dir, command)]


def _explained(error: Exception, overrides: Sequence[str], config_dir: str | None, command: Command) -> list[str]:
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
    with hydra.initialize_config_dir(str(conf_folder()), version_base=HYDRA_VERSION):
        cfg = _composed(others, config_dir, command)
        loader = GlobalHydra.instance().config_loader()
        groups = {group: loader.get_group_options(group) for group in loader.list_groups("") if group != "hydra"}
        hydra_groups = [f"hydra/{group}" for group in loader.list_groups("hydra")]
    if key in groups:
        chosen = cfg.hydra.runtime.choices
        run = ", ".join(f"{group}={chosen[group]}" for group in ("model", "likelihood") if group in chosen)
        given = f"with {run} " if run else ""
        return [f"{typed}: {given}there is no {key} to choose.", f"{command.name} --help lists the groups."]
    known = {*groups, *hydra_groups, *(name for name, _ in items(cfg))} - {key}  # it may be one with other choices
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


def items(cfg: DictConfig) -> Iterator[tuple[str, object]]:
    """The dotted keys and unresolved values of all that can be set, nodes before what is in them."""

    def walk(node: object, prefix: str) -> Iterator[tuple[str, object]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if not str(key).startswith("_"):
                    yield f"{prefix}{key}", value
                    yield from walk(value, f"{prefix}{key}.")

    return walk(OmegaConf.to_container(cfg, resolve=False), "")
