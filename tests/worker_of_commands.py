"""Command lines and scripts in a process that has imported everything; one may be told to die, as where it writes its checkpoint."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import sklearn.datasets  # noqa: F401  what takes seconds, once for all processes
import torch
from hydra.core.hydra_config import HydraConfig

import lowerbound.run
import parsed_once  # noqa: F401
from lowerbound.cli import main
from lowerbound.defaults import differences
from lowerbound.local_queue import Queue, Task
from zoo import composed

differences(composed("name=warm"))  # Hydra's parser is slow before it has read anything
PROGRAM = Path(sys.executable).parent / "lowerbound-train"
MOMENTS = ("half", "fsync", "link", "replace")  # of writing a checkpoint


def rank(number: int, port: int, folder: Path, words: Sequence[str]) -> None:
    """One of two processes of a run, in the environment that torchrun gives."""
    take_place(number, port)
    train(folder, words)


def script(number: int, port: int, path: str, arguments: Sequence[str]) -> None:
    """One of two processes of a script, in that environment."""
    take_place(number, port)
    alone(path, arguments)


def alone(path: str, arguments: Sequence[str]) -> None:
    """The one process of a script."""
    torch.set_num_threads(1)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def take_place(number: int, port: int) -> None:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({**shared, "RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"})


def train(folder: Path, words: Sequence[str], moment: str | None = None, nth: int = 1) -> None:
    """``lowerbound-train`` into a folder; it ends, or dies at the `nth` time that writing a checkpoint comes to a `moment`."""
    if moment is not None:
        die_at(moment, nth)
    command(folder.parent, folder.with_suffix(".log"), [f"hydra.run.dir={folder}", *words])


def command(place: Path, log: Path, words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """``lowerbound-train`` in a folder, with these variables besides; what it and its children write goes to the log."""
    torch.set_num_threads(1)
    os.environ.update(variables or {})
    os.chdir(place)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [str(PROGRAM), *words]
    sys.exit(main())


def killed_in(number: int, place: Path, log: Path, words: Sequence[str]) -> None:
    """A sweep that gets SIGKILL when the run of this number begins."""
    begin = lowerbound.run.train

    def until(cfg: Any) -> float:
        if HydraConfig.get().job.num == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return begin(cfg)

    lowerbound.run.train = until
    command(place, log, words)


def queue_of_a_deaf_one(folder: Path) -> None:
    """A queue whose only job does not listen to SIGTERM."""
    os.chdir(folder)
    deaf = ["sh", "-c", "trap '' TERM; echo $$; while true; do sleep 0.1; done"]
    Queue(["a"], lambda taken: os.environ, 0.5).run([Task(0, deaf, 1, Path("log"))], lambda running: None, lambda *_: None)


def die_at(moment: str, nth: int) -> None:
    """SIGKILL at the nth time: with half of the bytes written, before they are flushed, before the old one is kept, before the renaming."""
    if moment == "half":
        torch.save = dying(torch.save, nth, write_half)
    else:
        setattr(os, moment, dying(getattr(os, moment), nth, lambda *_: None))


def dying(function: Callable[..., Any], nth: int, last: Callable[..., None]) -> Callable[..., Any]:
    count = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += ".ckpt" in str(getattr(arguments[-1], "name", arguments[-1])) or isinstance(arguments[0], int)
        if count == nth:
            last(function, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return counted


def write_half(save: Callable[..., None], checkpoint: Any, file: Any) -> None:
    save(checkpoint, file)
    file.flush()
    file.truncate(file.tell() // 2)
