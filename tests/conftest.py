"""What the tests share."""

import gc
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch starts, and for the processes that tests start: small tensors, and a process per core

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import commands
import lowerbound  # noqa: F401  before lightning: it mends torchvision's import where that is needed
import parsed_once  # noqa: F401  for all tests
from lowerbound import cli

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds MNIST: ``LOWERBOUND_DATA``, else ``shared/data`` beside the checkout."""
    root = Path(os.environ.get("LOWERBOUND_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {root}: set LOWERBOUND_DATA to the folder that has it")
    return root.resolve()


@pytest.fixture(scope="session")
def processes() -> Iterator[Any]:
    """Processes of their own, started from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker_of_commands"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where that process finds it
        yield context


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[commands.Command]:
    """``lowerbound-train`` in an empty folder, as a function of its arguments and of what stands in for the training."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    handlers = list(logging.root.handlers)

    def run(*arguments: str, train: commands.Training) -> commands.Answer:
        runs: list[DictConfig] = []

        def stand_in(cfg: DictConfig) -> float:
            OmegaConf.resolve(cfg)
            runs.append(cfg)
            return train(cfg)

        monkeypatch.setitem(sys.modules, "lowerbound.run", SimpleNamespace(train=stand_in))
        return commands.Answer(*commands.called(cli.PROGRAM, cli.main, Path.cwd(), monkeypatch, capsys)(*arguments), runs)

    monkeypatch.chdir(tmp_path)
    yield run
    logging.root.handlers = handlers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first: at the end one process would be at them, and the others would wait."""
    slow = ("slurm", "process")
    place: dict[Path, int] = {}
    for item in items:
        own = min((slow.index(mark.name) for mark in item.iter_markers() if mark.name in slow), default=len(slow))
        place[item.path] = min(own, place.get(item.path, own))
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """Nothing that is imported is garbage: the collector need not look through half a million objects time and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
