"""What ends a run early: an exit code that is not 0, an answer of at most three lines, and nothing lost that was good."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf

import commands
from lowerbound import preemption, run
from lowerbound.callbacks import LastCheckpoint, Pictures
from lowerbound.checkpoints import newest_whole
from lowerbound.cli import main
from lowerbound.data import InMemory
from lowerbound.data.batches import TensorBatches
from lowerbound.em import EMFit
from lowerbound.errors import FaultError, NonFiniteError
from lowerbound.faults import Entire, explained
from lowerbound.folder import append_whole, read_checkpoint, write_whole
from lowerbound.gradient import GradientFit
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, Bound, Objective
from lowerbound.schedules import Step
from lowerbound.solve import ClosedFormFit
from lowerbound.tracking import TensorBoard

SMALL = ("trainer.max_epochs=3", "network.encoder.sizes=[8]", "latent_dim=2", "fit.steps_per_execution=2")
PLAIN = (*SMALL, "~callbacks.pictures")
QUIET = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    yield commands.called("lowerbound-train", main, tmp_path, monkeypatch, capsys)
    preemption.uninstall()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, made or changed by the options of a mount."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if place.is_mount() else ["-o", options]
        if subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(place)], capture_output=True, check=False).returncode:
            pytest.skip("a disk of its own needs the right to mount one")
        return place

    yield mounted
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def answer(err: str) -> list[str]:
    """The lines of an answer on stderr: three at most, and no traceback."""
    lines = err.splitlines()
    assert lines[0].startswith("lowerbound-train: ")
    assert len(lines) <= 3
    return lines


# Memory


def test_out_of_memory_names_a_smaller_block(command: Command, tmp_path: Path) -> None:
    """A thousand terabytes, which no allocator has."""
    code, _, err = command(*PLAIN, "objective=iwae", "objective.num_samples=1000000000000", "hydra.run.dir=run")
    assert code == 1
    first, second, _ = answer(err)
    assert "out of memory on the CPU: 1024.0 TB more were asked for, after optimizer step 0" in first
    assert (
        "objective.num_samples=1000000000000 with data.batch_size=128 with fit.steps_per_execution=2: try objective.num_samples=" in second
    )
    assert "out of memory" in (tmp_path / "run" / "failure.txt").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "out of memory on the GPU: 2.1 GB more"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (MemoryError("Unable to allocate 7.50 MiB for an array"), "out of memory on the CPU: 7.9 MB more"),
    ],
)
def test_of_a_moderate_want_half_is_the_advice(error: Exception, said: str, tmp_path: Path) -> None:
    config = OmegaConf.create({"fit": {"objective": None, "steps_per_execution": 1}, "data": {"batch_size": 100}, "objective": {}})
    first, second, _ = str(explained(error, config, tmp_path)).splitlines()
    assert first.startswith(said)
    assert second == "A block is data.batch_size=100: try data.batch_size=32."


# Numbers that are not finite


class Marked(Objective):
    """The ELBO, which is NaN for rows that begin with the mark; it notes at which steps it saw them."""

    def __init__(self, mark: float) -> None:
        self.mark, self.steps = mark, list[int]()

    def __call__(self, model: LatentVariableModel, x: torch.Tensor, step: Step) -> Bound:
        bound, marked = ELBO()(model, x, step), x[:, 0] == self.mark
        if marked.any() and torch.is_grad_enabled():
            self.steps.append(step.now + 1)
        return bound._replace(value=bound.value + torch.where(marked, torch.nan, 0.0))


def table() -> InMemory:
    """60 rows that begin with their numbers."""
    x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.arange(60)
    return InMemory(x, batch_size=8)


def fitted(fit: Any, folder: Path, data: InMemory | None = None, epochs: int = 4, going_on: bool = False) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=[LastCheckpoint(0.0), Entire()], **QUIET)
    checkpoint = {"ckpt_path": folder / "last.ckpt", "weights_only": True} if going_on else {}
    trainer.fit(fit, datamodule=data or table(), **checkpoint)
    return trainer


def gradient(objective: Objective, **options: Any) -> GradientFit:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    return GradientFit(lowerbound.vae(5, 2, sizes=[8]), objective, optimizer, steps_per_execution=3, **options)


def a_training_row(place: int) -> int:
    """The number in the data of a row of the training part."""
    return int(table().part("train").x[place, 0])


@pytest.mark.parametrize("place", [0, 17])
def test_the_step_and_the_row_are_named(place: int, tmp_path: Path) -> None:
    row = a_training_row(place)
    objective = Marked(row)
    with pytest.raises(NonFiniteError) as caught:
        fitted(gradient(objective), tmp_path)
    first, second, third = str(caught.value).splitlines()
    assert first == (
        f"optimizer step {objective.steps[0]}: objective not finite, in row {place} of the training part ({row} of the data, from 0)"
    )
    assert "fit.skip_nonfinite" in third
    assert objective.steps[0] <= 3, "the block is the first one"
    assert second == "There is no checkpoint yet."


def test_a_checkpoint_of_before_is_kept_and_is_finite(tmp_path: Path) -> None:
    class Late(Marked):
        def __call__(self, model: LatentVariableModel, x: torch.Tensor, step: Step) -> Bound:
            return super().__call__(model, x, step) if step.now >= 6 else ELBO()(model, x, step)

    objective = Late(a_training_row(3))
    with pytest.raises(NonFiniteError, match=f"The last good checkpoint is {tmp_path / 'last.ckpt'}"):
        fitted(gradient(objective), tmp_path)
    state = read_checkpoint(tmp_path / "last.ckpt")
    assert state["global_step"] == (objective.steps[0] - 1) // 3 * 3 >= 6, "the end of the block before"
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_batches_are_left_out_and_counted_and_the_count_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = Marked(a_training_row(5))
    fit = gradient(objective, skip_nonfinite=4)
    trainer = fitted(fit, tmp_path / "whole")
    assert fit.left_out == 4
    assert trainer.global_step == fit.clock.now == 4 * 6 - 4, "42 rows are six batches, of which one is left out in every epoch"
    assert any("4 batches were left out" in remark for remark in fit.remarks)
    assert "row 5 of the training part" in capsys.readouterr().err

    fitted(gradient(Marked(a_training_row(5)), skip_nonfinite=4), tmp_path / "cut", epochs=2)
    again = gradient(Marked(a_training_row(5)), skip_nonfinite=4)
    fitted(again, tmp_path / "cut", going_on=True)
    assert again.left_out == 4
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fit.state_dict().items())


def test_a_batch_that_is_left_out_changes_nothing_and_one_too_many_ends_the_run(tmp_path: Path) -> None:
    row = a_training_row(5)
    fit = gradient(Marked(row), skip_nonfinite=2)
    with pytest.raises(NonFiniteError, match=r"row 5 of the training part .*\n.*\nfit.skip_nonfinite=2 batches have been left out"):
        fitted(fit, tmp_path)
    assert all(parameter.isfinite().all() for parameter in fit.parameters())
    plain, careful = gradient(ELBO()), gradient(ELBO(), skip_nonfinite=1)
    fitted(plain, tmp_path / "plain")
    fitted(careful, tmp_path / "careful")
    assert all(torch.equal(value, careful.state_dict()[name]) for name, value in plain.state_dict().items()), "looking changes nothing"


def test_a_gradient_that_is_not_finite_is_left_out_too(tmp_path: Path) -> None:
    class Steep(ELBO):
        """A square root at 0 at one step: its value is finite, its slope is not."""

        def __call__(self, model: LatentVariableModel, x: torch.Tensor, step: Step) -> Bound:
            bound = super().__call__(model, x, step)
            at_zero = (bound.value - bound.value.detach()).abs().sqrt()
            return bound._replace(value=bound.value + at_zero) if step.now == 4 and not self.__dict__.setdefault("done", False) else bound

    fit = gradient(Steep(), skip_nonfinite=100)
    with pytest.raises(NonFiniteError, match="the training part"):  # the step does not move on, so that it comes every time
        fitted(fit, tmp_path, epochs=30)
    assert fit.clock.now == 4
    assert fit.left_out == 100
    assert all(parameter.isfinite().all() for parameter in fit.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: EMFit(lowerbound.factor_analysis(5, 2)),
        lambda: EMFit(lowerbound.gaussian_mixture(5, 2)),
        lambda: EMFit(lowerbound.gaussian_mixture(5, 2), update="batch"),
        lambda: ClosedFormFit(lowerbound.ppca(5, 2)),
    ],
)
def test_em_names_the_row_before_it_spoils_the_parameters(make: Callable[[], Any], tmp_path: Path) -> None:
    """The square of 1e200 is infinite in float64; the check of the data, which says so beforehand, is left out."""
    fit = make()
    row = a_training_row(7)
    x = torch.rand(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[row, 2] = 1e200
    data = InMemory(x, batch_size=8)
    fit.start, fit._check_data = None, lambda x: None
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=rf"optimizer step \d+: .*not finite, in row 7 of the training part \({row} of the data"):
        fitted(fit, tmp_path, data)
    assert all(value.isfinite().all() for value in fit.model.state_dict().values())
    assert before.keys() == fit.model.state_dict().keys()


# Ctrl-C


def test_ctrl_c_leaves_a_checkpoint_pictures_and_a_summary(command: Command, tmp_path: Path) -> None:
    stop = "+callbacks.stop={_target_:worker_of_stops.StopAt,steps:[13],number:2}"
    code, out, err = command(*SMALL, stop, "hydra.run.dir=run")
    assert code == preemption.INTERRUPTED
    assert "stopped by a signal after optimizer step 14" in err
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 14
    assert (tmp_path / "run" / "figures" / "reconstructions.png").is_file()
    last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert f"the last validation, after optimizer step {last[0]}" in out
    assert "val/elbo" in out
    assert "lowerbound-train resume=run" in out
    assert not (tmp_path / "run" / "failure.txt").exists()
    preemption.uninstall()  # a process of its own, as far as signals go
    assert command("resume=run", stop)[0] == 0


# The disk


def whole_lines(path: Path) -> bool:
    lines = path.read_text().splitlines(keepends=True)
    return all(line.endswith("\n") and line.count(",") == lines[0].count(",") for line in lines)


def test_a_disk_that_fills_up_leaves_the_last_good_state_and_is_gone_on_with(command: Command, disk: Any, tmp_path: Path) -> None:
    words = (*PLAIN, "callbacks.last.every_n_steps=1")
    folder = disk("size=200k") / "run"
    code, _, err = command(*words, f"hydra.run.dir={folder}")
    assert code == 1
    first, second, third = answer(err)
    assert f"{folder}/last.ckpt: No space left on device: it takes " in first or f"{folder}/weights.ckpt: No space left" in first
    assert " are free, after optimizer step " in first
    assert "The last good checkpoint is" in second
    assert f"resume={folder}" in third
    assert not list(folder.rglob("*.part"))
    assert newest_whole(folder / "last.ckpt") == (folder / "last.ckpt", [])
    assert whole_lines(folder / "metrics.csv")
    assert not (folder / "results.json").exists()
    disk("size=4m")
    assert command(f"resume={folder}")[0] == 0
    assert command(*words, "hydra.run.dir=whole")[0] == 0
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    one, other = (read_checkpoint(path / "last.ckpt")["state_dict"] for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("options", "words", "said"),
    [
        ("ro", (), "Read-only file system"),
        ("size=4k", (), "No space left on device"),
        ("size=200k", ("network.encoder.sizes=[512]",), "it takes at least"),
    ],
)
def test_a_folder_that_cannot_take_the_run_is_said_before_it_begins(
    options: str, words: tuple[str, ...], said: str, command: Command, disk: Any
) -> None:
    folder = disk(options) / "run"
    code, out, err = command(*PLAIN, *words, f"hydra.run.dir={folder}")
    assert code == 1
    assert said in answer(err)[0]
    assert str(folder) in answer(err)[0] or options == "size=4k", "Hydra does not say which file it was writing"
    assert not (folder / "metrics.csv").exists() or not (folder / "metrics.csv").read_text()
    assert not list(folder.rglob("*.ckpt"))
    assert out == ""


def test_small_files_are_written_whole_or_not_at_all(disk: Any) -> None:
    folder = disk("size=16k")
    write_whole(folder / "results.json", "old")
    append_whole(folder / "metrics.csv", "1,2\n")
    for write in (write_whole, append_whole):
        for name in ("results.json", "metrics.csv"):
            with pytest.raises(OSError, match="No space") as caught:
                write(folder / name, "x" * 100_000)
            assert caught.value.filename == str(folder / name)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"results.json": "old", "metrics.csv": "1,2\n"}


def test_tensorboard_s_end_is_not_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("log_metrics", "save", "finalize"):
        monkeypatch.setattr(TensorBoardLogger, name, full)
    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"val/elbo": 1.0}, 1)
    logger.log_metrics({"val/elbo": 1.0}, 2)
    logger.finalize("success")
    assert capsys.readouterr().err.count("nothing more is told") == 1


# Ends that look like the end


class Ends(ELBO):
    """Takes from an iterator that is empty, in training or in validation."""

    def __init__(self, in_training: bool) -> None:
        super().__init__()
        self.in_training = in_training

    def __call__(self, model: LatentVariableModel, x: torch.Tensor, step: Step) -> Bound:
        return next(iter(())) if step.now >= 8 and model.training == self.in_training else super().__call__(model, x, step)


@pytest.mark.parametrize("in_training", [True, False])
def test_a_stop_iteration_is_not_the_end_of_the_data(in_training: bool, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="StopIteration in a step"):
        fitted(gradient(Ends(in_training)), tmp_path)


def test_an_epoch_that_lacks_batches_is_no_epoch(tmp_path: Path) -> None:
    class Short(TensorBatches):
        """Has one block less than its length says."""

        def __iter__(self) -> Iterator[torch.Tensor]:
            yield from itertools.islice(super().__iter__(), len(self) - 1)

    data = table()
    data.setup()
    data._blocks = Short(table=data.part("train").x, rows=torch.arange(42), batch_size=8)
    data.setup = lambda stage=None: None  # type: ignore[method-assign]
    with pytest.raises(FaultError, match="epoch 1 ended after 5 of 6 blocks"):
        fitted(gradient(ELBO()), tmp_path, data)


def test_no_library_ends_a_run_with_0(without_training: commands.Command) -> None:
    def exits(config: object) -> float:
        raise SystemExit(0)

    answered = without_training("hydra.run.dir=run", train=exits)
    assert answered.code == 1
    assert "exit code 0, before there were results" in answered.err


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("failed on purpose")


class Fails(Callback):
    """Nothing, until a test lets it fail."""


@pytest.mark.parametrize("part", ["drawing", "test", "report"])
def test_an_error_after_training_is_no_success(part: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = (*SMALL, "+callbacks.fails={_target_:test_faults.Fails}") if part == "test" else SMALL
    if part == "test":
        monkeypatch.setattr(Fails, "on_test_end", fail)
    if part == "drawing":
        monkeypatch.setattr(Pictures, "draw", fail)
    if part == "report":
        monkeypatch.setattr(run, "write_report", fail)
    code, _, err = command(*words, "hydra.run.dir=run")
    assert code == 1
    assert "RuntimeError: failed on purpose (tests/test_faults.py, line " in answer(err)[0]
    assert (tmp_path / "run" / "results.json").exists() == (part == "report")
    assert (tmp_path / "run" / "failure.txt").exists() == (part != "report")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert command("resume=run", *words)[0] == 0
    assert "test/elbo" in json.loads((tmp_path / "run" / "results.json").read_text())
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "failure.txt").exists()
