"""Sweeps by Optuna: stopped and gone on with, no trial is run twice, none is lost, and one that fails is one that failed."""

from __future__ import annotations

import fcntl
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import worker_of_commands
from commands import Answer, Command
from lowerbound.runs import read_runs
from processes import forked

optuna = pytest.importorskip("optuna")

from lowerbound import trials  # noqa: E402  which imports it

SEARCH = ("--multirun", "hydra/sweeper=optuna", "sweep=mine", "fit.optimizer.lr=interval(0.0, 1.0)", "latent_dim=choice(2,4,8)")


Stand = Callable[[int, float], float]


def value(number: int, lr: float) -> float:
    return -((lr - 0.3) ** 2)


@pytest.fixture
def command(without_training: Command) -> Command:
    """The command line, whose runs return a function of the trial's number and of the learning rate."""

    def run(*arguments: str, ends: Stand = value) -> Answer:
        def train(cfg: DictConfig) -> float:
            folder = Path(HydraConfig.get().runtime.output_dir)
            (folder / "failure.txt").unlink(missing_ok=True)
            OmegaConf.save(OmegaConf.create({"latent_dim": cfg.latent_dim}), folder / "config.yaml")
            found = ends(HydraConfig.get().job.num, cfg.fit.optimizer.lr)
            (folder / "results.json").write_text(json.dumps({"test/elbo": found}))
            return found

        return without_training(*arguments, train=train)

    return run


def study_of(folder: Path) -> optuna.Study:
    return trials.read_study(folder / "outputs" / "mine" / "optuna.db")


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study_of(folder).trials]


def begun_by(answer: Answer) -> list[tuple[float, int]]:
    return [(cfg.fit.optimizer.lr, cfg.latent_dim) for cfg in answer.runs]


def searched(folder: Path) -> list[tuple[float, int]]:
    return [(trial.params["fit.optimizer.lr"], trial.params["latent_dim"]) for trial in study_of(folder).trials]


def stopped_at(number: int) -> Stand:
    def ends(now: int, lr: float) -> float:
        if now == number:
            raise KeyboardInterrupt
        return value(now, lr)

    return ends


def test_a_search_maximises_what_a_run_returns(command: Command, tmp_path: Path) -> None:
    answer = command(*SEARCH, "hydra.sweeper.n_trials=4")
    assert answer.code == 0
    assert len(answer.runs) == 4
    assert [trial.value for trial in study_of(tmp_path).trials] == [value(0, lr) for lr, _ in begun_by(answer)]
    best = max(begun_by(answer), key=lambda run: value(0, run[0]))
    assert f"best: trial {begun_by(answer).index(best)}, {value(0, best[0]):.6g} with fit.optimizer.lr={best[0]} latent_dim=" in answer.out
    assert answer.out.splitlines()[-1] == "report: outputs/mine/report.html"


def test_a_search_stopped_in_its_sixth_trial_goes_on_as_if_it_had_not_been(
    command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve trials, of which one ends with NaN: the trial that was stopped is run again with its values, and no other is."""

    def ends(number: int, lr: float) -> float:
        return float("nan") if number == 8 else value(number, lr)

    with pytest.raises(KeyboardInterrupt):
        command(*SEARCH, "hydra.sweeper.n_trials=12", ends=stopped_at(5))
    assert states(tmp_path) == ["COMPLETE"] * 5 + ["RUNNING"]
    begun = searched(tmp_path)

    answer = command(*SEARCH, "hydra.sweeper.n_trials=12", ends=ends)
    assert answer.code == 1, "one of them failed"
    assert len(answer.runs) == 7
    assert begun_by(answer)[0] == begun[5], "the one that was stopped, with its values"
    assert states(tmp_path) == ["COMPLETE"] * 8 + ["FAIL"] + ["COMPLETE"] * 3
    assert len({lr for lr, _ in searched(tmp_path)}) == 12, "no proposal is repeated"
    assert len(read_runs(tmp_path / "outputs" / "mine")) == 12
    assert "trials: 11 complete, 1 failed" in answer.out
    assert "ended at nan" in answer.err

    again = command(*SEARCH, "hydra.sweeper.n_trials=12")
    assert (again.code, again.runs) == (1, [])

    monkeypatch.chdir(tmp_path_factory.mktemp("at_once"))
    assert begun_by(command(*SEARCH, "hydra.sweeper.n_trials=12", ends=ends)) == searched(tmp_path), "as if it had not been stopped"


def test_more_trials_are_other_trials_with_any_sampler(command: Command, tmp_path: Path) -> None:
    chosen = (*SEARCH, "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=3")
    for count in (1, 3):
        command(*chosen, f"hydra.sweeper.n_trials={count}")
    assert len({lr for lr, _ in searched(tmp_path)}) == 3


def test_a_batch_that_was_stopped_is_run_again(command: Command, tmp_path: Path) -> None:
    batches = (*SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    with pytest.raises(KeyboardInterrupt):
        command(*batches, ends=stopped_at(3))
    assert states(tmp_path) == ["COMPLETE"] * 2 + ["RUNNING"] * 2
    begun = searched(tmp_path)
    assert begun_by(command(*batches)) == begun[2:]
    assert states(tmp_path) == ["COMPLETE"] * 4


def test_trials_that_all_fail_leave_a_report_and_no_best(command: Command, tmp_path: Path) -> None:
    def ends(number: int, lr: float) -> float:
        if number == 0:
            raise ValueError("no luck with this one")
        return float("inf")

    answer = command(*SEARCH, "hydra.sweeper.n_trials=2", ends=ends)
    assert answer.code == 1
    assert states(tmp_path) == ["FAIL", "FAIL"]
    assert "best" not in answer.out
    assert [run.state.partition(": ")[2] for run in read_runs(tmp_path / "outputs" / "mine")] == [
        "ValueError: no luck with this one",
        "NonFiniteError: the model's monitor ended at inf",
    ]
    assert answer.out.splitlines()[-1] == "report: outputs/mine/report.html"


def test_a_trial_that_was_debugged_is_run_again(command: Command, tmp_path: Path) -> None:
    def ends(number: int, lr: float) -> float:
        raise ValueError("no luck with this one")

    with pytest.raises(ValueError, match="no luck"):
        command(*SEARCH, "hydra.sweeper.n_trials=1", "debug=true", ends=ends)
    assert command(*SEARCH, "hydra.sweeper.n_trials=1").code == 0
    assert states(tmp_path) == ["COMPLETE"]


def test_the_search_that_is_an_experiment_needs_no_flag_and_takes_words_over_its_own(command: Command, tmp_path: Path) -> None:
    answer = command("experiment=sweep_optuna", "hydra.sweeper.n_trials=2", "latent_dim=3")
    assert answer.code == 0
    assert [latent_dim for _, latent_dim in begun_by(answer)] == [3, 3]
    study = trials.read_study(tmp_path / "outputs" / "sweep_optuna" / "optuna.db")
    assert [set(trial.params) for trial in study.trials] == [{"fit.optimizer.lr", "network.encoder.sizes"}] * 2


def test_another_search_is_refused_in_the_folder_of_the_first(command: Command, tmp_path: Path) -> None:
    command(*SEARCH, "hydra.sweeper.n_trials=1")
    answer = command(*SEARCH, "hydra.sweeper.n_trials=2", "trainer.max_epochs=3")
    assert (answer.code, answer.runs) == (2, [])
    assert "trainer.max_epochs=3" in answer.err
    assert len(answer.err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("latent_dim=3",), "nothing to search"),
        (("latent_dimm=choice(2,3)",), "latent_dim?"),
        (("latent_dim=choice(2,3)", "hydra.sweeper.n_trials=0"), "n_trials"),
        (("latent_dim=choice(2,3)", "hydra/sweeper/sampler=grid"), "GridSampler"),
    ],
)
def test_a_search_that_cannot_begin_is_answered(command: Command, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    answer = command("--multirun", "hydra/sweeper=optuna", "sweep=mine", *words)
    assert (answer.code, answer.runs) == (2, [])
    assert told in answer.err
    assert len(answer.err.splitlines()) <= 3
    assert not (tmp_path / "outputs" / "mine" / "optuna.db").exists()


def test_a_second_process_is_refused(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "mine"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = command(*SEARCH)
    assert (answer.code, answer.runs) == (2, [])
    assert "mine is being written by" in answer.err


def test_without_optuna_it_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_optuna_sweeper._impl", None)
    answer = command(*SEARCH)
    assert (answer.code, answer.runs) == (2, [])
    assert "pip install 'lowerbound[sweep]'" in answer.err
    assert len(answer.err.splitlines()) <= 3


@pytest.mark.process
def test_a_search_killed_outright_goes_on(processes: Any, tmp_path: Path) -> None:
    """Real runs, in a process that gets SIGKILL in its second trial and in one that goes on."""
    words = ["model=ppca", "latent_dim=range(1,9)", "sweep=mine", "~callbacks.pictures", "--multirun", "hydra/sweeper=optuna"]
    words += ["hydra.sweeper.n_trials=2"]
    killed = processes.Process(target=worker_of_commands.killed_in, args=(1, tmp_path, tmp_path / "killed.log", words))
    killed.start()
    killed.join(100)
    assert killed.exitcode == -signal.SIGKILL
    assert states(tmp_path) == ["COMPLETE", "RUNNING"]
    begun = [trial.params for trial in study_of(tmp_path).trials]
    code, out = forked(processes, tmp_path, tmp_path / "done.log", *words).ended()
    assert code == 0, out
    assert states(tmp_path) == ["COMPLETE"] * 2
    assert [trial.params for trial in study_of(tmp_path).trials] == begun
    assert "trials: 2 complete" in out
