"""Writing checkpoints so that they survive: whole or not at all, the one before kept; what there is no room for is not begun.

torch's zip archive keeps the CRC-32 of every record, by which damage is found (`checkpoints.py`).
"""

from __future__ import annotations

import os
from errno import ENOSPC
from io import RawIOBase
from pathlib import Path
from shutil import disk_usage
from typing import IO, Any, cast, final

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lowerbound.checkpoints import BESIDE, PREVIOUS, named
from lowerbound.errors import size


@final
class DurableCheckpoints(TorchCheckpointIO):
    """Writing checkpoints so that a kill or a power cut at any moment leaves a whole one: the new one, or that before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write beside, flush to the disk, keep the old one as ``.prev``, and rename.

        Raises:
            OSError: it could not be written whole, and the old one is left as it was; the message says how much room it takes.
        """
        place = Path(path)
        beside = named(place, BESIDE)
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
            _keep(place, named(place, PREVIOUS))
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


def tidy(folder: Path) -> None:
    """Take away what is only of use while a run goes on."""
    for ending in (PREVIOUS, BESIDE, PREVIOUS + BESIDE):
        for path in folder.glob(f"*.ckpt{ending}"):
            path.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Let the file have a second name, which an older one may have had; there is always a whole file under one of the two."""
    link = named(previous, BESIDE)
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
