"""Handing out rows: once each, alike on all ranks, the same whatever the block size, the storage or an interruption."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lowerbound.data.batches import EvaluationBatches, FixedDraw, Place, TensorBatches, keyed_generator
from lowerbound.data.prepare import Preparation
from lowerbound.data.tables import InMemory, Table

DYNAMIC = {"levels": 256, "binarize": "dynamic"}
DEQUANTIZE = {"levels": 256, "dequantize": True}


def numbered(n: int, d: int = 3) -> torch.Tensor:
    """Rows that carry their own number."""
    return torch.arange(n)[:, None].repeat(1, d).float()


def batches(n: int = 100, **options) -> TensorBatches:
    return TensorBatches(**({"table": numbered(n), "rows": torch.arange(n), "batch_size": 8} | options))


def steps_of(blocks) -> list[torch.Tensor]:
    """The steps, whatever the blocks they came in."""
    return [step for block in blocks for step in block]


def rows_of(blocks) -> list[int]:
    return [int(row[0]) for step in steps_of(blocks) for row in step]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("n", [1, 5, 16, 100, 513])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 4])
def test_every_row_once_per_epoch_over_all_ranks(n, world, k):
    ranks = [batches(n, steps_per_block=k, place=Place(rank=rank, world=world)) for rank in range(world)]
    for _ in range(2):
        epochs = [list(rank) for rank in ranks]
        assert sorted(row for epoch in epochs for row in rows_of(epoch)) == list(range(n))
        for rank, epoch in zip(ranks, epochs, strict=True):
            assert len(epoch) == len(rank)
            assert len(steps_of(epoch)) == rank.steps_per_epoch == -(-n // (8 * world))
            assert all(block.shape[1:] == (8, 3) for block in epoch[: n // (8 * world * k)])
            assert [len(block) for block in epoch] == [len(block) for block in epochs[0]]
            assert abs(sum(len(step) for step in steps_of(epoch)) - n / world) < 1  # shares differ by a row at most


@pytest.mark.parametrize("world", [1, 2])
def test_only_the_given_rows_are_handed_out(world):
    rows = torch.arange(0, 100, 3)
    seen = [row for rank in range(world) for row in rows_of(batches(rows=rows, place=Place(rank=rank, world=world)))]
    assert sorted(seen) == rows.tolist()


def test_ranks_share_one_global_batch():
    """World times batch_size rows of two ranks are the rows of one process with the double batch."""
    one = steps_of(batches(75, batch_size=16))
    two = [steps_of(batches(75, place=Place(rank=rank, world=2))) for rank in range(2)]
    assert same(one, [torch.cat(parts) for parts in zip(*two, strict=True)])


def test_the_order_is_new_each_epoch_and_belongs_to_the_seed():
    loader = batches()
    epochs = [rows_of(loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs == [rows_of(other) for other in [batches()] for _ in range(3)]
    assert rows_of(batches(seed=1)) != epochs[0] != list(range(100))


def test_every_order_is_equally_likely():
    """Three rows: six orders, each one sixth of the epochs within six standard errors."""
    loader, n = batches(3), 1200
    counts = np.unique([rows_of(loader) for _ in range(n)], axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert (abs(counts - n / 6) < 6 * (n * 5 / 36) ** 0.5).all()


@pytest.mark.parametrize("options", [DYNAMIC, DEQUANTIZE], ids=["dynamic", "dequantize"])
@pytest.mark.parametrize("place", [Place(), Place(rank=1, world=2)], ids=["alone", "second of two"])
def test_block_size_changes_neither_rows_nor_draws(options, place):
    chain = Preparation(**options).chain
    one, three, eight = (batches(steps=chain, steps_per_block=k, place=place) for k in (1, 3, 8))
    for _ in range(2):
        expected = steps_of(one)
        assert same(expected, steps_of(three))
        assert same(expected, steps_of(eight))


def test_block_shapes():
    assert [tuple(block.shape) for block in batches(100, steps_per_block=5)] == [(5, 8, 3), (5, 8, 3), (2, 8, 3), (1, 4, 3)]
    assert [tuple(block.shape) for block in batches(5, steps_per_block=5)] == [(1, 5, 3)]
    assert [tuple(block.shape) for block in batches(1, place=Place(rank=1, world=2))] == [(1, 0, 3)]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_interrupted_anywhere_it_goes_on_with_the_same_bits(k):
    chain = Preparation(**DYNAMIC).chain
    whole = batches(steps=chain, steps_per_block=k)
    expected = [list(whole) for _ in range(3)]
    for done in range(len(whole) + 1):
        first = batches(steps=chain, steps_per_block=k)
        list(first)
        iterator = iter(first)
        for _ in range(done):
            next(iterator)
        state = json.loads(json.dumps(first.state_dict()))  # plain containers and numbers only
        second = batches(steps=chain, steps_per_block=k)
        second.load_state_dict(state)
        assert second.state_dict() == first.state_dict()
        rest = expected[1][done:]
        if rest:
            assert same(list(second), rest)
        assert same(list(second), expected[2])


def test_a_run_may_go_on_with_another_block_size():
    chain = Preparation(**DYNAMIC).chain
    one, eight = batches(steps=chain), batches(steps=chain, steps_per_block=8)
    expected = steps_of(batches(steps=chain))
    iterator = iter(one)
    for _ in range(5):
        next(iterator)
    eight.load_state_dict(one.state_dict())
    assert same(steps_of(eight), expected[5:])


def test_iter_has_no_effect_before_the_first_next():
    loader, other = batches(), batches()
    for _ in range(3):
        iter(loader)
    assert loader.state_dict() == {"epoch": 0, "taken": 0}
    assert rows_of(loader) == rows_of(other)
    state = loader.state_dict()
    loader.load_state_dict(state)
    iter(loader)
    assert loader.state_dict() == state
    assert rows_of(loader) == rows_of(other)


def test_an_epoch_that_was_cut_short_is_over():
    """With limit_train_batches the rest of the epoch is dropped: the next one is a new order, also after a resume."""
    loader, resumed = batches(), batches()
    next(iter(loader))
    loader.finish_epoch()
    resumed.load_state_dict(loader.state_dict())
    loader.finish_epoch()  # once more changes nothing
    first, second = (rows_of(other) for other in [batches()] for _ in range(2))
    assert rows_of(loader) == rows_of(resumed) == second != first
    abandoned = batches()
    next(iter(abandoned))
    assert rows_of(abandoned) == second
    abandoned = batches()
    abandoned.load_state_dict({"epoch": 0, "taken": 2})
    next(iter(abandoned))
    assert rows_of(abandoned) == second


def test_ranks_draw_different_noise():
    table, chain = torch.full((64, 5), 128), Preparation(**DYNAMIC).chain
    ranks = [batches(64, table=table, steps=chain, place=Place(rank=rank, world=2)) for rank in range(2)]
    first, second = (steps_of(rank) for rank in ranks)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_of_an_epoch_draw_different_noise():
    table, chain = torch.full((64, 50), 128), Preparation(**DYNAMIC).chain
    loader = batches(64, table=table, steps=chain, steps_per_block=4)
    drawn = steps_of(loader) + steps_of(loader)
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_keys_give_different_generators():
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (0, 0, 1)]
    drawn = {torch.rand(1, generator=keyed_generator(0, *key)).item() for key in keys}
    assert len(drawn | {torch.rand(1, generator=keyed_generator(1)).item()}) == len(keys) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.uint8, torch.float32, torch.float64])
def test_rows_come_in_the_type_asked_for(dtype, stored):
    place = Place(dtype=dtype)
    for chain in ([], Preparation(**DEQUANTIZE).chain):
        assert {block.dtype for block in batches(table=numbered(100).to(stored), steps=chain, place=place)} == {dtype}
        assert FixedDraw(table=numbered(100).to(stored), rows=torch.arange(5), steps=chain, dtype=dtype)[:].dtype == dtype


class TestEvaluation:
    @pytest.mark.parametrize("n", [1, 10, 23])
    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_nothing_is_dropped_and_the_order_kept(self, n, world):
        x, labels = numbered(n), torch.arange(n)
        for rank in range(world):
            loader = EvaluationBatches(x=x, labels=labels, batch_size=4, place=Place(rank=rank, world=world))
            handed = list(loader)
            assert len(handed) == len(loader)
            share = labels.tensor_split(world)[rank]
            assert [row for rows, _ in handed for row in rows[:, 0].tolist()] == share.tolist()
            assert [label for _, labels in handed for label in labels.tolist()] == share.tolist()
            assert all(len(rows) == 4 for rows, _ in handed[:-1])

    def test_without_labels_a_batch_is_a_tensor(self):
        assert [len(x) for x in EvaluationBatches(x=numbered(10), batch_size=4)] == [4, 4, 2]

    def test_a_fixed_draw_does_not_depend_on_how_it_is_cut(self):
        table = torch.randint(256, (2345, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        draw = FixedDraw(table=table, rows=torch.arange(2345).flip(0), steps=Preparation(**DYNAMIC).chain)
        whole = draw[:]
        assert whole.shape == (2345, 4)
        assert torch.equal(whole, draw[:])
        for size in (7, 999, 1000, 1001, 5000):
            cut = [draw[start : start + size] for start in range(0, 2345, size)]
            assert torch.equal(torch.cat(cut), whole)
        for start, stop in pairwise([0, 3, 1000, 1500, 2100, 2345]):
            assert torch.equal(draw[start:stop], whole[start:stop])
        assert draw[5:5].shape == (0, 4)
        grey = replace(draw, table=torch.full((2345, 4), 128))
        assert not torch.equal(grey[:1000], grey[1000:2000])
        assert not torch.equal(replace(draw, seed=1)[:], whole)
        assert not torch.equal(replace(draw, part=1)[:], whole)


PREPARATIONS = {
    "identity": {"levels": None},
    "scale": {"levels": 256},
    "threshold": {"levels": 256, "binarize": "threshold"},
    "dynamic": DYNAMIC,
    "dequantize": DEQUANTIZE,
    "standardize": {"levels": 256, "standardize": True},
    "all": {"levels": 256, "dequantize": True, "standardize": True},
}


@pytest.mark.parametrize("options", PREPARATIONS.values(), ids=PREPARATIONS)
@pytest.mark.parametrize("stored", [np.uint8, np.float32, np.float64])
def test_memory_map_host_and_device_give_the_same_bits(tmp_path, options, stored):
    x = np.random.default_rng(0).integers(0, 256, (300, 6)).astype(stored)
    np.save(tmp_path / "x.npy", x)
    common = {"dim": 6, "batch_size": 16, "eval_batch_size": 7}
    path = str(tmp_path / "x.npy")
    modules = [
        InMemory(x=x, prepare=Preparation(**options), **common),
        InMemory(x=x, prepare=Preparation(**options), storage="host", **common),
        Table(path=path, prepare=Preparation(**options), **common),
        Table(path=path, memory_map=True, prepare=Preparation(**options), **common),
    ]
    for module in modules[1:]:
        module.setup("fit")
        for name in ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"):
            assert same(list(getattr(modules[0], name)()), list(getattr(module, name)()))
        modules[0].setup("fit")
        assert torch.equal(modules[0].part("train").x, module.part("train").x)


def test_a_memory_map_is_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50, 2, 3), dtype=np.uint8))
    module = Table(path=str(tmp_path / "x.npy"), memory_map=True, dim=6)
    source = module.read()
    file = np.load(tmp_path / "x.npy", mmap_mode="r+")
    file[7] = 3  # seen through the map, and not through a copy
    assert source.train[7].tolist() == [3] * 6
    source.train[8] = 9  # and what we write does not reach the file
    assert not file[8].any()


def module_of(**options) -> InMemory:
    x = torch.randint(256, (200, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prepare = Preparation(**options.pop("prepare", DYNAMIC))
    return InMemory(**({"x": x, "labels": torch.arange(200), "dim": 6, "batch_size": 16, "prepare": prepare} | options))


class TestModule:
    def test_parts_are_disjoint_complete_and_belong_to_the_split_seed(self):
        parts = {name: module_of().part(name).labels.tolist() for name in ("train", "val", "test")}
        assert {name: len(rows) for name, rows in parts.items()} == {"train": 140, "val": 20, "test": 40}
        assert sorted(row for rows in parts.values() for row in rows) == list(range(200))
        assert module_of(seed=5).part("val").labels.tolist() == parts["val"]
        assert module_of(split_seed=5).part("val").labels.tolist() != parts["val"]

    def test_labels_belong_to_their_rows(self):
        for name in ("train", "val", "test"):
            part = module_of(x=numbered(200, 6), prepare={}).part(name)
            assert part.x[:, 0].tolist() == part.labels.tolist()

    def test_training_draws_are_fresh_and_evaluation_draws_fixed(self):
        module = module_of(x=torch.full((200, 6), 128))
        loader = module.train_dataloader()
        assert not same(list(loader), list(loader))
        for name, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
            first = torch.cat([x for x, _ in loader])
            assert torch.equal(first, torch.cat([x for x, _ in loader]))
            assert torch.equal(first, module_of(x=torch.full((200, 6), 128), seed=3, eval_batch_size=7).part(name).x)
            assert not torch.equal(first, module_of(x=torch.full((200, 6), 128), split_seed=3).part(name).x)

    def test_a_part_can_be_cut(self):
        module = module_of()
        whole, some = module.part("train"), module.part("train", 12)
        assert torch.equal(some.x, whole.x[:12])
        assert torch.equal(some.labels, whole.labels[:12])

    def test_setup_is_idempotent_and_a_fit_begins_anew(self):
        module = module_of()
        module.setup()
        loader = module.train_dataloader()
        first = list(loader)
        module.setup()
        assert module.train_dataloader() is loader
        module.setup("fit")
        assert module.train_dataloader() is not loader
        assert same(first, list(module.train_dataloader()))

    def test_statistics_are_those_of_the_training_part_and_survive(self):
        module = module_of(x=numbered(200, 6), prepare={"standardize": True})
        train = module.part("train")
        original = train.labels.double()
        assert train.x.mean().abs() < 1e-6  # float32
        torch.testing.assert_close(module.prepare.chain[0].scale[0], original.std(correction=0), rtol=1e-12, atol=0)
        other = module_of(x=numbered(200, 6) * 3, prepare={"standardize": True})
        other.load_state_dict(module.state_dict())
        other.setup()
        assert torch.equal(other.prepare.chain[0].scale, module.prepare.chain[0].scale)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dim": 5}, r"6 columns, but data.dim=5.\nSet data.dim=6"),
            ({"shape": (1, 2, 2)}, r"data.shape=\[1, 2, 2\] has 4 entries, but data.dim=6"),
            ({"storage": "gpu"}, "data.storage=gpu"),
            ({"batch_size": 0}, "data.batch_size=0"),
            ({"val_fraction": 0.5, "test_fraction": 0.5}, "data.val_fraction=0.5"),
            ({"val_fraction": 0.999, "test_fraction": 0.0}, "none to train on"),
            ({"labels": torch.arange(3)}, "3 labels for 200 rows"),
            ({"prepare": {"levels": 17}}, r"integers in \[0, 255\].*\n.*data.prepare.levels=256"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            module_of(**options).setup()

    def test_an_unknown_part_is_refused(self):
        with pytest.raises(ValueError, match="valid is none of the parts train, val, test"):
            module_of().part("valid")


class Recorder(LightningModule):
    """Takes blocks under a real trainer and writes down what it saw."""

    steps_per_execution = 4

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
        self.blocks, self.last = [], []

    def training_step(self, batch, batch_idx):
        self.blocks.append(batch)
        self.last.append(self.trainer.is_last_batch)

    def validation_step(self, batch, batch_idx):
        assert batch[0].dtype == self.weight.dtype

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "32-true"), (torch.float64, "32-true"), (torch.float64, "64-true"), (torch.float32, "bf16-mixed")],
)
def test_under_a_trainer(dtype, precision, tmp_path):
    module, recorder = module_of(), Recorder(dtype)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, precision=precision,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module)
    assert [len(block) for block in recorder.blocks] == [4, 4, 1] * 2
    assert recorder.last == [False, False, True] * 2
    assert {block.dtype for block in recorder.blocks} == {dtype}
    assert module.train_dataloader().place.dtype == dtype
    assert module.train_dataloader().state_dict() == {"epoch": 2, "taken": 0}
    if dtype == torch.float32:
        alone = module_of().train_dataloader()
        assert same(steps_of(recorder.blocks), steps_of([*alone, *alone]))
