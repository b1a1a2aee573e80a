"""The commands that there are, and what each does with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import NamedTuple

from omegaconf import DictConfig


class Command(NamedTuple):
    """A command by name, its file in ``conf/``, what it does with the configuration, and the key that a path is for.

    A command that is about several things to do has a verb, the word that says which.
    """

    name: str
    config: str
    function: str
    path: str | None = None
    verb: str | None = None

    def load(self) -> Callable[[DictConfig], object]:
        """What it does; by its name, so that help and a typo need not wait for torch."""
        return resolve_name(self.function)


TRAIN = Command("lowerbound-train", "config", "lowerbound.run:train")
LADDER = Command("lowerbound-ladder", "ladder", "lowerbound.ladder:climb_and_tell")
EVALUATE = Command("lowerbound-evaluate", "evaluate", "lowerbound.evaluation:evaluate", "run")
PREDICT = Command("lowerbound-predict", "predict", "lowerbound.prediction:predict", "run")
REPORT = Command("lowerbound-report", "report", "lowerbound.sweep_report:report", "folder")
SWEEP = Command("lowerbound-sweep", "sweep", "lowerbound.sweep_status:status", "folder", "status")
