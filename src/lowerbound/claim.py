"""Whose a run folder is: one process at a time, one configuration for ever, finished or to be gone on with."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from omegaconf import DictConfig

from lowerbound.checkpoints import newest_whole
from lowerbound.defaults import changes
from lowerbound.errors import OccupiedError
from lowerbound.folder import CONFIG, FAILURE, LAST, RESULTS, WEIGHTS, read_config, read_json, require_own

LOCK = ".lock"
SHOWN = 4  # differences in a message


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for this process alone; the system gives it back however the process ends.

    Raises:
        OccupiedError: another process has it.
        ValueError: a link in it leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_own(folder)
    with (folder / LOCK).open("a+") as file:
        if not _locked(file):
            file.seek(0)
            raise OccupiedError(f"{folder} is being written by {file.read().strip() or 'another process'}: wait for its end, or stop it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _locked(file: IO[str], seconds: float = 1.0) -> bool:
    """Whether the lock could be had; within a moment, since `is_claimed` holds it for one."""
    end = monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > end:
                return False
            sleep(0.05)
        except OSError:  # a file system without locks, on which two processes cannot be told apart
            return True
        else:
            return True


def is_claimed(folder: Path) -> bool:
    """Whether a process is at work on a run folder."""
    path = folder / LOCK
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def require_same(folder: Path, config: DictConfig) -> None:
    """Refuse a folder that holds the work of another configuration.

    Raises:
        OccupiedError: as said; the message lists the differences.
        ValueError: a link in it leads out of it, or its configuration is damaged.
    """
    require_own(folder)
    path = folder / CONFIG
    if not path.is_file() or not any((folder / name).is_file() for name in (LAST, WEIGHTS, RESULTS)):
        return
    if found := changes(read_config(path), config):
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise OccupiedError(
            f"{folder} holds a run of another configuration:\n{', '.join(found[:SHOWN])}{more}.\n"
            "Choose another folder (name=... or sweep=...), or give the same configuration."
        )


def finished(folder: Path) -> float | None:
    """The value of the monitor of a run that has finished in the folder, or None."""
    try:
        results = None if (folder / FAILURE).is_file() else read_json(folder / RESULTS)
    except ValueError:  # it was cut short
        return None
    return None if results is None else results.get(results.get("monitor", ""))


def checkpoint_of(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, None to begin; and remarks on damaged ones."""
    found, complaints = newest_whole(folder / LAST)
    if found not in (None, folder / LAST) and (folder / LAST).exists():
        (folder / LAST).replace(folder / f"{LAST}.damaged")  # else the next one written would take the place of the whole one
    going_on = f"going on from {found}" if found else "beginning again"
    return found, [f"{complaint}; {going_on}" for complaint in complaints]
