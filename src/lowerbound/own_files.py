"""Files of the user's in the working folder: whether Python looks for modules there.

The folder may also be a stranger's, in which one goes on with a run, and libraries try to import dozens of others that are not installed.
So it is looked in, after everything else, only where the user's own words lead there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

OF_THE_USER = ("trust=", "--config-dir", "-cd")


def by_words(words: Sequence[str]) -> None:
    """Look there if the command line names packages or a folder of configurations of the user's."""
    if any(word.startswith(OF_THE_USER) for word in words):
        _look_in(os.getcwd())


def by_targets(config: DictConfig, folder: str) -> None:
    """Look there if a ``_target_`` is of a module that is nowhere else: words of a run folder name none."""
    modules = {target.partition(".")[0] for target in _targets(OmegaConf.to_container(config, resolve=True))}
    there = [module for module in modules - set(sys.modules) if PathFinder.find_spec(module, [folder])]
    if any(find_spec(module) is None for module in there):
        _look_in(folder)


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the user's must not hide a library's


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
        yield target
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(value)
