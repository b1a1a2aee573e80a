"""A run folder is one process's at a time and one configuration's for ever; what has finished is not run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

import commands
from lowerbound.claim import claimed, is_claimed
from lowerbound.cli import main

SMALL = ("trainer.max_epochs=2", "network.encoder.sizes=[8]", "latent_dim=2", "~callbacks.pictures", "callbacks.last.every_n_steps=1")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return commands.called("lowerbound-train", main, tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        assert commands.train(place, patch, *SMALL, "hydra.run.dir=run") == 0
    return place / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, for the test to change."""
    return Path(copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts}


def test_what_has_finished_is_not_run_again(run: Path, command: Command) -> None:
    before = contents(run)
    for words in ((*SMALL, "hydra.run.dir=run"), ("resume=run",), ("resume='run'", "logger=csv")):
        code, out, err = command(*words)
        assert (code, out, err) == (0, "run has finished: nothing to run\n", "")
    del before[".lock"]
    after = contents(run)
    del after[".lock"]
    assert after == before


def test_another_configuration_is_refused_with_its_differences(run: Path, command: Command) -> None:
    before = contents(run)
    code, _, err = command(*SMALL, "hydra.run.dir=run", "latent_dim=3", "seed=4")
    assert code == 2
    first, second, third = err.splitlines()
    assert first.endswith("/run holds a run of another configuration:")
    assert second.strip().startswith("latent_dim was 2 and is 3, seed was 0 and is 4, ")
    assert "name=" in third
    assert contents(run).keys() == before.keys(), "above all no failure.txt"
    assert command("resume=run", "fit.optimizer.lr=1")[0] == 2
    assert command("resume=run", "+nothing=1")[0] == 2
    assert command("resume=run")[0] == 0, "what was refused has left no trace"
    assert not (run / "failure.txt").exists()


def test_two_processes_do_not_share_a_folder(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_claimed(folder)
    with claimed(folder):
        assert is_claimed(folder)
        code, _, err = command(*SMALL, "hydra.run.dir=run")
        assert code == 2
        assert "run is being written by process " in err
        assert command(*SMALL, "hydra.run.dir=run", "+nothing=1")[0] == 2
        assert not (folder / "failure.txt").exists(), "nobody says of a run of another process that it has failed"
    assert not is_claimed(folder)
    assert command(*SMALL, "hydra.run.dir=run")[0] == 0


def test_what_has_failed_and_then_finished_has_not_failed(run: Path, command: Command) -> None:
    (run / "results.json").unlink()
    (run / "report.html").unlink()
    (run / "failure.txt").write_text("OSError: no space left\n")
    (run / "evaluation.json").write_text("{}")
    assert command("resume=run")[0] == 0
    assert {"results.json", "report.html"} <= set(contents(run))
    assert not {"failure.txt", "evaluation.json"} & set(contents(run))


def test_a_report_that_is_missing_is_written(run: Path, command: Command) -> None:
    (run / "report.html").unlink()
    assert command("resume=run")[0] == 0
    assert (run / "report.html").exists()


@pytest.mark.parametrize("spoilt", [("last.ckpt",), ("last.ckpt", "last.ckpt.prev")])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    run: Path, command: Command, spoilt: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (run / "results.json").unlink()
    (run / "last.ckpt.prev").write_bytes((run / "last.ckpt").read_bytes())
    expected = (run / "metrics.csv").read_bytes()
    for name in spoilt:
        (run / name).write_bytes((run / name).read_bytes()[:-1000])
    code, out, _ = command("resume=run")
    assert code == 0
    lines = [line for line in out.splitlines() if "is damaged" in line]
    assert len(lines) == len(spoilt)
    assert lines[0].endswith("beginning again" if len(spoilt) == 2 else "going on from " + str(run / "last.ckpt.prev"))
    assert (run / "metrics.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [(("resume=nowhere",), "resume=nowhere: that is no run folder"), (("resume=run", "-m"), "resume=run goes on with one run; a sweep")],
)
def test_what_cannot_be_gone_on_with(run: Path, command: Command, words: tuple[str, ...], said: str) -> None:
    code, _, err = command(*words)
    assert code == 2
    assert err.startswith(f"lowerbound-train: {said}")
