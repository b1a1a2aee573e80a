"""The command line in processes of its own, as a user or a scheduler starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import worker_of_commands

COMMAND = ("-m", "lowerbound.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # gloo looks up the machine's name otherwise


def finished(folder: Path, *words: str, seconds: float = 100) -> tuple[int, str]:
    """A Python process with these words in a folder: its exit code and what it wrote."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=ENVIRONMENT, timeout=seconds, check=False, **pipes)
    return done.returncode, done.stdout


class Forked(NamedTuple):
    """``lowerbound-train`` in a process of its own, and the file that it writes to."""

    process: Any
    log: Path

    def ended(self, seconds: float = 100) -> tuple[int, str]:
        """Its exit code and what it wrote; after so many seconds it is killed."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return self.process.exitcode, self.log.read_text()


def forked(processes: Any, folder: Path, log: Path, *words: str, variables: Mapping[str, str] = ENVIRONMENT) -> Forked:
    """It with these words in a folder, without its seconds of importing; what it starts itself is what a user has."""
    process = processes.Process(target=worker_of_commands.command, args=(folder, log, words, dict(variables)))
    process.start()
    return Forked(process, log)


def until(is_so: Callable[[], object], seconds: float = 200) -> None:
    """Wait for it, without taking the processor from whoever brings it about."""
    end = monotonic() + seconds
    while not is_so():
        assert monotonic() < end, "it does not happen"
        sleep(0.2)


def free_port() -> int:
    """A port for the processes of a run; they tell each other its folder at one 5000 above."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1] % 20000 + 20000


def two_ranks(processes: Any, script: str | Path, *arguments: object, seconds: float = 200) -> None:
    """A script in two processes, in the environment that torchrun gives them, without its seconds of importing."""
    port, words = free_port(), [str(argument) for argument in arguments]
    both = [processes.Process(target=worker_of_commands.script, args=(number, port, str(script), words)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(seconds)
        assert process.exitcode == 0


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started, and theirs."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from children(int(child))


def variables(pid: int) -> dict[str, str]:
    """Those that a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
