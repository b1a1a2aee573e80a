"""Handing out rows: shuffled blocks ``[K, B, D]`` for training, batches ``[b, D]`` in order for evaluation.

The table is a tensor on the device, in host memory, or mapped from a file; rows are gathered by one `index_select` per block.
Every random draw comes from a generator keyed by what it is for (seed, epoch, step, rank), so that nothing depends on the
block size, on where the table lies or on what was drawn before, and the state of a loader is two numbers, alike on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from lowerbound.data.steps import Step, run

CHUNK = 1000  # rows that one generator of a fixed draw serves
_ORDER, _NOISE, _FIXED, HOLES = range(4)  # what a generator is for


class Place(NamedTuple):
    """Where rows are handed out: the device, the floating type, and which of how many ranks."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1


def keyed_generator(seed: int, *key: int, device: torch.device | str = "cpu") -> Generator:
    """A generator that depends on `seed` and `key` only; different keys give unrelated draws."""
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


@dataclass(kw_only=True, eq=False)
class TensorBatches:
    """Training blocks ``[K, B, D]``: every iteration is one epoch, in which each row is handed out exactly once.

    `table` ``[N, D]`` is what rows are taken from, `rows` ``[n]`` which ones, `steps` what is still to be done to them, drawn
    step by step. A global batch is `batch_size` rows for each rank. After the full steps, in blocks of K (the last
    may be shorter), comes one block ``[1, b, D]`` of the rows that remain, shared by the ranks; b may differ and be 0.
    """

    table: Tensor
    rows: Tensor
    steps: Sequence[Step] = ()
    batch_size: int = 128
    steps_per_block: int = 1
    seed: int = 0
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        self._global_batch = self.batch_size * self.place.world
        self._epoch, self._taken, self._resumes = 0, 0, False
        self._handed_out = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the same on every rank."""
        return -(-len(self.rows) // self._global_batch)

    def __len__(self) -> int:
        """Blocks in an epoch."""
        full, rest = divmod(len(self.rows), self._global_batch)
        return -(-full // self.steps_per_block) + (rest > 0)

    def steps_in(self, blocks: int) -> int:
        """Optimizer steps in the first `blocks` blocks of an epoch."""
        full, rest = divmod(len(self.rows), self._global_batch)
        return min(blocks * self.steps_per_block, full) + (rest > 0 and blocks >= len(self))

    def __iter__(self) -> Iterator[Tensor]:
        """The blocks of the next epoch, or the rest of the epoch that was loaded; begun at the first `next`."""
        if not self._resumes:
            self.finish_epoch()
        self._resumes = False
        epoch, step = self._epoch, self._taken
        order = self.rows[self._order(epoch)].to(self.table.device)
        for block in self._blocks(order, step):
            self._handed_out = epoch, step
            taken = step + len(block)
            self._epoch, self._taken = (epoch, taken) if taken < self.steps_per_epoch else (epoch + 1, 0)
            yield self._prepared(block, epoch, step)
            step = taken

    def finish_epoch(self) -> None:
        """Say that the rest of the epoch will not be asked for (an epoch cut short by a limit); nothing at its end."""
        if self._taken:
            self._epoch, self._taken = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch and the steps of it already handed out; the same on every rank."""
        return {"epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next iteration."""
        self._epoch, self._taken, self._resumes = state["epoch"], state["taken"], True

    def handed_out(self, batch: int) -> Tensor:
        """Where in `rows` those of a batch ``[b]`` of the block that was handed out last are."""
        epoch, step = self._handed_out
        return next(self._blocks(self._order(epoch), step))[batch]

    def _order(self, epoch: int) -> Tensor:
        """The places in `rows` ``[n]`` in the order of the epoch."""
        return torch.randperm(len(self.rows), generator=keyed_generator(self.seed, _ORDER, epoch))

    def _blocks(self, order: Tensor, step: int) -> Iterator[Tensor]:
        """The rank's share of an epoch's order from a step on, in blocks ``[k, b]``."""
        full = len(order) // self._global_batch * self._global_batch
        mine = order[:full].view(-1, self.place.world, self.batch_size)[:, self.place.rank]  # [steps, B]
        yield from (mine[start : start + self.steps_per_block] for start in range(step, len(mine), self.steps_per_block))
        if full < len(order):
            yield order[full:].tensor_split(self.place.world)[self.place.rank][None]

    def _prepared(self, block: Tensor, epoch: int, step: int) -> Tensor:
        x = gather(self.table, block.flatten(), self.place.device).view(*block.shape, self.table.shape[1])  # [k, b, D]
        x = x.to(torch.promote_types(x.dtype, self.place.dtype))
        for i, rows in enumerate(x if self.steps else ()):
            key = (_NOISE, epoch, step + i, self.place.rank)
            x[i] = run(self.steps, rows, x.dtype, keyed_generator(self.seed, *key, device=self.place.device))
        return x.to(self.place.dtype)


class Sliceable(Protocol):
    """A tensor ``[n, D]``, or what can be cut into one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(kw_only=True, eq=False)
class FixedDraw:
    """Rows of a table, prepared by one draw that is the same however the rows are cut into batches, and on any device."""

    table: Tensor
    rows: Tensor
    steps: Sequence[Step] = ()
    seed: int = 0
    part: int = 0
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __getitem__(self, cut: slice) -> Tensor:
        """Rows from start to stop, prepared, ``[b, D]`` in host memory."""
        start, stop, _ = cut.indices(len(self))
        pieces = [
            self._chunk(chunk)[max(start - chunk * CHUNK, 0) : stop - chunk * CHUNK] for chunk in range(start // CHUNK, -(-stop // CHUNK))
        ]
        return torch.cat(pieces) if pieces else torch.empty(0, self.table.shape[1], dtype=self.dtype)

    def _chunk(self, chunk: int) -> Tensor:
        x = self.table[self.rows[chunk * CHUNK : (chunk + 1) * CHUNK]]
        return run(self.steps, x, self.dtype, keyed_generator(self.seed, _FIXED, self.part, chunk)).to(self.dtype)


@dataclass(kw_only=True, eq=False)
class EvaluationBatches:
    """Batches in order, nothing dropped: x ``[b, D]``, or (x, labels ``[b]``) where there are labels; a rank's contiguous share."""

    x: Sliceable
    labels: Tensor | None = None
    batch_size: int = 1000
    place: Place = field(default_factory=Place)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """The batches."""
        for start, stop in pairwise(self._bounds()):
            x = self.x[start:stop].to(self.place.device)
            yield x if self.labels is None else (x, self.labels[start:stop].to(self.place.device))

    @property
    def start(self) -> int:
        """The first row of this rank."""
        return self._bounds()[0]

    def rows(self) -> Tensor:
        """All rows of this rank, ``[n, D]``."""
        bounds = self._bounds()
        return self.x[bounds[0] : bounds[-1]].to(self.place.device)

    def _bounds(self) -> list[int]:
        """Where the batches of this rank begin, and where the last one ends."""
        small, larger = divmod(len(self.x), self.place.world)
        start = self.place.rank * small + min(self.place.rank, larger)  # as tensor_split cuts
        stop = start + small + (self.place.rank < larger)
        return [*range(start, stop, self.batch_size), stop]


class OnePass:
    """An epoch as one batch, which is this object: all rows of this rank in order, to go through by `chunks`."""

    def __init__(self, chunks: EvaluationBatches) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        """One."""
        return 1

    def __iter__(self) -> Iterator[OnePass]:
        """Itself, once."""
        yield self


def gather(table: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """The rows of a table, on the device; through pinned memory where the table is not on that device and it is a GPU."""
    if table.device == device or device.type != "cuda":
        return table.index_select(0, rows).to(device)
    pinned = torch.empty(len(rows), table.shape[1], dtype=table.dtype, pin_memory=True)
    return torch.index_select(table, 0, rows, out=pinned).to(device, non_blocking=True)
