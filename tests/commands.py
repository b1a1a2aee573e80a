"""The command lines, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from lowerbound.cli import main


class Answer(NamedTuple):
    """What a command line did: its exit code, what it wrote, and the configurations of the runs that it began."""

    code: int
    out: str
    err: str
    runs: list[DictConfig]


Training = Callable[[DictConfig], float]
Command = Callable[..., Answer]


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """``lowerbound-train`` in a folder; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lowerbound-train", *overrides])
    try:
        return main()
    finally:
        GlobalHydra.instance().clear()


def called(
    name: str, command: Callable[[], int], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in a folder, as a function of its arguments: the exit code, and what it wrote to either stream."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            code = command()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return code, *capsys.readouterr()

    return run
