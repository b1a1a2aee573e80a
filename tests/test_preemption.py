"""A run that a signal stops ends in an orderly way, never with 0, and goes on exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

import commands
from lowerbound import preemption
from lowerbound.callbacks import LastCheckpoint
from lowerbound.cli import main
from lowerbound.folder import read_checkpoint
from lowerbound.gradient import GradientFit
from lowerbound.slurm import SlurmLauncher
from worker_of_stops import StopAt

SMALL = ("trainer.max_epochs=4", "network.encoder.sizes=[8]", "latent_dim=2", "~callbacks.pictures", "fit.steps_per_execution=2")
QUIET = {"enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
STOPS = "+callbacks.stop={_target_:worker_of_stops.StopAt,steps:[13,40]}"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    yield
    preemption.uninstall()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    called = commands.called("lowerbound-train", main, tmp_path, monkeypatch, capsys)

    def run(*words: str) -> tuple[int, str, str]:
        preemption.uninstall()  # a process of its own, as far as signals go
        return called(*words)

    return run


def wandb_records(folder: Path) -> list[list[dict]]:
    """Those of each part of the run, in the order of their start."""
    paths = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    parts = [subprocess.run([*inspect, str(path)], capture_output=True, text=True, check=True).stdout for path in paths]
    return [[json.loads(line) for line in part.splitlines()] for part in parts]


def test_a_run_stopped_twice_is_one_run_also_for_wandb(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = (*SMALL, STOPS, "logger=wandb", "callbacks.last.every_seconds=0")
    ends = [command(*words, "hydra.run.dir=cut") for _ in range(3)]
    assert [code for code, _, _ in ends] == [preemption.STOPPED, preemption.STOPPED, 0]
    assert "stopped by a signal after optimizer step 14" in ends[0][2]
    assert "going on after optimizer step 14" in ends[1][1]
    assert not (tmp_path / "cut" / "failure.txt").exists()
    whole = [*words[:-2], "logger=csv", "hydra.run.dir=whole"]
    whole.remove(STOPS)
    assert command(*whole)[0] == 0
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()

    parts = wandb_records(tmp_path / "cut")
    assert len(parts) == 3
    runs = [record["run"] for part in parts for record in part if record["type"] == "run"]
    assert len({run["run_id"] for run in runs}) == 1
    assert {run["job_type"] for run in runs} == {"train"}
    rows = [record["history"]["item"] for part in parts for record in part if record["type"] == "history"]
    steps = [item["_step"] for item in rows]
    assert steps == sorted(steps)
    assert steps == [item["trainer/global_step"] for item in rows if "trainer/global_step" in item]
    with (tmp_path / "cut" / "metrics.csv").open() as file:
        assert sorted({str(step) for step in steps}, key=int) == [line.split(",")[0] for line in file.readlines()[1:]]
    codes = [record["exit"].get("exit_code", 0) for part in parts for record in part if record["type"] == "exit"]
    assert codes == [preemption.STOPPED, preemption.STOPPED, 0]


def test_wandb_is_not_told_again_of_what_it_was_told_before_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowerbound.tracking import WandB

    monkeypatch.setenv("WANDB_MODE", "offline")
    first = WandB(tmp_path)
    first.log_metrics({"val/elbo": -2.0}, 10)
    first.log_metrics({"val/elbo": -1.0}, 20)
    first.finish({}, exit_code=1)
    second = WandB(tmp_path)
    for step in (10, 20, 30):
        second.log_metrics({"val/elbo": -1.0 / step}, step)
    second.finish({})
    steps = [record["history"]["item"]["_step"] for part in wandb_records(tmp_path) for record in part if record["type"] == "history"]
    assert steps == [10, 20, 20, 30]


def test_a_loader_of_the_user_s_is_gone_on_with_from_the_end_of_an_epoch(tmp_path: Path) -> None:
    """It stops at once all the same."""
    table = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))

    def fit(stop: list[int], checkpoint: Path | None = None) -> tuple[GradientFit, Trainer]:
        seed_everything(0, verbose=False)
        preemption.install()
        fitted = GradientFit(lowerbound.autoencoder(6, 2, sizes=[8]))
        callbacks = [StopAt(stop), LastCheckpoint(every_seconds=0)]
        trainer = Trainer(accelerator="cpu", max_epochs=4, default_root_dir=tmp_path, callbacks=callbacks, logger=False, **QUIET)
        loader = DataLoader(TensorDataset(table), batch_size=4, shuffle=False)
        trainer.fit(fitted, loader, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
        return fitted, trainer

    with pytest.raises(preemption.Stopped, match="after optimizer step 25"):
        fit([25])
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 20
    preemption.uninstall()
    resumed, trainer = fit([], tmp_path / "last.ckpt")
    assert trainer.global_step == 40
    whole, _ = fit([])
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_wandb_s_end_is_not_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lowerbound.tracking import WandB

    def killed(*_: object, **__: object) -> None:
        raise ConnectionError("its process is gone")

    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandB(tmp_path)
    logger.log_metrics({"val/elbo": -2.0}, 10)
    run = logger.experiment
    monkeypatch.setattr(run, "log", killed)
    for step in (20, 30):
        logger.log_metrics({"val/elbo": -2.0}, step)
    logger.finish({})
    assert capsys.readouterr().err.count("nothing more is told") == 1
    run.finish()


def test_the_id_of_wandb_is_there_before_anything_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowerbound.tracking import WandB

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert WandB(tmp_path).version == WandB(tmp_path).version


SQUEUE = """#!/bin/sh
echo asked >> "$(dirname "$0")/asked"
[ $(wc -l < "$(dirname "$0")/asked") -gt 2 ] || exit 1
echo 5_0 5_1
"""


def test_nothing_is_concluded_from_a_queue_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text(SQUEUE)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert SlurmLauncher(every_seconds=0.01)._queue() == {"5_0", "5_1"}


@pytest.mark.parametrize(("numbers", "code"), [((signal.SIGTERM,), 75), ((signal.SIGUSR2,), 75), ((signal.SIGINT,), 130)])
def test_the_exit_code_says_what_stopped_it(numbers: tuple[int, ...], code: int) -> None:
    preemption.install()
    for number in numbers:
        os.kill(os.getpid(), number)
    assert preemption.Stopped().exit_code == code
    preemption.install()
    assert preemption.received() == set(numbers), "installed again, as it is after Lightning, it has forgotten nothing"


def test_a_second_interrupt_does_not_wait() -> None:
    preemption.install()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_interrupt_ends_with_its_own_code_and_no_failure(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> float:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    monkeypatch.setitem(sys.modules, "lowerbound.run", SimpleNamespace(train=interrupted))
    code, _, err = command("hydra.run.dir=run")
    assert code == preemption.INTERRUPTED, err
    assert not (tmp_path / "run" / "failure.txt").exists()


SCONTROL = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
[ "$1" = show ] && echo "JobId=7 JobName=x JobState=$STATE Reason=None"
exit 0
"""


@pytest.mark.parametrize(
    ("state", "number", "asks"),
    [
        ("RUNNING", signal.SIGTERM, True),
        ("COMPLETING", signal.SIGTERM, False),
        ("COMPLETING", signal.SIGUSR2, True),
        ("RUNNING", signal.SIGINT, False),
        ("RUNNING", 0, True),  # another process of the run was told
        ("COMPLETING", 0, False),
    ],
)
def test_a_job_that_was_warned_is_requeued_and_one_that_was_cancelled_is_not(
    state: str, number: int, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STATE": state, "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    preemption.install()
    if number:
        os.kill(os.getpid(), number)
    preemption.requeue()
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert ("requeue 7" in asked) == asks
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    preemption.requeue()
    asked = (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []
    assert ("requeue 5_2" in asked) == asks, "its own number in the array, which for one of them is the number of all"
