"""A run of several processes: one folder, one end, and no process that outlives the others."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch.distributed import HashStore

from lowerbound import devices
from lowerbound.one_folder import told
from processes import COMMAND, TORCHRUN, TWO_RANKS, children, finished, forked, is_alive, until, variables

RUN = ("model=ppca", "data=linear_gaussian", "trainer.max_epochs=1", "~callbacks.pictures")
NOTE = "+callbacks.note={_target_: noting.Note}"
NOTING = """
from pathlib import Path
from lightning.pytorch import Callback

class Note(Callback):
    def on_fit_start(self, trainer, module):
        Path(f"rank_{trainer.global_rank}").write_text(trainer.default_root_dir)
"""
SECONDS = 30.0  # in which the other ends after one was killed; Lightning looks every five


def one_folder(place: Path) -> Path:
    """The one that both processes have, and there is nothing else."""
    (folder,) = place.glob("outputs/*/*")
    assert {path.name for path in place.iterdir()} - {"__pycache__"} == {"outputs", "noting.py", "rank_0", "rank_1"}
    assert [(place / f"rank_{rank}").read_text() for rank in (0, 1)] == [str(folder)] * 2
    return folder


@pytest.mark.process
def test_what_torchrun_starts_has_one_folder(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTING)
    code, out = finished(tmp_path, *TORCHRUN, *COMMAND, *RUN, *TWO_RANKS, NOTE)
    assert code == 0, out
    folder = one_folder(tmp_path)
    assert json.loads((folder / "results.json").read_text())["devices"] == 2
    assert {path.name for path in folder.iterdir()} == {
        *(".hydra", "config.yaml", "metrics.csv", "results.json", "report.html", "weights.ckpt", "last.ckpt", ".lock", "overrides.yaml"),
        *(["figures"] if (folder / "figures").is_dir() else []),
    }
    assert list(OmegaConf.load(folder / ".hydra" / "overrides.yaml")) == [*RUN, *TWO_RANKS, NOTE]
    assert out.count("load it:") == 1, "the first process alone tells"


@pytest.mark.process
def test_what_lightning_starts_has_one_folder_and_one_end(processes: Any, tmp_path: Path) -> None:
    """Where a process is killed the other ends within 30 seconds, and not with exit code 0."""
    (tmp_path / "noting.py").write_text(NOTING)
    words = (*RUN, *TWO_RANKS, NOTE, "model=autoencoder", "trainer.max_epochs=-1")
    process, _ = forked(processes, tmp_path, tmp_path.with_suffix(".log"), *words)
    try:
        until(lambda: all(path.is_file() and path.read_text() for path in (tmp_path / "rank_0", tmp_path / "rank_1")))
        one_folder(tmp_path)
        (second,) = [pid for pid in children(process.pid) if variables(pid).get("LOCAL_RANK") == "1"]
        os.kill(second, signal.SIGKILL)
        process.join(SECONDS)
        assert process.exitcode not in (None, 0)
        assert not is_alive(second)
    finally:
        process.kill()


def test_the_first_process_tells_the_others_its_folder() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda rank: told(store, rank, 3, f"folder {rank}"), (2, 1, 0)))
    assert found == ["folder 0"] * 3


@pytest.mark.parametrize(
    ("variables", "place", "words"),
    [
        ({}, (0, 1), ()),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 4), devices.NO_FOLDER),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (0, 4), ()),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (1, 2), ()),  # by Lightning, which gives its own words
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, (1, 2), devices.NO_FOLDER),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 1), ()),  # in the script of a job, not under srun
    ],
)
def test_who_started_a_process_is_read_from_its_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: tuple[int, int], words: tuple[str, ...]
) -> None:
    for name in {*sum(devices.STARTED_BY, ()), "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert devices.started() == place
    assert devices.is_first() == (place[0] == 0)
    assert devices.without_folder() == words


def test_several_processes_of_one_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would train by itself, into one folder."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="choose trainer=ddp trainer.devices=2"):
        devices.check_started(OmegaConf.create({"devices": 1, "accelerator": "cpu"}))
    devices.check_started(OmegaConf.create({"devices": 1, "accelerator": "cpu", "num_nodes": 2}))
