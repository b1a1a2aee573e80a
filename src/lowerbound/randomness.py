"""The states of the random generators: set aside, put back, kept in checkpoints."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

States = dict[str, list[Tensor]]


def generator_states() -> States:
    """The states of the generators of the CPU and of every GPU of this process, as plain containers of tensors."""
    return {"cpu": [torch.get_rng_state()], "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_generator_states(states: States) -> None:
    """Put the generators back into those states."""
    torch.set_rng_state(states["cpu"][0])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])


def process_states() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's generators of this process, as tensors and plain containers."""
    state: Any = np.random.get_state(legacy=True)  # pyright does not tell its two forms apart
    name, keys, *rest = state
    return {"torch": generator_states(), "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest], "python": random.getstate()}


def set_process_states(states: dict[str, Any]) -> None:
    """Put all of them back."""
    set_generator_states(states["torch"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Generators seeded with `seed` inside, and as they were afterwards."""
    states = generator_states()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_generator_states(states)
