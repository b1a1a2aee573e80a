"""Being stopped from outside without losing anything.

SLURM warns a job before its time limit (the signal that it was submitted with), when a job of a higher partition takes its place,
and when somebody requeues or cancels it. The handler here only notes the signal. The block in flight ends, the ranks agree, the
checkpoint is written (`callbacks.LastCheckpoint`) and `Stopped` is raised; the job asks to be requeued, unless it was cancelled,
and the process ends with an exit code that is never 0. Started again on its folder, the run goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
from types import FrameType
from typing import final

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again
INTERRUPTED = 130  # by Ctrl-C, as shells say it
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
WARNINGS = {signal.SIGUSR1, signal.SIGUSR2}  # which a cancelled job is not sent


class Stopped(Exception):  # noqa: N818  nothing is wrong
    """The run was stopped by a signal, after its checkpoint was written."""

    @property
    def exit_code(self) -> int:
        """Of the process."""
        return INTERRUPTED if received() == {signal.SIGINT} else STOPPED


@final
class Notice:
    """The handler of the signals that ask a run to stop, which notes them; a second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.received: set[signal.Signals] = set()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal."""
        if number == signal.SIGINT and number in self.received:
            raise KeyboardInterrupt
        self.received.add(signal.Signals(number))
        if number == signal.SIGINT:
            os.write(2, b"\nstopping when the block in flight ends; Ctrl-C again stops at once\n")


def install() -> None:
    """Note the signals from now on; those noted before stay so. submitit has put a handler of its own in the place before a run begins,
    and Lightning is kept from it (`run.make_trainer`)."""
    handler = _installed() or Notice()
    for number in SIGNALS:
        signal.signal(number, handler)


def uninstall() -> None:
    """Let the signals end the process again."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def received() -> set[signal.Signals]:
    """The signals that asked to stop."""
    handler = _installed()
    return set() if handler is None else handler.received


def requeue() -> str | None:
    """Ask SLURM to start this job again, if it was warned; what to tell the user, or None outside of SLURM.

    A job that is warned, of its time limit or of a preemption, is still running. One that is ending already was cancelled, and is to
    end, or was requeued from outside. Ctrl-C in an interactive job ends it. The signal may have come to another process of the run.
    """
    job = _job()
    if job is None or received() == {signal.SIGINT}:
        return None
    state = _state(job)
    if state != "RUNNING" and not received() & WARNINGS:
        return f"job {job} is {state.lower()}, and is not requeued from here"
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    return f"job {job} is requeued" if answer.returncode == 0 else f"job {job} could not be requeued: {answer.stderr.strip()}"


def _job() -> str | None:
    """The number of this process's job; in an array with its place, since one of them has the number of all as its own."""
    array, place = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return os.environ.get("SLURM_JOB_ID") if array is None or place is None else f"{array}_{place}"


def _state(job: str) -> str:
    answer = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=False)
    return next((word.removeprefix("JobState=") for word in answer.stdout.split() if word.startswith("JobState=")), "UNKNOWN")


def _installed() -> Notice | None:
    """The handler, which the process itself keeps: that of the first signal that still has it."""
    return next((handler for number in SIGNALS if isinstance(handler := signal.getsignal(number), Notice)), None)
