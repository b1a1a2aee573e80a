"""The command line, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from lowerbound.cli import main


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """``lowerbound-train`` in a folder; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lowerbound-train", *overrides])
    try:
        return main()
    finally:
        GlobalHydra.instance().clear()
