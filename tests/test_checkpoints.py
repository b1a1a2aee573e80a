"""Checkpoint files: whole or not there, and never read when they are damaged."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from lowerbound.checkpoints import damage, newest_whole
from lowerbound.durable import DurableCheckpoints, tidy


def state(number: int) -> dict[str, Any]:
    return {"weights": torch.full((50, 20), float(number)), "number": number, "names": ["a", "b"]}


def number_in(path: Path) -> int:
    return torch.load(path, weights_only=True)["number"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for number in (1, 2):
        DurableCheckpoints().save_checkpoint(state(number), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_the_one_before_is_kept(path: Path) -> None:
    assert {file.name: number_in(file) for file in path.parent.iterdir()} == {"last.ckpt": 2, "last.ckpt.prev": 1}
    assert newest_whole(path) == (path, [])
    tidy(path.parent)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_no_flipped_bit_is_ever_loaded(path: Path) -> None:
    """Found, or in what nobody reads, such as padding."""
    chance, whole = Random(0), path.read_bytes()
    expected = torch.load(path, weights_only=True)
    found = 0
    for _ in range(300):
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        if damage(path):
            found += 1
        else:
            loaded = torch.load(path, weights_only=True)
            assert torch.equal(loaded.pop("weights"), expected["weights"])
            assert loaded == {"number": 2, "names": ["a", "b"]}
    assert found > 200


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_one_is_passed_over(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    found, complaints = newest_whole(path)
    assert found == path.with_name("last.ckpt.prev")
    assert len(complaints) == 1
    assert str(path) in complaints[0]


def test_without_a_whole_one_there_is_none(path: Path) -> None:
    for file in path.parent.iterdir():
        file.write_bytes(b"no archive")
    found, complaints = newest_whole(path)
    assert found is None
    assert len(complaints) == 2
    assert newest_whole(path.with_name("other.ckpt")) == (None, [])


def test_where_files_have_no_second_names_the_old_one_moves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    DurableCheckpoints().save_checkpoint(state(3), path)
    assert {file.name: number_in(file) for file in path.parent.iterdir()} == {"last.ckpt": 3, "last.ckpt.prev": 2}
