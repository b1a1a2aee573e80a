"""The data module: one table in memory, or mapped from a file, split by a seed, prepared, and handed out as tensors.

A source is a subclass that implements `read`. No workers and no per-item Python: see `batches.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lowerbound.data.batches import CHUNK, EvaluationBatches, FixedDraw, OnePass, Place, TensorBatches
from lowerbound.data.missing import Missing
from lowerbound.data.prepare import Preparation
from lowerbound.data.source import Part, Source
from lowerbound.data.steps import run
from lowerbound.errors import real, sizes, whole

PARTS = ("train", "val", "test")


class _Rows(NamedTuple):
    """Which rows of which table make a part."""

    table: Tensor
    rows: Tensor
    labels: Tensor | None


@dataclass(kw_only=True, eq=False, repr=False)
class TensorDataModule(LightningDataModule, ABC):
    """Data as flat rows x ``[N, D]``. Implement `read`; inherit the rest.

    `dim` is D, checked against the data; `shape` = [C, H, W] is kept for those who draw or convolve. `batch_size` is per rank.
    `test_fraction` counts where the source has no test part of its own. `split_seed` decides the split and the fixed draws of
    val and test, `seed` the order and the draws of training. `storage` is ``device`` or ``host``: where the training table lies.
    `missing` hides entries of all parts, the same in every epoch; `unhidden` are the rows as they were.

    Raises:
        ValueError: options that do not fit each other, or, from `setup`, the data.
    """

    dim: int
    shape: Sequence[int] | None = None
    batch_size: int = 128
    eval_batch_size: int = 1000
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    seed: int = 0
    storage: str = "device"
    prepare: Preparation = field(default_factory=Preparation)
    missing: Missing = field(default_factory=Missing)

    def __post_init__(self) -> None:
        super().__init__()
        whole(self.dim, "data.dim")
        for option, kind in (("prepare", Preparation), ("missing", Missing)):
            if not isinstance(value := getattr(self, option), kind):
                raise ValueError(f"data.{option}={value!r} must be a {kind.__name__}: set its options, such as data.{option}.<option>=...")
        self.shape = None if self.shape is None else sizes(self.shape, "data.shape")
        if self.shape is not None and prod(self.shape) != self.dim:
            raise ValueError(f"data.shape={list(self.shape)} has {prod(self.shape)} entries, but data.dim={self.dim}")
        if self.storage not in ("device", "host"):
            raise ValueError(f"data.storage={self.storage} is none of device, host")
        for option in ("batch_size", "eval_batch_size"):
            whole(getattr(self, option), f"data.{option}")
        for option in ("split_seed", "seed"):
            whole(getattr(self, option), f"data.{option}", least=0)
        for option in ("val_fraction", "test_fraction"):
            real(getattr(self, option), f"data.{option}", least=0, below=1)
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} must leave rows to train on"
            )
        self._parts: dict[str, _Rows] = {}
        self._unhidden: dict[str, _Rows] = {}
        self._blocks: TensorBatches | OnePass | None = None
        self._is_mapped = False

    @abstractmethod
    def read(self) -> Source:
        """Read the source.

        Raises:
            ValueError: it is not there or cannot be read; the message names the place and the option.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and learn the preparation, once; a fit begins with the first epoch's order again."""
        if stage == "fit":
            self._blocks = None
        if self._parts:
            return
        source = self.read()
        self._check(source)
        self._unhidden = self._split(source)
        parts = self._split(self.missing.hide(source, self.shape)) if self.missing.hides else self._unhidden
        if not self.prepare.is_fitted:
            self.prepare.fit(parts["train"].table, parts["train"].rows)
        self._parts, self._is_mapped = parts, source.is_mapped

    def part(self, name: str, limit: int | None = None) -> Part:
        """The first `limit` rows of train, val or test (all: None), prepared with one fixed draw, in host memory."""
        labels = self._rows(name).labels
        return Part(self._fixed_draw(name)[:limit], None if labels is None else labels[:limit])

    def unhidden(self, name: str, limit: int | None = None) -> Tensor:
        """The x ``[n, D]`` of `part` as it would be had nothing been hidden: with the same draw, and prepared as what is observed is."""
        return self._fixed_draw(name, unhidden=True)[:limit]

    def require_rows(self, world: int, parts: Sequence[str] = PARTS) -> None:
        """Refuse one of the parts that are needed, if it has fewer rows than there are ranks.

        Raises:
            ValueError: as said; the message names the option.
        """
        for name in parts:
            if (count := len(self._rows(name).rows)) < world:
                option = "val_fraction" if name == "train" else f"{name}_fraction"
                value = getattr(self, option)
                found = f"{count} {name} rows for {world} process(es), of {sum(map(self.count, PARTS))} in all"
                raise ValueError(f"{found}: give more data, or change data.{option}={value}")

    def chunks(self, name: str) -> Iterator[Tensor]:
        """The rows of a part as `part` has them, some at a time: also of a table larger than memory."""
        draw = self._fixed_draw(name)
        return (draw[start : start + CHUNK] for start in range(0, len(draw), CHUNK))

    def train_dataloader(self) -> TensorBatches | OnePass:
        """Shuffled blocks ``[K, B, D]``, K = `steps_per_execution` of the trainer's module; the same object for the whole fit.

        For a module that names `rows_per_chunk`, all rows in order as one batch, with the same draws in every epoch.
        """
        if self._blocks is None:
            size = getattr(self.trainer and self.trainer.lightning_module, "rows_per_chunk", None)
            self._blocks = self._training_blocks() if size is None else OnePass(self._batches("train", size))
        return self._blocks

    def some(self, name: str, limit: int) -> Tensor:
        """About `limit` rows of a part, spread over it in runs of at most `CHUNK`, prepared, in host memory."""
        draw = self._fixed_draw(name)
        if len(draw) <= limit:
            return draw[:]
        size = min(CHUNK, limit)
        starts = torch.linspace(0, len(draw) - size, max(limit // size, 1)).long().tolist()
        return torch.cat([draw[start : start + size] for start in starts])

    def count(self, name: str) -> int:
        """The rows of a part."""
        return len(self._rows(name).rows)

    def source_rows(self, name: str, places: Tensor) -> Tensor:
        """The rows of the source, or of its test part, at places ``[n]`` in a part."""
        return self._rows(name).rows[places]

    def val_dataloader(self) -> EvaluationBatches:
        """Validation rows in order."""
        return self._batches("val", self.eval_batch_size)

    def test_dataloader(self) -> EvaluationBatches:
        """Test rows in order."""
        return self._batches("test", self.eval_batch_size)

    def predict_dataloader(self) -> EvaluationBatches:
        """All test rows in order."""
        return self._batches("test", self.eval_batch_size)

    def unhidden_batches(self, name: str) -> EvaluationBatches:
        """`unhidden` rows as the loaders of val and test hand out those with holes."""
        return self._batches(name, self.eval_batch_size, unhidden=True)

    def state_dict(self) -> dict[str, Any]:
        """The preparation's statistics."""
        return {"prepare": dict(self.prepare.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the preparation's statistics."""
        self.prepare.load_state_dict(state_dict["prepare"])

    def _check(self, source: Source) -> None:
        if source.levels not in (None, self.prepare.levels):
            raise ValueError(
                f"data.prepare.levels={self.prepare.levels}, but these data are integers in 0..{source.levels - 1}.\n"
                f"Set data.prepare.levels={source.levels}."
            )
        self._check_table(source.train, source.train_labels)
        if source.test is not None:
            self._check_table(source.test, source.test_labels)

    def _check_table(self, table: Tensor, labels: Tensor | None) -> None:
        if table.shape[1] != self.dim:
            also = "" if self.shape is None else ", and data.shape to fit"
            also += ", or data.labels to the column that is none of them" if labels is None and table.shape[1] == self.dim + 1 else ""
            raise ValueError(f"the data have {table.shape[1]} columns, but data.dim={self.dim}.\nSet data.dim={table.shape[1]}{also}.")
        if labels is not None and len(labels) != len(table):
            raise ValueError(f"there are {len(labels)} labels for {len(table)} rows: see data.labels")
        self.prepare.check(table)

    def _split(self, source: Source) -> dict[str, _Rows]:
        """Rows of each part, in the order of the source, so that a mapped file is read forwards."""
        count = len(source.train)
        num_val = round(self.val_fraction * count)
        num_test = 0 if source.test is not None else round(self.test_fraction * count)
        if num_val + num_test >= count:
            raise ValueError(
                f"{count} rows leave none to train on: data.val_fraction={self.val_fraction}, data.test_fraction={self.test_fraction}"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.split_seed))
        cuts = [count - num_val - num_test, count - num_test]
        parts = {name: _take(source.train, source.train_labels, rows) for name, rows in zip(PARTS, order.tensor_split(cuts), strict=True)}
        if source.test is not None:
            parts["test"] = _take(source.test, source.test_labels, torch.arange(len(source.test)))
        return parts

    def _rows(self, name: str) -> _Rows:
        if name not in PARTS:
            raise ValueError(f"{name} is none of the parts {', '.join(PARTS)}")
        self.setup()
        return self._parts[name]

    def _fixed_draw(self, name: str, unhidden: bool = False) -> FixedDraw:
        table, rows, _ = self._rows(name)
        original = self._unhidden[name].table
        return FixedDraw(
            table=original if unhidden else table,
            rows=rows,
            steps=self.prepare.chain,
            seed=self.split_seed,
            part=PARTS.index(name),
            dtype=self._place.dtype if name != "train" else self._training_type(original),
        )

    def _training_type(self, table: Tensor) -> torch.dtype:
        """Real numbers stay as fine as they are for a module that takes sums over data: it minds their precision itself."""
        sums = getattr(self.trainer and self.trainer.lightning_module, "rows_per_chunk", None) is not None
        return torch.promote_types(table.dtype, torch.float32) if sums and table.is_floating_point() else self._place.dtype

    def _training_blocks(self) -> TensorBatches:
        table, rows, _ = self._rows("train")
        place, steps = self._place, self.prepare.chain
        if self.prepare.fixed and not self._is_mapped:
            table = torch.cat([run(self.prepare.fixed, table[chunk], place.dtype) for chunk in rows.split(CHUNK)])
            rows, steps = torch.arange(len(table)), self.prepare.random
        self.prepare.to(place.device)
        return TensorBatches(
            table=self._stored(table),
            rows=rows,
            steps=steps,
            batch_size=self.batch_size,
            steps_per_block=getattr(self.trainer and self.trainer.lightning_module, "steps_per_execution", 1),
            seed=self.seed,
            place=place,
        )

    def _batches(self, name: str, size: int, unhidden: bool = False) -> EvaluationBatches:
        draw = self._fixed_draw(name, unhidden)
        x = draw if self._is_mapped else self._stored(draw[:])
        return EvaluationBatches(x=x, labels=None if name == "train" else self._rows(name).labels, batch_size=size, place=self._place)

    def _stored(self, table: Tensor) -> Tensor:
        return table.to(self._place.device) if self.storage == "device" and not self._is_mapped else table

    @property
    def _place(self) -> Place:
        """The trainer's device and ranks, and the floating type of its module."""
        dtype = torch.get_default_dtype()
        if self.trainer is None:
            return Place(dtype=dtype)
        if self.trainer.lightning_module is not None:
            dtype = next((p.dtype for p in self.trainer.lightning_module.parameters() if p.dtype == torch.float64), dtype)
        return Place(self.trainer.strategy.root_device, dtype, self.trainer.global_rank, self.trainer.world_size)


def _take(table: Tensor, labels: Tensor | None, rows: Tensor) -> _Rows:
    rows = rows.sort().values
    return _Rows(table, rows, None if labels is None else labels[rows])
