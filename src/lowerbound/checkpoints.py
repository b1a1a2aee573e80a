"""Checkpoint files that survive: written whole or not at all, the one before kept, damage noticed.

A checkpoint is torch's zip archive, in which every record has its CRC-32. torch does not look at them when it reads; `damage` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final
from zipfile import ZipFile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lowerbound.errors import TooLargeError
from lowerbound.sizes import check_archive

PREVIOUS, BESIDE = ".prev", ".part"  # after a checkpoint's name: the one before it, and one that is being written


@final
class DurableCheckpoints(TorchCheckpointIO):
    """Writing checkpoints so that a kill or a power cut at any moment leaves a whole one: the new one, or that before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Write beside, flush to the disk, keep the old one as ``.prev``, and rename."""
        place = Path(path)
        beside = _with(place, BESIDE)
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            _keep(place, _with(place, PREVIOUS))
        os.replace(beside, place)
        _flush_folder(place.parent)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, or None: every record is there and has the sum that was computed when it was written.

    Raises:
        TooLargeError: there is not enough memory for it, which is no damage.
    """
    try:
        check_archive(path)
        with ZipFile(path) as archive:
            spoilt = archive.testzip()
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # which reads the table of contents more strictly
    except TooLargeError:
        raise
    except Exception as error:  # whatever a reader makes of arbitrary bytes
        return (str(error) or type(error).__name__).splitlines()[0]
    return None if spoilt is None else f"{spoilt} is not what was written"


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
