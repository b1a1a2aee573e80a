"""Jobs of a real SLURM on this machine: preempted, out of time, requeued, cancelled, of several tasks and nodes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowerbound.folder import read_checkpoint
from processes import Forked, forked, until

SCRIPTS = Path(__file__).parents[1] / "scripts" / "slurm"
pytestmark = pytest.mark.slurm

LAUNCHER = ("-m", "hydra/launcher=slurm", "hydra.launcher.every_seconds=1", "hydra.launcher.cpus_per_task=2")
QUICK = (
    "data=linear_gaussian",
    "data.num_data=1800",
    "latent_dim=2",
    "network.encoder.sizes=[16]",
    "~callbacks.pictures",
    "trainer.check_val_every_n_epoch=3",
)
LONG = (*QUICK, "trainer.max_epochs=6", "callbacks.last.every_seconds=0")
GO = "go"  # the file that ends the pauses
SLOW = f"+callbacks.slow={{_target_:worker_of_stops.Slow,seconds:3,until:{GO}}}"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands and its jobs find each other and this package."""
    programs = ("munged", "slurmctld", "slurmd", "srun")
    missing = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}: install the packages slurmd slurmctld slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd and munged start as root, and this is another user")
    folder = Path(f"/tmp/slurm_of_{os.getpid()}")  # a short path: the sockets' names may not be long
    started = subprocess.run(
        [SCRIPTS / "start-slurm.sh", folder], capture_output=True, text=True, timeout=60, env=os.environ | {"SLURM_TEST_KILLWAIT": "10"}
    )
    assert started.returncode == 0, started.stderr
    settings = dict(word.split("=", 1) for line in started.stdout.splitlines() if line.startswith("export ") for word in line.split()[1:])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        yield {**os.environ, **settings, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(Path(__file__).parent)}
    finally:
        subprocess.run([SCRIPTS / "stop-slurm.sh", folder], timeout=120, check=True)
        shutil.rmtree(folder, ignore_errors=True)


Shell = Callable[..., str]


@pytest.fixture
def shell(slurm: dict[str, str], tmp_path: Path) -> Shell:
    """A command of SLURM's, in the tests' folder: what it prints."""

    def run(*words: str | Path) -> str:
        answer = subprocess.run(list(map(str, words)), cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run


Begin = Callable[..., Forked]


@pytest.fixture
def begin(slurm: dict[str, str], processes: Any, tmp_path: Path) -> Iterator[Begin]:
    """``lowerbound-train`` in the tests' folder, with a name for what it writes."""
    begun: list[Forked] = []

    def run(name: str, *words: str) -> Forked:
        begun.append(forked(processes, tmp_path, tmp_path / f"{name}.log", *words, variables=slurm))
        return begun[-1]

    yield run
    for one in begun:  # else one that a test has failed to end would wait for a SLURM that is gone
        one.process.kill()


def log_of(folder: Path) -> str:
    """All that the jobs of a sweep have written."""
    return "\n".join(path.read_text() for path in sorted(folder.glob(".slurm/*/*_log.*")))


def folder_of(sweep: Path, value: str) -> Path:
    """That of the run with this value."""
    (path,) = [path for path in sweep.glob("*/.hydra/overrides.yaml") if f"={value}\n" in path.read_text()]
    return path.parents[1]


def job_of(folder: Path) -> str:
    return (folder / ".slurm_job").read_text()


def steps(text: str) -> tuple[list[str], list[str]]:
    """The optimizer steps after which runs stopped, and after which they went on."""
    return re.findall(r"stopped by a signal after optimizer step (\d+)", text), re.findall(r"going on after optimizer step (\d+)", text)


def restarts(shell: Shell, job: str) -> int:
    return int(re.findall(r"Restarts=(\d+)", shell("scontrol", "show", "job", job))[0])


def test_a_sweep_survives_a_preemption_and_a_time_limit(slurm: dict[str, str], begin: Begin, shell: Shell, tmp_path: Path) -> None:
    """Four runs and one that fails, on two nodes: what the first waits for is a job of a higher partition, and time the second."""
    words = (*LAUNCHER, *LONG, SLOW, "fit.optimizer.lr=0.001,1e30,0.002,0.003,0.004", "sweep=mine", "hydra.launcher.signal_delay_s=112")
    command = begin("command", *words)
    sweep = tmp_path / "outputs" / "mine"

    def node_of(lr: str) -> str:
        return shell("squeue", "-h", "-r", "-o", "%N", "-j", job_of(folder_of(sweep, lr))).strip()

    until(lambda: len(list(sweep.glob("*/last.ckpt"))) == 4 and list(sweep.glob("*/failure.txt")))
    first, second = "0.001", next(lr for lr in ("0.002", "0.003", "0.004") if node_of(lr) != node_of("0.001"))
    folder = folder_of(sweep, second)
    taken, limited = job_of(folder_of(sweep, first)), job_of(folder)
    shell("scontrol", "update", f"JobId={limited}", "TimeLimit=2")
    shell("sbatch", "-p", "high", "-w", node_of(first), "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    whole = begin("whole", *LONG, f"fit.optimizer.lr={second}", "hydra.run.dir=whole")
    until(lambda: restarts(shell, limited))
    shell("scontrol", "update", f"JobId={limited}", "TimeLimit=60")
    until(lambda: restarts(shell, taken))
    (tmp_path / GO).touch()
    code, out = command.ended(200)
    assert code == 1, "one has failed"
    assert len(re.findall(r"finished with -?[\d.]+", out)) == 4
    assert "lr=1e+30: failed: NonFiniteError: optimizer step" in out
    stopped, resumed = steps(log_of(sweep))
    assert sorted(stopped) == sorted(resumed)
    assert len(stopped) >= 2, "the one that was out of time, and whatever was on the node that was taken"
    assert f"job {limited} is requeued" in log_of(sweep)
    assert len([path for path in sweep.glob("*/results.json") if "val/elbo" in json.loads(path.read_text())]) == 4

    shutil.rmtree(next(path.parent for path in sweep.glob("*/failure.txt")))
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/last.ckpt")}
    code, out = begin("again", *(word.replace(",1e30", "") for word in words)).ended(60)
    assert code == 0, out
    assert "submitted" not in out
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/last.ckpt")} == before

    assert whole.ended(120)[0] == 0
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    one, other = (read_checkpoint(path / "weights.ckpt")["state_dict"] for path in (folder, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_runs_of_two_tasks_on_one_node_and_on_two_are_requeued_too(begin: Begin, shell: Shell, tmp_path: Path) -> None:
    many = ("trainer=ddp", "trainer.accelerator=cpu", *LONG, SLOW)
    nodes = {"one": ("trainer.devices=2",), "two": ("trainer.devices=1", "trainer.num_nodes=2")}
    # With one CPU for each task both have room at the same time.
    commands = {name: begin(name, *LAUNCHER[:-1], *many, *words, f"sweep={name}", "seed=12345") for name, words in nodes.items()}
    for name in nodes:
        until(lambda name=name: list((tmp_path / "outputs" / name).glob("*/last.ckpt")))
        shell("scontrol", "requeue", job_of(folder_of(tmp_path / "outputs" / name, "12345")))
    until(lambda: all(restarts(shell, job_of(folder_of(tmp_path / "outputs" / name, "12345"))) for name in nodes))
    (tmp_path / GO).touch()
    for name, command in commands.items():
        code, out = command.ended(150)
        assert code == 0, out + log_of(tmp_path / "outputs" / name)
        (results,) = (tmp_path / "outputs" / name).glob("*/results.json")
        assert json.loads(results.read_text())["devices"] == 2
        stopped, resumed = steps(log_of(tmp_path / "outputs" / name))
        assert set(stopped) == set(resumed)
        assert len(resumed) == 1
        assert len(list(results.parent.parent.glob("*/config.yaml"))) == 1, "one folder"


def test_one_job_without_hydra_s_launcher(shell: Shell, tmp_path: Path) -> None:
    """Requeued from outside it goes on; cancelled it stays so, and another job goes on with its folder."""
    number = shell("sbatch", "--parsable", SCRIPTS / "submit.sh", *LONG, SLOW).strip()
    folder = tmp_path / "outputs" / "slurm" / number
    until((folder / "last.ckpt").exists)
    shell("scontrol", "requeue", number)
    log = tmp_path / f"lowerbound-{number}.log"
    until(lambda: "going on after" in log.read_text())
    shell("scancel", number)
    until(lambda: "CANCELLED" in shell("scontrol", "show", "job", number))
    until(lambda: not shell("squeue", "-h", "-j", number))
    stopped, resumed = steps(log.read_text())
    assert stopped[0] == resumed[0]
    assert not (folder / "failure.txt").exists()
    assert not (folder / "results.json").exists()
    (tmp_path / GO).touch()
    other = shell("sbatch", "--parsable", SCRIPTS / "submit.sh", f"resume={folder}", SLOW).strip()
    until(lambda: not shell("squeue", "-h", "-j", other))
    assert (folder / "results.json").exists(), (tmp_path / f"lowerbound-{other}.log").read_text()
    assert f"going on after optimizer step {stopped[-1]}" in (tmp_path / f"lowerbound-{other}.log").read_text()
    assert "ExitCode=0:0" in shell("scontrol", "show", "job", other)
    assert "ExitCode=0:0" not in shell("scontrol", "show", "job", number), "a stopped run never ends with 0"
