"""The state of torch's random generators: set aside, put back, kept in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Generators seeded with `seed` inside, and as they were afterwards."""
    states = generator_states()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_generator_states(states)
