"""Checkpoint files that survive: written whole or not at all, the one before kept, damage noticed.

A checkpoint is torch's zip archive, in which every record has its CRC-32. torch does not look at them when it reads; `damage` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSPC
from io import RawIOBase
from pathlib import Path
from pickle import UnpicklingError
from shutil import disk_usage
from typing import IO, Any, cast, final
from zipfile import ZipFile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from lowerbound.errors import TooLargeError, size
from lowerbound.sizes import check_archive

PREVIOUS, BESIDE = ".prev", ".part"  # after a checkpoint's name: the one before it, and one that is being written


@final
class DurableCheckpoints(TorchCheckpointIO):
    """Writing checkpoints so that a kill or a power cut at any moment leaves a whole one: the new one, or that before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write beside, flush to the disk, keep the old one as ``.prev``, and rename.

        Raises:
            OSError: it could not be written whole, and the old one is left as it was; the message says how much room it takes.
        """
        place = Path(path)
        beside = _with(place, BESIDE)
        try:
            beside.unlink(missing_ok=True)  # what is there may be a pipe, or a second name of another file
            with beside.open("xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch makes its own error of one in writing
            beside.unlink(missing_ok=True)
            raise _too_large(checkpoint, place, error) from error
        if place.exists():
            _keep(place, _with(place, PREVIOUS))
        os.replace(beside, place)
        _flush_folder(place.parent)


@final
class _Counter(RawIOBase):
    """A file that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def write(self, part: Any) -> int:
        """Count the bytes."""
        self.size += len(part)
        return len(part)


def _too_large(checkpoint: dict[str, Any], place: Path, error: BaseException) -> BaseException:
    """What was wrong with writing it, with how much room it takes and how much there is; what has nothing to do with room, as it is."""
    cause = next((cause for cause in (error, error.__cause__, error.__context__) if isinstance(cause, OSError)), None)
    counter = _Counter()
    torch.save(checkpoint, cast(IO[bytes], counter))
    number = ENOSPC if cause is None else cause.errno
    if cause is None and disk_usage(place.parent).free >= counter.size:
        return error
    return OSError(number, _room(counter.size, place, number or ENOSPC), str(place))


def require_room(place: Path, count: int) -> None:
    """Refuse to begin what cannot be kept: a file of at least so many bytes.

    Raises:
        OSError: there is no room for it; the message says how much there is.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if disk_usage(place.parent).free < count:
        raise OSError(ENOSPC, _room(count, place, ENOSPC, "at least "), str(place))


def _room(count: int, place: Path, number: int, more: str = "") -> str:
    return f"{os.strerror(number)}: it takes {more}{size(count)}, and {size(disk_usage(place.parent).free)} are free"


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
    for candidate in (path, _with(path, PREVIOUS)):
        if not candidate.is_file():
            continue
        if (found := damage(candidate)) is None:
            return candidate, complaints
        complaints.append(f"{candidate} is damaged: {found}")
    return None, complaints


def tidy(folder: Path) -> None:
    """Take away what is only of use while a run goes on."""
    for ending in (PREVIOUS, BESIDE, PREVIOUS + BESIDE):
        for path in folder.glob(f"*.ckpt{ending}"):
            path.unlink(missing_ok=True)


def _with(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _keep(path: Path, previous: Path) -> None:
    """Let the file have a second name, which an older one may have had; there is always a whole file under one of the two."""
    link = _with(previous, BESIDE)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, previous)
    except OSError:  # a file system without links
        os.replace(path, previous)


def _flush_folder(folder: Path) -> None:
    """Let the renaming itself survive a power cut, where folders can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
