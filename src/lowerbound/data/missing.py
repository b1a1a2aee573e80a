"""Hiding entries of data that have them, so that what a model fills in can be compared with the truth.

    fraction   every entry alone with this probability, completely at random
    block      of every row one piece of about this share of its entries: of an image [C, H, W] a rectangle in all channels, of
               the proportions of the image; else a run of neighbouring entries. Its place is uniform over the row

A hidden entry is NaN. Models that marginalise missing entries assume that they are missing at random: given what is observed, whether an
entry is missing does not depend on its value (Rubin 1976). Of what is hidden here that is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from lowerbound.data.batches import CHUNK, HOLES, keyed_generator
from lowerbound.data.source import Source
from lowerbound.errors import real, whole

_TRAIN, _TEST = range(2)  # the tables of a source


@final
@dataclass(frozen=True)
class Missing:
    """Which entries to hide; both kinds together hide what either hides. `seed` decides the entries, and nothing else does.

    Raises:
        ValueError: a share is not in [0, 1), or the seed no whole number.
    """

    fraction: float = 0.0
    block: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("fraction", "block"):
            real(getattr(self, option), f"data.missing.{option}", least=0, below=1)
        whole(self.seed, "data.missing.seed", least=0)

    @property
    def hides(self) -> bool:
        """Whether anything is hidden."""
        return self.fraction > 0 or self.block > 0

    def hide(self, source: Source, shape: Sequence[int] | None = None) -> Source:
        """The source with the hidden entries of all its rows NaN, for rows that are images of `shape` ``[C, H, W]``, if they are.

        Raises:
            ValueError: the source lies on disk.
        """
        if source.is_mapped:
            raise ValueError(
                f"data.missing.fraction={self.fraction} and data.missing.block={self.block} hide entries in memory:\n"
                "set data.memory_map=false, or write NaN into the file"
            )
        test = None if source.test is None else self._with_holes(source.test, shape, _TEST)
        return source._replace(train=self._with_holes(source.train, shape, _TRAIN), test=test)

    def _with_holes(self, table: Tensor, shape: Sequence[int] | None, which: int) -> Tensor:
        table = as_real(table)
        for chunk, rows in enumerate(table.split(CHUNK)):
            rows[self._holes(rows, shape, keyed_generator(self.seed, HOLES, which, chunk))] = torch.nan
        return table

    def _holes(self, rows: Tensor, shape: Sequence[int] | None, generator: Generator) -> Tensor:
        """True where an entry of ``[n, D]`` is hidden."""
        holes = torch.rand(rows.shape, generator=generator) < self.fraction
        if not self.block:
            return holes
        channels, height, width = shape if shape is not None and len(shape) == 3 else (1, 1, rows.shape[1])
        high = max(1, round(height * self.block**0.5))
        wide = min(width, max(1, round(self.block * height * width / high)))
        down, across = _run(len(rows), height, high, generator), _run(len(rows), width, wide, generator)  # [n, H], [n, W]
        rectangle = down.unsqueeze(2) & across.unsqueeze(1)  # [n, H, W]
        return holes | rectangle.unsqueeze(1).expand(-1, channels, -1, -1).reshape(rows.shape)


def _run(count: int, size: int, length: int, generator: Generator) -> Tensor:
    """True in a run of `length` of `size` places, somewhere, for each of `count` rows: ``[count, size]``."""
    start = torch.randint(size - length + 1, (count, 1), generator=generator)
    place = torch.arange(size) - start
    return (place >= 0) & (place < length)


def never_observed(chunks: Iterable[Tensor]) -> Iterator[str]:
    """Sentences that name the training columns, and count the rows, of chunks ``[n, D]`` of which nothing was observed."""
    seen, rows, empty = torch.zeros(0, dtype=torch.bool), 0, 0
    for x in chunks:
        observed = ~x.isnan()
        seen = observed.any(0) | (seen if len(seen) else False)
        rows, empty = rows + len(x), empty + int((~observed.any(1)).sum())
    if columns := (~seen).nonzero().flatten().tolist():
        names = ", ".join(map(str, columns[:10])) + (", ..." if len(columns) > 10 else "")
        yield f"column {names} (counted from 0) is never observed in the training rows: what is filled in there is where learning began"
    if empty:
        yield f"{empty} of {rows} training rows hold no observed entry: each counts as a datum, with log p(x) = 0"


def as_real(table: Tensor) -> Tensor:
    """A copy of numbers ``[N, D]`` in a type that has NaN: integers in the smallest that holds them exactly."""
    if table.is_floating_point():
        return table.clone()
    is_small = table.dtype.itemsize <= 2 or table.double().abs().max() <= 2**24
    return table.to(torch.float32 if is_small else torch.float64)
