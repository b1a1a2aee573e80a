"""Run folders that may be a stranger's: what of them is built, and which words of theirs are taken.

Only classes are built, each found by one import and one name. The module that is named and the one in which the class was defined must
both be of a package that is trusted: this one, and those that the caller names; a folder names none. And the class must be a part of a
model or of data. So no alias, no function and no dispatcher of calls is a target. Nothing else is imported, and nothing is built before
the whole tree has passed. What is written in a folder stands there in full: an interpolation is refused, since it could read the
environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lowerbound.data.missing import Missing

OURS, OPTIMIZERS = "lowerbound", "torch.optim"
KINDS = (nn.Module, LightningDataModule, Missing, Optimizer, LRScheduler)
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Target:
    """A call that has passed: the class, whether its caller will complete the arguments, and the arguments, with further calls in them."""

    key: str
    kind: type
    is_partial: bool
    arguments: dict[str, Any]


def safe_instantiate(config: DictConfig, key: str, trust: str | Sequence[str] = ()) -> Any:
    """What a run folder's configuration describes at `key`, a part of a model or of data, innermost first.

    Args:
        config: the folder's configuration; it holds no interpolation.
        key: which of its nodes, dotted.
        trust: packages of the user's own, whose classes may be built beside those of this package.

    Raises:
        ValueError: something in the node could do more than build such parts, and nothing was built;
            or an option does not fit, with the constructor's own message. Both name the key.
        Exception: whatever else a constructor raises, as it is.
    """
    node = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    found = checked(node, key, (OURS, *packages(trust)))
    if not isinstance(found, Target):
        raise ValueError(f"{key} of the run folder names no class")
    return _built(found)


def packages(trust: str | Sequence[str]) -> tuple[str, ...]:
    """The packages that a command line or a caller names, one or several.

    Raises:
        ValueError: a name is that of no package.
    """
    names = (trust,) if isinstance(trust, str) else tuple(trust)
    for name in names:
        if not isinstance(name, str) or not DOTTED.fullmatch(name):
            raise ValueError(f"trust={name} is the name of no package: give one that Python imports, as in trust=[mine]")
    return names


def checked(node: Any, key: str, trusted: Collection[str]) -> Any:
    """Plain containers with a `Target` in the place of each call; nothing is built.

    Raises:
        ValueError: a target is none of the trusted packages, no class or of no known kind, or there is another of Hydra's keys or an
            interpolation; the message names the key.
    """
    if isinstance(node, list):
        return [checked(value, f"{key}[{i}]", trusted) for i, value in enumerate(node)]
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{key}={node}: an interpolation in a run folder is not followed")
    if not isinstance(node, dict):
        return node
    kind = _class(node["_target_"], key, trusted) if "_target_" in node else None
    others = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    for name in others:
        if not isinstance(name, str) or re.fullmatch("_.*_", name):
            raise ValueError(f"{key}.{name}: a run folder describes calls by _target_ and _partial_ only")
    arguments = {name: checked(value, f"{key}.{name}", trusted) for name, value in others.items()}
    return arguments if kind is None else Target(key, kind, node.get("_partial_") is True, arguments)


def _class(target: Any, key: str, trusted: Collection[str]) -> type:
    """The class of that name, if it is one that may be built."""
    where = f"{key}._target_={target}"
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise ValueError(f"{where}: that is the name of no class")
    module, _, name = target.rpartition(".")
    if not _is_of(module, trusted):
        package = target.partition(".")[0]
        raise ValueError(
            f"{where}: a run folder builds classes of {', '.join(trusted)} only.\n"
            f"If {package} is a package of your own, say so: trust=[{package}], or lowerbound.load(folder, trust=[{package!r}])"
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(found, type) or not _is_of(found.__module__, trusted) or not issubclass(found, KINDS):
        raise ValueError(f"{where}: that is no class of {', '.join(trusted)} that is a part of a model or of data")
    return found


def _is_of(module: str, trusted: Collection[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in trusted)


def _built(node: Any) -> Any:
    if isinstance(node, list):
        return [_built(value) for value in node]
    if isinstance(node, dict):
        return {name: _built(value) for name, value in node.items()}
    if not isinstance(node, Target):
        return node
    arguments = _built(node.arguments)
    if node.is_partial:
        return partial(node.kind, **arguments)
    try:
        return node.kind(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{error} (in {node.key})") from error


def check_words(words: Sequence[str]) -> None:
    """Refuse words of a command line, kept in a run folder, that do more than choose from ``conf/`` and set plain values.

    Those are options, what concerns Hydra itself or where a logger sends and writes, choices outside of ``conf/`` or put elsewhere in the
    configuration, what a trainer of ``conf/`` does not have, interpolations, and targets that `safe_instantiate` would not build.

    Raises:
        ValueError: the message names the word, and how the user can take the responsibility for it.
    """
    for word in words:
        if why := _objection(word):
            raise ValueError(f"its word {word!r} is not taken from the folder: {why}.\nIf it is yours, say it again on this command line.")


def _objection(word: str) -> str | None:
    if word.startswith("-"):
        return "it is an option"
    override = OverridesParser.create().parse_override(word)
    key, value = override.key_or_group, override.value()
    if "hydra" in f"{key}@{override.package}":
        return "it concerns Hydra itself"
    if override.is_sweep_override():
        return "it is a sweep"
    if override.package is not None:
        return "it puts a choice where it does not belong"
    choices = value if isinstance(value, list) else [value]
    group = key.partition(".")[0]
    if group == "logger" and re.search(r"settings|/|\.\.|[$~]", f"{key}={value}"):  # TensorBoard's takes $ and ~ as a shell does
        return "it could send your key elsewhere, or write there"
    if group == "trainer" and (override.is_add() or override.is_force_add() or isinstance(value, dict) or key == "trainer.strategy"):
        return "it is no plain setting of the trainer"
    if "." not in key and any(isinstance(choice, str) and ("/" in choice or ".." in choice) for choice in choices):
        return "it leads out of conf/"
    try:
        checked({key.rpartition(".")[2]: value}, key.rpartition(".")[0] or key, (OURS, OPTIMIZERS))
    except ValueError as error:
        return str(error).partition("\n")[0]
    return None
