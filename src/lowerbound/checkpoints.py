"""Checkpoint files that are read again: what is damaged is noticed, and the one before it found.

A checkpoint is torch's zip archive, in which every record has its CRC-32. torch does not look at them when it reads; `damage` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from lowerbound.errors import TooLargeError
from lowerbound.sizes import check_archive

PREVIOUS, BESIDE = ".prev", ".part"  # after a checkpoint's name: the one before it, and one that is being written


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, or None: every record is there and has the sum that was computed when it was written.

    Raises:
        TooLargeError: there is not enough memory for it, which is no damage.
    """
    try:
        check_archive(path)
        with ZipFile(path) as archive:
            spoilt = archive.testzip()
            _check_pickles(archive)
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # which reads the table of contents more strictly
        _check_tensors(loaded, path.stat().st_size)
    except TooLargeError:
        raise
    except UnpicklingError:  # torch's message is an advice to read it unsafely
        return "it holds more than tensors and plain containers, and nothing in it was run"
    except Exception as error:  # whatever a reader makes of arbitrary bytes
        return (str(error) or type(error).__name__).splitlines()[0]
    return None if spoilt is None else f"{spoilt} is not what was written"


def _check_pickles(archive: ZipFile) -> None:
    """Refuse what asks for memory of any size while it is read: torch lets a bytearray pass, of as many zeros as a few bytes say."""
    for name in archive.namelist():
        if name.endswith(".pkl") and b"bytearray" in archive.read(name):
            raise ValueError("it holds more than tensors and plain containers, and nothing in it was run")


def _check_tensors(loaded: Any, size: int) -> None:
    """Refuse tensors that claim more than their storage has, or all storages together more than the file."""
    storages: dict[int, int] = {}
    for one in _tensors(loaded):
        if one.layout is not torch.strided or one.device.type != "cpu":
            raise ValueError(f"it holds a tensor that is {one.layout} on {one.device.type}, which no run writes")
        storage = one.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if one.numel() * one.itemsize > storage.nbytes():
            raise ValueError(f"it claims a tensor {[*one.shape]} of {one.dtype}, of which it holds {storage.nbytes():,} bytes")
    if sum(storages.values()) > size:
        raise ValueError(f"it claims tensors of {sum(storages.values()):,} bytes, and is a file of {size:,}")


def _tensors(loaded: Any) -> Iterator[Tensor]:
    """Those in plain containers, each once: a container may hold itself, or another one many times."""
    seen: set[int] = set()
    waiting = [loaded]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one


def newest_whole(path: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from: that of this path, or the one before it if it is damaged; and what is wrong with the damaged ones."""
    complaints = []
    for candidate in (path, named(path, PREVIOUS)):
        if not candidate.is_file():
            continue
        if (found := damage(candidate)) is None:
            return candidate, complaints
        complaints.append(f"{candidate} is damaged: {found}")
    return None, complaints


def named(path: Path, ending: str) -> Path:
    """The file beside it that has its name and this ending."""
    return path.with_name(path.name + ending)
