"""The commands that there are, and what each does with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from omegaconf import DictConfig


class Command(NamedTuple):
    """A command by name, its file in ``conf/``, where to get what it does with the configuration, and the key that a path is for.

    A command that is about several things to do has a verb, the word that says which.
    """

    name: str
    config: str
    load: Callable[[], Callable[[DictConfig], object]]
    path: str | None = None
    verb: str | None = None


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


def _status() -> Callable[[DictConfig], object]:
    from lowerbound.sweep_status import status

    return status


TRAIN = Command("lowerbound-train", "config", _train)
LADDER = Command("lowerbound-ladder", "ladder", _climb)
EVALUATE = Command("lowerbound-evaluate", "evaluate", _evaluate, "run")
PREDICT = Command("lowerbound-predict", "predict", _predict, "run")
REPORT = Command("lowerbound-report", "report", _report_sweep, "folder")
SWEEP = Command("lowerbound-sweep", "sweep", _status, "folder", "status")
