"""Whole attacks, as a stranger would send them: folders to go on with, studies, and files that lie in the working folder."""

from __future__ import annotations

import os
import pickle
import sqlite3
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import pytest
import torch
import wandb
from omegaconf import DictConfig, OmegaConf

import compositions
import lowerbound.connection as connection
from commands import Command
from compositions import answered
from lowerbound.folder import read_overrides
from lowerbound.tracking import TensorBoard

SMALL = ("model=ppca", "fit=em", "latent_dim=2", "data=table", "data.path=../real.npy", "data.dim=16", "~callbacks.pictures")
ONCE = "trainer.max_epochs=1"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that an epoch has been spent on, beside what it was learnt from; it asks for another one."""
    place = tmp_path_factory.mktemp("begun")
    compositions.write_tables(place)
    (place / "work").mkdir()
    answer = answered(place / "work", "lowerbound-train", *SMALL, ONCE, "hydra.run.dir=../run")
    assert answer.code == 0, answer.err
    for name in ("config.yaml", "overrides.yaml"):
        (place / "run" / name).write_text(
            (place / "run" / name).read_text().replace("max_epochs: 1", "max_epochs: 2").replace(ONCE, ONCE[:-1] + "2")
        )
    (place / "run" / "results.json").unlink()
    return place


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Path:
    """A folder of the user's, with what came from a stranger in ``run``."""
    return Path(copytree(begun, tmp_path / "home"))


def said(folder: Path, *words: str) -> None:
    """Let the run folder keep these words too."""
    (folder / "overrides.yaml").write_text(OmegaConf.to_yaml([*(read_overrides(folder, "overrides.yaml") or []), *words]))


# Checkpoints.


def test_going_on_deletes_nothing_but_what_the_run_has_written(home: Path) -> None:
    """Lightning takes away what was the best, and all that is in it, as soon as there is a better one."""
    checkpoint = torch.load(home / "run" / "last.ckpt", weights_only=True)
    (best,) = (state for state in checkpoint["callbacks"].values() if "best_k_models" in state)
    low = torch.tensor(-1e9)
    best |= {"best_k_models": {"..": low}, "best_model_path": "..", "kth_best_model_path": "..", "kth_value": low, "best_model_score": low}
    torch.save(checkpoint | {"has_ended": False}, home / "run" / "last.ckpt")
    answer = answered(home / "work", "lowerbound-train", "resume=../run")
    assert (answer.code, "going on after" in answer.out) == (0, True), answer.err
    assert (home / "real.npy").is_file()
    assert (home / "run" / "weights.ckpt").is_file()


# Where one works.


def test_no_module_is_looked_for_in_a_folder_that_is_gone_on_with(
    home: Path, without_training: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries try to import dozens of others that are not installed."""
    (home / "run" / "not_installed.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.chdir(home / "run")

    def looks(cfg: DictConfig) -> float:
        with pytest.raises(ModuleNotFoundError):
            import_module("not_installed")
        return 0.0

    answer = without_training("resume=.", train=looks)
    assert (answer.code, len(answer.runs)) == (0, 1), answer.err


SETTINGS: dict[str, dict[str, str]] = {
    "base_url = http://127.0.0.1:9": {"WANDB_BASE_URL": "http://127.0.0.1:9"},
    "https_proxy = http://127.0.0.1:9": {"WANDB_HTTPS_PROXY": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("line", SETTINGS)
def test_a_file_of_wandbs_in_the_working_folder_does_not_say_where_a_key_goes(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(connection, "_answers", lambda url: asked.append(url))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nentity = me\n{line}\n")
    wandb.teardown()
    name, _, value = line.partition(" = ")
    assert getattr(wandb.setup().settings, name) == value, "the attack is none"
    for mode in ("online", "offline"):
        with pytest.raises(
            ValueError, match=rf"wandb/settings sets {line.replace(' ', '')}, which could send your key elsewhere"
        ) as caught:
            connection.possible_mode(mode)
    assert len(str(caught.value).splitlines()) <= 3
    assert asked == []
    for variable, own in SETTINGS[line].items():
        monkeypatch.setenv(variable, own)
    assert connection.possible_mode("offline") == "offline"
    wandb.teardown()


def test_tensorboard_writes_no_secret_into_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the house")
    assert TensorBoard(save_dir=tmp_path / "$SECRET", name="$SECRET", version=3).log_dir == str(
        tmp_path / "$SECRET" / "$SECRET" / "version_3"
    )


# Studies.

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, UniformDistribution  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

from lowerbound import trials  # noqa: E402

SEARCH = ("--multirun", "hydra/sweeper=optuna", "sweep=s", "hydra.sweeper.n_trials=1", "latent_dim=choice(2,4)")


def study(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(storage=f"sqlite:///{path}", study_name="s", direction="maximize")


def hot_journal(path: Path, named: str = "") -> None:
    """A study whose writing was cut short, with a journal that may name another file, as one of several databases does."""
    study(path.with_name("whole.db"))
    connected = sqlite3.connect(path.with_name("whole.db"), isolation_level=None)
    for statement in ("pragma cache_size=1", "begin immediate", "create table junk(x)"):
        connected.execute(statement)
    for _ in range(50):
        connected.execute("insert into junk values(?)", ("y" * 3000,))
    journal = Path(f"{path}-journal")
    copy(path.with_name("whole.db"), path)
    copy(path.with_name("whole.db-journal"), journal)
    connected.execute("rollback")
    if named:
        page = struct.pack(">I", 0x40000000 // 4096 + 1)
        end = struct.pack(">II", len(named), sum(named.encode())) + bytes.fromhex("d9d505f920a163d7")
        journal.write_bytes(journal.read_bytes() + page + named.encode() + end)


Use = Callable[[Path], object]
USES: dict[str, Use] = {"read": trials.read_study, "open": lambda path: trials.open_study(path, "s", [])}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("is_link", [False, True])
def test_no_journal_deletes_a_file(use: str, is_link: bool, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "s" / "optuna.db"
    for attempt in ("naive", "own"):
        victim.write_text("precious")
        hot_journal(tmp_path / attempt / "real.db", str(victim))
    sqlite3.connect(tmp_path / "naive" / "real.db").execute("select count(*) from studies").fetchall()
    assert not victim.exists(), "the attack is none"
    victim.write_text("precious")
    path.parent.mkdir()
    if is_link:  # SQLite goes by the name of what a link leads to
        path.symlink_to(tmp_path / "own" / "real.db")
    else:
        for ending in ("", "-journal"):
            (tmp_path / "own" / f"real.db{ending}").rename(f"{path}{ending}")
    with pytest.raises(ValueError, match="cannot be read: |names another file"):
        USES[use](path)
    assert victim.exists()


def test_a_study_that_was_cut_short_is_mended_by_its_search_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    hot_journal(path)
    with pytest.raises(ValueError, match=r"optuna\.db cannot be read"):
        trials.read_study(path)
    assert Path(f"{path}-journal").exists()
    assert len(trials.open_study(path, "s", []).trials) == 0
    assert trials.read_study(path).study_name == "s"


@pytest.mark.parametrize("name", ["evil?a=b", "100%", "{0}", "a#b c", "%20"])
def test_a_study_is_where_its_folder_is_whatever_that_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name, "optuna.db")
    path.parent.mkdir()
    with pytest.raises(ValueError, match=r"optuna\.db cannot be read"):
        trials.read_study(path)
    trials.open_study(path, "s", [])
    assert trials.read_study(path).study_name == "s"
    assert [found.relative_to(tmp_path) for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_a_study_only_says_what_was_searched(without_training: Command, tmp_path: Path) -> None:
    evil = "{_target_: torch.load, f: x.pkl, weights_only: false}"
    found: dict[str, Any] = {"latent_dim": CategoricalDistribution((2, 4)), "+callbacks.evil": CategoricalDistribution((evil,))}
    theirs = study(tmp_path / "outputs" / "s" / "optuna.db")
    theirs.add_trial(create_trial(state=TrialState.WAITING, params={"latent_dim": 4, "+callbacks.evil": evil}, distributions=found))
    answer = without_training(*SEARCH, train=lambda cfg: 0.0)
    (config,) = answer.runs
    assert config.latent_dim == 4
    assert "evil" not in config.callbacks


class Pickled:
    """What runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("marker",)


@pytest.mark.parametrize("key", ["cma:optimizer", "cma:optimizer:0"])
def test_no_pickle_in_a_study_is_read(key: str, without_training: Command, tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    theirs = study(tmp_path / "outputs" / "s" / "optuna.db")
    space: dict[str, Any] = {"a": UniformDistribution(0, 1), "b": UniformDistribution(0, 1)}
    attributes = {key: pickle.dumps(Pickled()).hex()}
    for b in (0.2, 0.3):
        theirs.add_trial(create_trial(value=1.0, params={"a": 0.5, "b": b}, distributions=space, system_attrs=attributes))
    answer = without_training(*SEARCH, "hydra/sweeper/sampler=cmaes", train=lambda cfg: 0.0)
    assert (answer.code, answer.runs) == (2, [])
    assert "Choose hydra/sweeper/sampler=tpe" in answer.err
    answer = without_training(*SEARCH, train=lambda cfg: 0.0)
    assert (answer.code, answer.runs) == (2, [])
    assert "holds pickles of a search by CMA-ES" in answer.err
    assert not (tmp_path / "marker").exists()
    theirs.sampler = optuna.samplers.CmaEsSampler(seed=0)
    theirs.ask(space)
    assert (tmp_path / "marker").exists(), "the attack is none"
