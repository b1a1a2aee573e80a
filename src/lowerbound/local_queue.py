"""Processes in a queue over slots of this machine: its GPUs, or so many at a time on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import final

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE = 0.1  # seconds between two looks at what runs


@dataclass(frozen=True)
class Task:
    """A command that takes so many slots, and the file that its output is added to."""

    number: int
    command: Sequence[str]
    size: int
    log: Path


@dataclass(frozen=True)
class Running:
    """A task's process, the slots that it has, and when it was started."""

    task: Task
    process: subprocess.Popen[bytes]
    slots: Sequence[str]
    since: float = field(default_factory=monotonic)


@final
class Queue:
    """Runs tasks in their order, as many at a time as the slots allow.

    Args:
        slots: what there is, by name; a task takes no more than there are.
        environment: the variables of a process that has these slots.
        patience: seconds for what is told to stop, before it is killed. torchrun gives its own processes 30.
    """

    def __init__(self, slots: Sequence[str], environment: Callable[[Sequence[str]], Mapping[str, str]], patience: float) -> None:
        self._free, self._environment, self._patience = list(slots), environment, patience
        self._running: list[Running] = []

    def run(self, tasks: Iterable[Task], begun: Callable[[Running], None], ended: Callable[[Running, int], None]) -> None:
        """Run all tasks; `begun` is told of each, and `ended` of each with its exit code.

        Raises:
            SystemExit: Ctrl-C, SIGTERM or SIGHUP came: the processes were told to stop, have ended, and no other was begun.
        """
        waiting = deque(tasks)
        with _noted() as signals:
            try:
                while (waiting or self._running) and not signals:
                    while waiting and waiting[0].size <= len(self._free):
                        begun(self._start(waiting.popleft()))
                    sleep(PAUSE)
                    for running in [one for one in self._running if one.process.poll() is not None]:
                        self._running.remove(running)
                        self._free = sorted([*self._free, *running.slots])
                        ended(running, running.process.returncode)
            finally:
                self._stop()
        if signals:
            raise SystemExit(128 + signals[0])

    def _start(self, task: Task) -> Running:
        slots, self._free = self._free[: task.size], self._free[task.size :]
        with task.log.open("ab") as log:  # in a session of its own: Ctrl-C is for this process, which passes it on once
            process = subprocess.Popen(
                task.command,
                env=self._environment(slots),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(Running(task, process, slots))
        return self._running[-1]

    def _stop(self) -> None:
        """Tell what runs to stop, and wait until it has."""
        deadline = monotonic() + self._patience
        for running in self._running:
            running.process.terminate()
        while any(running.process.poll() is None for running in self._running) and monotonic() < deadline:
            sleep(PAUSE)
        for running in self._running:
            if running.process.poll() is None:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()


@contextmanager
def _noted() -> Iterator[list[int]]:
    """The signals to stop that have come, which are noted and do nothing else."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
