"""The configuration that stands when nothing is chosen, and how another one differs from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

UNCOMPARED = ("hydra", "name", "sweep", "debug")  # names of folders, and Hydra's own
FREE = ("logger", "callbacks.last", "callbacks.pictures", "trainer.enable_progress_bar")  # what is told of a run, and how often it is saved


class Difference(NamedTuple):
    """A key whose value is another one than the default, or one that the default does not have (None)."""

    key: str
    default: str | None
    here: str


def conf_folder() -> Path:
    """The folder of the configuration: inside an installed package, or beside ``src`` in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def config_loader() -> ConfigLoader:
    """What composes configurations of that folder, also outside of a running command."""
    return ConfigLoaderImpl(create_config_search_path(str(conf_folder())))


def differences(config: DictConfig, chosen: Collection[str] = ()) -> list[Difference]:
    """What of a resolved configuration of `lowerbound-train` is not as it would be without any choice.

    What is glued together from other keys, as a model from its parts, is told once, where it is set: by itself only if it is among
    the keys that were `chosen` on the command line.
    """
    default = _default()
    glued = _glued(default)
    before = dict(_leaves(OmegaConf.to_container(default, resolve=True)))
    now = dict(_leaves(OmegaConf.to_container(config, resolve=True)))
    changed = [key for key, value in now.items() if before.get(key) != value and not key.endswith("._partial_")]
    return [Difference(key, before.get(key), now[key]) for key in changed if key in chosen or not glued.intersection(_heads(key))]


def changes(before: DictConfig, now: DictConfig) -> list[str]:
    """The keys of two resolved configurations that differ, of those that can change a run's numbers, with both values.

    Those that were set come first, what follows from them last.
    """
    glued = _glued(_default())
    old, new = (dict(_leaves(OmegaConf.to_container(config, resolve=True))) for config in (before, now))
    keys = [key for key in dict.fromkeys([*old, *new]) if not _heads(key) & set(FREE) and old.get(key) != new.get(key)]
    keys.sort(key=lambda key: bool(glued & _heads(key)))
    return [f"{key} was {old.get(key, 'not there')} and is {new.get(key, 'not there')}" for key in keys]


def _glued(default: DictConfig) -> set[str]:
    """The keys whose values are other keys'."""
    return {key for key, value in _leaves(OmegaConf.to_container(default, resolve=False)) if value.startswith("${")}


@cache
def _default() -> DictConfig:
    """Composed once for all runs of a sweep in one process; nobody changes it."""
    config = config_loader().load_configuration("config", overrides=[], run_mode=RunMode.RUN)
    for key in UNCOMPARED:
        config[key] = None  # some hold what only a running command can resolve
    return config


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values, as they would be written on the command line."""
    if isinstance(node, dict) and (node or not key):
        for name, inner in node.items():
            if key or name not in UNCOMPARED:
                yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, _written(node)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _heads(key: str) -> set[str]:
    """The key and all nodes above it."""
    words = key.split(".")
    return {".".join(words[: end + 1]) for end in range(len(words))}
