"""The processes that torchrun has started, for commands without a Trainer: rows in blocks, shared out among them.

Every block of rows has generators of its own, seeded by its place, so that its numbers do not depend on how many processes there
are, which of them has it, and what else it has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from lowerbound.metrics import PerDatum
from lowerbound.randomness import own_generators

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # of the others, while the first one does what only one has to do


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """The group of processes, if there are several, and the device of this one."""
    if not distributed.is_torchelastic_launched():
        yield device
        return
    local = int(os.environ["LOCAL_RANK"])
    own = torch.device("cuda", local) if device.type == "cuda" else device
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """The number of this process and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def of_all(mine: T) -> list[T]:
    """The object of each process, in the order of their numbers; a collective call."""
    _, world = place()
    everyones: list[Any] = [mine] * world
    if world > 1:
        distributed.all_gather_object(everyones, mine)
    return everyones


def by_blocks(function: Callable[[slice], Tensor], shape: tuple[int, int], size: int, device: torch.device, what: str) -> Tensor:
    """Numbers of `shape` ``[K, N]``, float64, of which `function` gives those of a slice of the data: `size` at a time, by all processes.

    `what` is the name on the progress bar, which there is where somebody watches.
    """
    found = PerDatum(*shape).to(device)
    for rows in own_slices(shape[1], size, what):
        with own_generators(rows.start):
            found.update(rows.start, function(rows))
    return found.compute().reshape(shape)  # which torchmetrics squeezes


def own_slices(count: int, size: int, what: str) -> Iterable[slice]:
    """Those of `count` data that are this process's, `size` at a time."""
    rank, world = place()
    slices = [slice(start, start + size) for start in range(rank * size, count, world * size)]
    return tqdm(slices, desc=what, leave=False, disable=rank > 0 or not sys.stderr.isatty())
