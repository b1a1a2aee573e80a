"""A run that is killed and started again ends as one that was not: every tensor, every byte of metrics.csv."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import worker_of_commands
from lowerbound import resuming
from lowerbound.data import Table
from lowerbound.folder import read_checkpoint
from lowerbound.gradient import GradientFit
from processes import free_port

pytestmark = pytest.mark.process

QUICK = ("callbacks.last.every_n_steps=5", "~callbacks.pictures", "latent_dim=2")
NET = ("network.encoder.sizes=[16]", "fit.steps_per_execution=3")
RUNS = {
    "vae": (*NET, "trainer.max_epochs=4", "fit.ema=0.9", "fit.clip=1", "beta=warm_up", "fit.optimizer.lr=0.003"),
    "vae, an end within an epoch": (*NET, "trainer.max_epochs=-1", "trainer.max_steps=37", "trainer.check_val_every_n_epoch=2"),
    "vae, stopped early": (
        *NET,
        "trainer.max_epochs=12",
        "trainer.limit_train_batches=3",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "fit.optimizer.lr=0.3",
        "objective=iwae",
        "likelihood=gaussian",
    ),
    "vae, validated within epochs": (
        *NET,
        "trainer.max_epochs=3",
        "trainer.check_val_every_n_epoch=null",
        "+trainer.val_check_interval=3",
    ),
    "em": ("model=factor_analysis", "fit=em", "trainer.max_epochs=8", "fit.steps_per_execution=3", "fit.tolerance=0"),
    "em of a mixture": ("model=mixture", "trainer.max_epochs=12", "latent_dim=5"),
    "stepwise em": ("model=factor_analysis", "fit=em", "fit.update=batch", "trainer.max_epochs=4"),
    "closed form": ("model=ppca", "fit=closed_form"),
}


TWO = ("callbacks.last.every_n_steps=2", "trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=64")


class Folder(NamedTuple):
    """What must be equal: all tensors of both checkpoints by their places, and the rows."""

    weights: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    metrics: bytes


def tensors(node: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{place}/{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from tensors(value, f"{place}/{i}")


def left(folder: Path) -> Folder:
    weights, last = (dict(tensors(read_checkpoint(folder / f"{name}.ckpt"))) for name in ("weights", "last"))
    return Folder(weights, last, (folder / "metrics.csv").read_bytes())


def assert_equal(one: Folder, other: Folder) -> None:
    assert one.metrics == other.metrics
    for mine, others in ((one.weights, other.weights), (one.last, other.last)):
        assert mine.keys() == others.keys()
        assert [place for place in mine if not torch.equal(mine[place], others[place])] == []


def start(processes: Any, folder: Path, words: tuple[str, ...], *death: Any) -> Any:
    process = processes.Process(target=worker_of_commands.train, args=(folder, [*QUICK, *words], *death))
    process.start()
    return process


def finish(processes: Any, folder: Path, words: tuple[str, ...]) -> float:
    """Run to the end; the seconds."""
    started = time.perf_counter()
    process = start(processes, folder, words)
    process.join(120)
    assert process.exitcode == 0, folder.with_suffix(".log").read_text()
    assert (folder / "results.json").is_file()
    return time.perf_counter() - started


@pytest.mark.parametrize("name", RUNS)
def test_three_killed_trainings_end_as_one_that_was_not(name: str, processes: Any, tmp_path: Path) -> None:
    """Each is killed at a random moment, and once while it writes a checkpoint."""
    chance = random.Random(name)
    words = RUNS[name]
    seconds = finish(processes, tmp_path / "whole", words)
    expected = left(tmp_path / "whole")
    for attempt, moment in enumerate(chance.sample(worker_of_commands.MOMENTS, 3)):
        folder = tmp_path / f"killed_{attempt}"
        process = start(processes, folder, words)
        process.join(chance.uniform(0.05, 1) * seconds)
        process.kill()
        process.join()
        process = start(processes, folder, words, moment, chance.randint(1, 4))
        process.join(60)
        finish(processes, folder, words)
        assert_equal(left(folder), expected)


def pair(processes: Any, folder: Path, words: tuple[str, ...]) -> list[Any]:
    """The two processes of a run."""
    port = free_port()
    both = [processes.Process(target=worker_of_commands.rank, args=(number, port, folder, [*QUICK, *TWO, *words])) for number in range(2)]
    for process in both:
        process.start()
    return both


def wait_for_checkpoints(path: Path, count: int) -> None:
    """Until so many more have been written."""
    seen, end = {path.stat().st_mtime_ns if path.exists() else 0}, time.monotonic() + 60
    while len(seen) <= count:
        assert time.monotonic() < end
        time.sleep(0.002)
        seen |= {path.stat().st_mtime_ns} if path.exists() else set()


@pytest.mark.parametrize("name", ["vae", "em of a mixture"])
def test_two_ranks_of_which_one_is_killed_end_as_two_that_were_not(name: str, processes: Any, tmp_path: Path) -> None:
    """The other one ends by itself, and not with 0."""
    chance = random.Random(name)
    for process in pair(processes, tmp_path / "whole", RUNS[name]):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "whole.log").read_text()
    cut = tmp_path / "cut"
    for killed in (0, 1):
        both = pair(processes, cut, RUNS[name])
        wait_for_checkpoints(cut / "last.ckpt", chance.randint(1, 2))
        both[killed].join(chance.uniform(0, 0.03))
        both[killed].kill()
        said = (tmp_path / "cut.log").stat().st_size
        both[1 - killed].join(60)
        assert both[1 - killed].exitcode == 1
        assert "another process of this run has died" in (tmp_path / "cut.log").read_text()[said:]
        assert "Traceback" not in (tmp_path / "cut.log").read_text()[said:]
        assert "another process of this run has died" in (cut / "failure.txt").read_text()
    for process in pair(processes, cut, RUNS[name]):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "cut.log").read_text()
    assert "going on after optimizer step" in (tmp_path / "cut.log").read_text()
    assert_equal(left(cut), left(tmp_path / "whole"))


def test_two_ranks_leave_out_a_batch_together_and_name_the_row_together(processes: Any, tmp_path: Path) -> None:
    """The square of 1e16 over a scale of 1e-5 is infinite in float32; that row is one rank's."""
    x = np.random.default_rng(0).random((200, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    row = int(Table(path=str(tmp_path / "x.npy"), dim=6).source_rows("train", torch.tensor(9)))
    x[row, 3] = 1e16
    np.save(tmp_path / "x.npy", x)
    data = ("data=table", f"data.path={tmp_path / 'x.npy'}", "data.dim=6")
    words = (*data, "trainer.max_epochs=3", "fit.skip_nonfinite=1", "network.encoder.sizes=[8]", "noise=fixed", "noise.scale=1e-5")
    for process in pair(processes, tmp_path / "run", words):
        process.join(120)
        assert process.exitcode == 1
    log = (tmp_path / "run.log").read_text()
    named = f"in row 9 of the training part ({row} of the data, from 0)"
    assert log.count(f"{named}; left out, 1 of at most 1") == 1, "the first one says so"
    assert log.count(f"{named}\n") == 2, "both end, for the same reason"
    assert "fit.skip_nonfinite=1 batches have been left out already" in (tmp_path / "run" / "failure.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_without_its_checkpoint_a_run_is_stopped_as_any_program(number: int, processes: Any, tmp_path: Path) -> None:
    """By the signal, and not with 0."""
    stop = f"+callbacks.stop={{_target_:worker_of_stops.StopAt,steps:[13],number:{int(number)}}}"
    process = start(processes, tmp_path / "run", (*NET, "trainer.max_epochs=3", stop, "~callbacks.last"))
    process.join(60)
    assert process.exitcode == -number


def test_a_run_of_two_processes_is_not_gone_on_with_in_one() -> None:
    fit = GradientFit(lowerbound.autoencoder(4, 2, sizes=[4]))
    fit.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    keys = (*resuming.LIGHTNINGS, *resuming.OURS)
    with pytest.raises(ValueError, match="of a run in 2 process\\(es\\), and there are 1"):
        resuming.take(fit, {**dict.fromkeys(keys), "state_dict": fit.state_dict(), "ranks": [{}, {}]})
