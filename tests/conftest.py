"""What the tests share."""

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch starts, and for the processes that tests start: small tensors, and a process per core

import pytest
import torch

import lowerbound  # noqa: F401  before lightning: it mends torchvision's import where that is needed

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds MNIST: ``LOWERBOUND_DATA``, else ``shared/data`` beside the checkout."""
    root = Path(os.environ.get("LOWERBOUND_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {root}: set LOWERBOUND_DATA to the folder that has it")
    return root.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first: at the end one process would be at them, and the others would wait."""
    slow = ("slurm", "process")
    place: dict[Path, int] = {}
    for item in items:
        own = min((slow.index(mark.name) for mark in item.iter_markers() if mark.name in slow), default=len(slow))
        place[item.path] = min(own, place.get(item.path, own))
    items.sort(key=lambda item: place[item.path])
