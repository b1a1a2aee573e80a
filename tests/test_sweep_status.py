"""How far a sweep is: what its folders and their locks tell."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import commands
from lowerbound import cli
from lowerbound.claim import is_claimed
from lowerbound.sweep_status import why

Called = Callable[..., tuple[int, str, str]]
HOLDER = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return commands.called("lowerbound-sweep", cli.sweep, tmp_path, monkeypatch, capsys)


def write(folder: Path, seed: int, **files: str) -> Path:
    place = folder / f"seed={seed}"
    (place / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create([f"seed={seed}", "sweep=mine"]), place / ".hydra" / "overrides.yaml")
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep over eight seeds, of which six have begun."""
    folder = tmp_path / "outputs" / "mine"
    write(folder, 0, config_yaml="seed: 0", results_json='{"test/elbo": 1.0}')
    write(folder, 1, config_yaml="seed: 1", last_ckpt="")
    write(folder, 2, config_yaml="seed: 2", failure_txt="ValueError: the loss is nan\nin step 3\nThere is no checkpoint yet\n")
    write(folder, 3, config_yaml="seed: 3", results_json='{"test/elbo"')
    write(folder, 4)
    write(folder, 5, config_yaml="seed: 5", failure_txt="of another time")
    task = ["seed=range(0,8)", "sweep=mine"]
    note = {"hydra": {"sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": None}}}
    note["hydra"]["overrides"] = {"task": task}  # type: ignore[assignment]
    OmegaConf.save(OmegaConf.create(note), folder / "multirun.yaml")
    return folder


def test_each_run_has_its_state_and_a_failed_one_its_last_line(command: Called, sweep: Path) -> None:
    with (sweep / "seed=5" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, _ = command("status", "outputs/mine")
    assert code == 0
    assert out.splitlines() == [
        "done       seed=0",
        "stopped    seed=1",
        "failed     seed=2: ValueError: the loss is nan ... There is no checkpoint yet",
        "failed     seed=3: results.json is damaged",
        "not begun  seed=4",
        "running    seed=5",
        "not begun  seed=6",
        "not begun  seed=7",
        "runs: 1 done, 1 running, 1 stopped, 2 failed, 3 not begun, of 8",
    ]


def test_looking_changes_nothing(command: Called, sweep: Path) -> None:
    (sweep / "seed=1" / ".lock").touch()
    before = sorted((path, path.stat().st_mtime_ns) for path in sweep.rglob("*"))
    command("status", "outputs/mine")
    assert sorted((path, path.stat().st_mtime_ns) for path in sweep.rglob("*")) == before


def test_several_sweeps_are_told_one_by_one(command: Called, sweep: Path, tmp_path: Path) -> None:
    write(tmp_path / "outputs" / "other", 0, results_json="{}")
    code, out, _ = command("status", "outputs/mine", "outputs/other")
    assert code == 0
    assert [line for line in out.splitlines() if line.endswith(":")] == ["outputs/mine:", "outputs/other:"]
    assert out.splitlines()[-1] == "runs: 1 done, of 1"


@pytest.mark.parametrize(("words", "told"), [(("status", "outputs/no"), "no such folder"), (("status", "."), "no sweep"), ((), "folder=")])
def test_what_is_no_sweep_is_answered(command: Called, words: tuple[str, ...], told: str) -> None:
    code, _, err = command(*words)
    assert code == 2
    assert told in err
    assert len(err.splitlines()) <= 3


@pytest.mark.process
def test_a_lock_is_held_by_a_process_and_lost_with_it(tmp_path: Path) -> None:
    assert not is_claimed(tmp_path), "there is none"
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, env=os.environ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_claimed(tmp_path)
        holder.kill()
    assert path.is_file()
    assert not is_claimed(tmp_path)


def test_a_failure_that_says_nothing_is_said_so() -> None:
    assert why("\n") == "it does not say why"
    assert why("one line\n") == "one line"


def test_a_search_is_told_with_its_trials(command: Called, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from optuna.distributions import UniformDistribution

    from lowerbound import trials

    folder = tmp_path / "outputs" / "mine"
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"hydra": {"sweeper": {"_target_": "OptunaSweeper", "n_trials": 9}}}), folder / "multirun.yaml")
    study = trials.open_study(folder / "optuna.db", "mine", ["x=interval(0,1)"])
    sampler = OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 0})
    asked = [trials.begin_trial(study, {"x": UniformDistribution(0, 1)}, sampler) for _ in range(5)]
    for trial, found in zip(asked, (1.0, 2.5, None, float("nan")), strict=False):
        trials.end_trial(study, trial, found)
    before = (folder / "optuna.db").read_bytes()
    code, out, _ = command("status", "outputs/mine")
    assert code == 0
    assert (folder / "optuna.db").read_bytes() == before
    assert out.splitlines() == [
        "runs: none yet",
        "trials: 2 complete, 2 failed, 1 running, of 9",
        f"best: trial 1, 2.5 with x={asked[1].params['x']}",
    ]
