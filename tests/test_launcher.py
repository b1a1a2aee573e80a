"""The local launcher: a grid whose runs have two processes each, the queue that they wait in, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import OmegaConf

from commands import called, train
from lowerbound import launcher
from lowerbound.cli import main
from lowerbound.jobs import Job
from lowerbound.local_queue import Queue, Running, Task
from lowerbound.runs import not_begun, read_runs
from processes import TWO_RANKS, children, forked, is_alive, until
from worker_of_commands import queue_of_a_deaf_one

EM = ("model=ppca", "data=linear_gaussian", "fit=em", "fit.update=batch", "trainer.max_epochs=1", "~callbacks.pictures")
LOCAL = ("hydra/launcher=local", "hydra.launcher.devices=4")
GRID = "latent_dim=2,3,4,12"  # of ten dimensions: the last one fails


class Sweep(NamedTuple):
    folder: Path
    code: int
    out: str

    def run(self, latent_dim: int) -> Path:
        (found,) = self.folder.glob(f"outputs/mine/*latent_dim={latent_dim},*")
        return found


@pytest.fixture(scope="module")
def sweep(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four runs of two processes, two runs at a time."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ["-m", *LOCAL, *EM, GRID, *TWO_RANKS, "data.batch_size=64", "sweep=mine"]
    return Sweep(folder, *forked(processes, folder, folder.with_suffix(".log"), *words).ended(300))


@pytest.mark.process
def test_a_grid_of_four_runs_of_two_processes(sweep: Sweep) -> None:
    """The folders are those of Hydra's own launcher, and each has its words and nothing of the launcher's."""
    folders = [path for path in (sweep.folder / "outputs" / "mine").iterdir() if path.is_dir()]
    assert sorted(folders) == sorted(sweep.run(latent_dim) for latent_dim in (2, 3, 4, 12)), sweep.out
    assert [path.name for path in sweep.folder.iterdir()] == ["outputs"]
    for latent_dim in (2, 3, 4):
        run = sweep.run(latent_dim)
        assert json.loads((run / "results.json").read_text())["devices"] == 2
        words = list(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
        assert words == [*EM[:-1], EM[-1] + "=null", f"latent_dim={latent_dim}", *TWO_RANKS, "data.batch_size=64", "sweep=mine"]
        assert OmegaConf.load(run / "config.yaml").sweep == "mine"
        assert "test/elbo" in (run / "output.log").read_text()
    runs = read_runs(sweep.folder / "outputs" / "mine")
    assert [run.name for run in runs] == ["latent_dim=2", "latent_dim=3", "latent_dim=4", "latent_dim=12"]
    assert not_begun(sweep.folder / "outputs" / "mine", runs) == []


@pytest.mark.process
def test_a_run_that_fails_is_reported_and_the_others_go_on(sweep: Sweep) -> None:
    assert sweep.code == 1
    lines = [line for line in sweep.out.splitlines() if line.startswith("latent_dim=")]
    assert sum(line.endswith("begins on the CPU") for line in lines) == 4
    assert sum("finished in" in line for line in lines) == 3
    (failed,) = (line for line in lines if "failed after" in line)
    assert failed.startswith("latent_dim=12: ")
    assert "ValueError" in failed
    assert "3 of 4 runs finished" in sweep.out
    assert "\nreport: outputs/mine/report.html" in sweep.out


@pytest.mark.process
def test_two_processes_find_what_one_finds_with_the_double_batch(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, monkeypatch, *EM, "latent_dim=3", "data.batch_size=128", "hydra.run.dir=alone")
    alone, both = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "alone", sweep.run(3)))
    assert alone["devices"] == 1
    for key in ("optimizer_steps", "test/elbo", "val/elbo", "test/reconstruction"):
        assert both[key] == pytest.approx(alone[key], rel=1e-5), key


@pytest.mark.process
def test_whoever_stops_the_sweep_stops_its_runs(processes: Any, tmp_path: Path) -> None:
    endless = ("model=autoencoder", "data=linear_gaussian", "trainer.max_epochs=-1", "~callbacks.pictures", "seed=0,1", "sweep=mine")
    words = ("-m", "hydra/launcher=local", "hydra.launcher.devices=2", *endless, *TWO_RANKS)
    process, log = forked(processes, tmp_path, tmp_path / "log", *words)
    try:
        until(lambda: list(tmp_path.glob("outputs/mine/*/metrics.csv")) or process.exitcode is not None)
        assert process.exitcode is None, log.read_text()
        runs = list(children(process.pid))
        assert len(runs) >= 3, "torchrun and two of its own"
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 128 + signal.SIGTERM
        assert not any(is_alive(pid) for pid in runs)
        assert len(list(tmp_path.glob("outputs/mine/*/output.log"))) == 1, "the second has not begun"
        assert len(list(tmp_path.glob("outputs/mine/*/last.ckpt"))) == 1, "the first can be gone on with"
        assert not list(tmp_path.glob("outputs/mine/*/failure.txt"))
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer=ddp",), "hydra/launcher=local.*hydra/launcher=slurm"),
        (("trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"), "hydra/launcher=local.*hydra/launcher=slurm"),
        (("hydra/launcher=local", "trainer.devices=[0,1]"), "Give trainer.devices as a number"),
        (("hydra/launcher=local", "hydra.launcher.devices=0"), "hydra.launcher.devices=0 must be"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Sequence[str], said: str
) -> None:
    ask = called("lowerbound-train", main, tmp_path, monkeypatch, capsys)
    code, _, err = ask("-m", "seed=0,1", "sweep=mine", *words)
    assert code == 2
    assert len(err.strip().splitlines()) <= 3
    assert re.search(said, err)
    assert not list(tmp_path.glob("outputs/mine/*/"))


def run_queue(folder: Path, scripts: Sequence[str], sizes: Sequence[int], slots: Sequence[str]) -> dict[int, int]:
    """Shell scripts in the queue, which find their slots in SLOTS; the exit codes by number, in the order in which they ended."""
    tasks = [Task(i, ["sh", "-c", script], size, folder / f"{i}.log") for i, (script, size) in enumerate(zip(scripts, sizes, strict=True))]
    codes: dict[int, int] = {}

    def ended(running: Running, code: int) -> None:
        codes[running.task.number] = code

    queue = Queue(slots, lambda taken: os.environ | {"SLOTS": ",".join(taken)}, patience=5)
    queue.run(tasks, lambda running: None, ended)
    return codes


def test_no_two_have_the_same_device(tmp_path: Path) -> None:
    """Each makes a folder of each of its devices while it runs, and fails if there is one."""
    alone = f'cd {tmp_path}; for s in $(echo $SLOTS | tr , " "); do mkdir $s || exit 1; done; sleep 0.2; rmdir $(echo $SLOTS | tr , " ")'
    sizes = [2, 1, 1, 3, 1, 2]
    assert run_queue(tmp_path, [alone + f"; echo $SLOTS > had_{i}" for i in range(6)], sizes, ["a", "b", "c"]) == dict.fromkeys(range(6), 0)
    assert [len((tmp_path / f"had_{i}").read_text().split(",")) for i in range(6)] == sizes


def test_an_exit_code_is_told_and_the_next_begins(tmp_path: Path) -> None:
    assert run_queue(tmp_path, ["exit 3", "echo here"], [1, 1], ["a"]) == {0: 3, 1: 0}
    assert (tmp_path / "1.log").read_text() == "here\n"


def test_what_does_not_stop_is_killed(processes: Any, tmp_path: Path) -> None:
    process = processes.Process(target=queue_of_a_deaf_one, args=(tmp_path,))
    process.start()
    until(lambda: ((tmp_path / "log").is_file() and (tmp_path / "log").read_text()) or process.exitcode is not None)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 128 + signal.SIGINT
    assert not is_alive(int((tmp_path / "log").read_text()))


@pytest.mark.parametrize(
    ("devices", "accelerator", "slots", "on_gpus", "count"),
    [(2, "cpu", 1, False, 2), (2, "auto", 4, True, 2), ("auto", "cpu", 4, False, 1), (8, "cpu", 4, True, 8)],
)
def test_a_run_has_as_many_processes_as_devices(devices: object, accelerator: str, slots: int, on_gpus: bool, count: int) -> None:
    """On a CPU also more than there are slots: they are slower then, and nothing else."""
    trainer = OmegaConf.create({"devices": devices, "accelerator": accelerator})
    assert launcher._processes(trainer, slots, on_gpus) == count


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="has 4 GPUs"):
        launcher._processes(OmegaConf.create({"devices": 8, "accelerator": "gpu"}), 4, True)


def test_a_process_has_its_gpus_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = launcher._environment(4, True, ["2", "3"])
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("2,3", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launcher._environment(4, False, ["2"])["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("failure", "log", "line"),
    [
        ("ValueError: no luck\nmore\n", "whatever\n", "ValueError: no luck"),
        (
            None,
            "at line 3\nRuntimeError: gone\n\nE1121 19:41:42 7 torch/distributed/elastic/x] failed\ntable\n",
            "RuntimeError: gone",
        ),
        (None, "", "exit code 9"),
    ],
)
def test_the_reason_of_a_failure_in_a_line(tmp_path: Path, failure: str | None, log: str, line: str) -> None:
    if failure is not None:
        (tmp_path / "failure.txt").write_text(failure)
    (tmp_path / "output.log").write_text("of an earlier run\n" + log)
    job = Job(OmegaConf.create(), tmp_path, [], False, len("of an earlier run\n"))
    assert job.last_line(9) == line


def test_a_sweeper_is_told_the_value_of_the_monitor(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"monitor": "val/elbo", "val/elbo": -3.5, "test/elbo": -4.0}))
    config = OmegaConf.create({"seed": 1, "hydra": {"job": {"name": "train"}, "overrides": {"task": ["seed=1"]}}})
    found = Job(config, tmp_path, [], False, 0).returned(0)
    assert (found.return_value, found.overrides, found.cfg) == (-3.5, ["seed=1"], {"seed": 1})
