"""``hydra/launcher=local``: every run of a sweep as processes of its own, in a queue over the devices of this machine.

Its output is in ``output.log`` in its folder; the screen gets a line when it begins and one when it ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig

from lowerbound.devices import ALL, asked, gpus
from lowerbound.errors import real, whole
from lowerbound.jobs import LOG, Job, jobs_of, names_of, say
from lowerbound.local_queue import Queue, Running, Task


@final
class LocalLauncher(Launcher):
    """Hydra's launcher of that name.

    Args:
        devices: how many GPUs to use, or, on a machine without one, how many processes at a time; None: all GPUs, or 1.
        patience: seconds that a run has to end in when the sweep is stopped.
    """

    __module__ = "hydra_plugins.lowerbound"  # where Hydra takes it from

    def __init__(self, devices: int | None = None, patience: float = 60.0) -> None:
        self.devices = None if devices is None else whole(devices, "hydra.launcher.devices")
        self.patience = real(patience, "hydra.launcher.patience", least=0)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives; what runs a job is its command, and not this process's task."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that have not finished, and return what became of each, in their order.

        Raises:
            ValueError: a job does not fit this machine, or this is no sweep of trainings; nothing has begun then.
            SystemExit: the sweep was stopped; its runs have ended.
        """
        there = gpus()
        slots = self._slots(there)
        jobs = jobs_of(self.context, self.config, job_overrides, initial_job_idx)
        sizes = [_processes(job.config.trainer, len(slots), bool(there)) for job in jobs]
        names, returns = names_of(jobs), {i: job.returned(0) for i, job in enumerate(jobs) if job.is_done}

        def begun(running: Running) -> None:
            say(f"{names[running.task.number]}: begins on {'GPU ' + ','.join(running.slots) if there else 'the CPU'}")

        def ended(running: Running, code: int) -> None:
            job, seconds = jobs[running.task.number], f"{monotonic() - running.since:.0f} s"
            say(f"{names[running.task.number]}: {f'failed after {seconds}: {job.last_line(code)}' if code else f'finished in {seconds}'}")
            returns[running.task.number] = job.returned(code)
            self.context.callbacks.on_job_end(config=job.config, job_return=returns[running.task.number])

        missing = [i for i in range(len(jobs)) if i not in returns]
        for i in missing:
            jobs[i].note()
        tasks = [Task(i, _command(jobs[i], sizes[i]), min(sizes[i], len(slots)), jobs[i].folder / LOG) for i in missing]
        Queue(slots, partial(_environment, len(slots), bool(there)), self.patience).run(tasks, begun, ended)
        return [returns[i] for i in range(len(jobs))]

    def _slots(self, there: Sequence[str]) -> list[str]:
        if there and self.devices is not None and self.devices > len(there):
            raise ValueError(f"hydra.launcher.devices={self.devices}: this machine has {len(there)} GPUs to use")
        return list(there[: self.devices]) if there else [str(i) for i in range(self.devices or 1)]


def _processes(trainer: DictConfig, slots: int, on_gpus: bool) -> int:
    """How many processes a job has."""
    if isinstance(trainer.devices, ListConfig) or trainer.get("num_nodes", 1) != 1:
        given = f"trainer.devices={trainer.devices} on {trainer.get('num_nodes', 1)} nodes"
        raise ValueError(f"{given}: hydra/launcher=local chooses the devices, of this machine.\nGive trainer.devices as a number.")
    count = asked(trainer)
    if not on_gpus or trainer.accelerator == "cpu" or count <= slots:
        return count
    if str(trainer.devices) in ALL:
        return slots
    raise ValueError(f"trainer.devices={count}: hydra/launcher=local has {slots} GPUs of this machine to give.\nGive no more than that.")


def _command(job: Job, processes: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *torchrun, "-m", "lowerbound.cli", *job.words]


def _environment(slots: int, on_gpus: bool, taken: Sequence[str]) -> dict[str, str]:
    """The variables of a process: its GPUs, and its share of the processor's cores; it finds the modules that this one finds."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // slots))}
    return {**threads, **os.environ, "PYTHONSAFEPATH": "1", **({"CUDA_VISIBLE_DEVICES": ",".join(taken)} if on_gpus else {})}
