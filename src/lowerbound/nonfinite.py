"""Where a number that is not finite came from: the optimizer step, the term of the bound, the rows of the batch.

The bounds of a block are looked at once, when all its steps are taken. Those before the first that is not finite were of good
parameters, so the rows of that one are the ones to look at; if they are all of its rows, the parameters were spoilt before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lowerbound.data.batches import OnePass, TensorBatches
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import NonFiniteError
from lowerbound.folder import last_good
from lowerbound.objectives import Bound
from lowerbound.ranks import of_all

T = TypeVar("T")

SHOWN = 6  # rows in a message
TERMS = ("objective", "reconstruction", "kl")
PART = "the training part"
HELP = "A lower fit.optimizer.lr, fit.clip=1 or a higher noise.min_scale often helps"


class Bad(NamedTuple):
    """What was not finite: in which of the batches, which terms, and which of how many rows, as places in `of`."""

    batch: int
    terms: list[str]
    rows: list[int]
    total: int
    of: str


def any_rank(flag: Tensor, trainer: Trainer) -> bool:
    """Whether it is set on any rank of the trainer: a collective call, where there are several."""
    if trainer.world_size > 1:
        flag = flag.float()
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def spoilt(bound: Bound) -> Tensor:
    """Which data ``[N]`` have a term that is not finite."""
    return ~torch.stack([term.isfinite() for term in bound if term is not None]).all(0)


def first_bad(bounds: Sequence[Bound], trainer: Trainer, begin: int = 0) -> Bad:
    """The first of some batches of the block handed out last that is not finite on any rank: a collective call.

    `bounds` are those of its batches from number `begin` on. If all their terms are finite, it was the gradient of the last one.
    """
    mine = [spoilt(bound).nonzero().flatten().cpu() for bound in bounds]
    first = min(_everyones(next((i for i, rows in enumerate(mine) if len(rows)), len(bounds) - 1), trainer))
    bound, rows = bounds[first], mine[first]
    if not any(_everyones(len(rows), trainer)):
        rows = torch.arange(len(bound.value))
    names = [name for name, term in zip(TERMS, bound, strict=True) if term is not None and not term.isfinite().all()]
    loader, of = trainer.train_dataloader, f"block {trainer.fit_loop.batch_idx + 1} of the epoch"
    if isinstance(loader, TensorBatches):
        rows, of = loader.handed_out(begin + first)[rows], PART
    return _of_all_ranks(Bad(first, names, rows.tolist(), len(bound.value), of), trainer)


def bad_rows(bounds: Iterable[Bound], trainer: Trainer) -> Bad:
    """What is not finite in a pass over the data: a collective call."""
    loader, rows, count = trainer.train_dataloader, [], 0
    start, of = (loader.chunks.start, PART) if isinstance(loader, OnePass) else (0, "the epoch")
    for bound in bounds:
        rows += (spoilt(bound).nonzero().flatten() + start + count).tolist()
        count += len(bound.value)
    return _of_all_ranks(Bad(0, ["objective"], rows, count, of), trainer)


def _of_all_ranks(mine: Bad, trainer: Trainer) -> Bad:
    everyones = _everyones(mine, trainer)
    terms = list(dict.fromkeys(name for bad in everyones for name in bad.terms)) or ["gradient"]
    return mine._replace(terms=terms, rows=[row for bad in everyones for row in bad.rows], total=sum(bad.total for bad in everyones))


def _everyones(mine: T, trainer: Trainer) -> list[T]:
    return [mine] if trainer.world_size == 1 else of_all(mine)


def error(step: int, bad: Bad, trainer: Trainer, advice: str = HELP) -> NonFiniteError:
    """What to raise: the optimizer step, the terms, the rows, the last good checkpoint, and what may help."""
    return NonFiniteError(f"{where(step, bad, trainer)}\n{last_good(Path(trainer.default_root_dir))}.\n{advice}.")


def where(step: int, bad: Bad, trainer: Trainer) -> str:
    """The optimizer step, the terms, and the rows, also by their numbers in the source of the data."""
    what = f"optimizer step {step}: {' and '.join(bad.terms)} not finite"
    if not bad.rows:
        return f"{what}, in the sum and in no single row."
    rows = f"row{'s' if len(bad.rows) > 1 else ''} {_numbers(bad.rows)} of {bad.of}"
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TensorDataModule) and bad.of == PART:
        rows += f" ({_numbers(data.source_rows('train', torch.tensor(bad.rows)).tolist())} of the data, from 0)"
    return f"{what}, in all {bad.total} rows of the batch: {rows}" if len(bad.rows) == bad.total > 1 else f"{what}, in {rows}"


def _numbers(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"{', '.join(map(str, rows[:SHOWN]))}{more}"
