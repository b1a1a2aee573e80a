"""``hydra/launcher=slurm``: every run of a sweep as a job of SLURM, by submitit, all of them one array.

A job is the command of its run, with a task for each device. It may be preempted, requeued or hit its time limit as often as it likes
(`preemption`): it is finished when its folder has results, and has failed when it is no longer in the queue without any. The jobs
outlive the command; given again, it waits for those that are in the queue, and submits what is missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep
from typing import Any, final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lowerbound.devices import asked
from lowerbound.errors import real
from lowerbound.jobs import Job, jobs_of, names_of, say

JOB = ".slurm_job"  # in a run folder: the number of its job
LOGS = ".slurm"  # in the sweep's folder: what the jobs write
UNHEARD = 3  # looks at the queue without an answer, before it is said


@final
class SlurmLauncher(Launcher):
    """Hydra's launcher of that name.

    Args:
        every_seconds: between two looks at the queue.
        options: what `submitit.SlurmExecutor` passes to sbatch; those that are None are left to the cluster.
    """

    __module__ = "hydra_plugins.lowerbound"  # where Hydra takes it from

    def __init__(self, every_seconds: float = 5.0, **options: Any) -> None:
        self.every_seconds = real(every_seconds, "hydra.launcher.every_seconds", above=0)
        self.options = {key: _plain(value) for key, value in options.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives; what runs a job is its command, and not this process's task."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs that have not finished, wait for all, and return what became of each, in their order.

        Raises:
            ValueError: submitit or SLURM is not there, or a job has another number of devices than tasks.
        """
        jobs = jobs_of(self.context, self.config, job_overrides, initial_job_idx)
        for job in jobs:
            self._check(job.config.trainer)
        there = self._queue()
        missing = [job for job in jobs if not job.is_done and _number(job) not in there]
        if missing:
            self._submit(missing)
        names, returns = names_of(jobs), dict[int, JobReturn]()
        for i in self._ended(jobs):
            value = self._value(jobs[i])
            returns[i] = jobs[i].returned(int(value is None))
            say(f"{names[i]}: {f'failed: {jobs[i].last_line(1)}' if value is None else f'finished with {value:.6g}'}")
            self.context.callbacks.on_job_end(config=jobs[i].config, job_return=returns[i])
        return [returns[i] for i in range(len(jobs))]

    def _check(self, trainer: DictConfig) -> None:
        tasks = (self.options.get("ntasks_per_node", 1), self.options.get("nodes", 1))
        devices = (asked(trainer), trainer.num_nodes)
        if tasks != devices:
            raise ValueError(
                f"trainer.devices={devices[0]} on trainer.num_nodes={devices[1]} is not "
                f"hydra.launcher.ntasks_per_node={tasks[0]} on hydra.launcher.nodes={tasks[1]}: there is a task for each device"
            )

    def _submit(self, jobs: Sequence[Job]) -> None:
        """One array of jobs, of which each folder has the number."""
        from lowerbound.folder import FAILURE

        try:
            import submitit
            from submitit.core.utils import FailedSubmissionError
        except ImportError as error:
            raise ValueError(f"hydra/launcher=slurm needs an extra: {error}\npip install 'lowerbound[slurm]'") from error
        for job in jobs:
            job.note()
            (job.folder / FAILURE).unlink(missing_ok=True)
        try:
            executor = submitit.SlurmExecutor(folder=Path(self.config.hydra.sweep.dir).absolute() / LOGS / "%j")
            executor.update_parameters(**self.options)
            submitted = executor.map_array(run, [list(job.words) for job in jobs])
        except (RuntimeError, ValueError, FailedSubmissionError) as error:
            raise ValueError(f"sbatch does not take the jobs: {error}") from error
        for job, one in zip(jobs, submitted, strict=True):
            (job.folder / JOB).write_text(one.job_id, encoding="utf-8")
        array = submitted[0].job_id.partition("_")[0]
        say(f"submitted {len(jobs)} jobs as array {array}; Ctrl-C leaves them going, and the same command waits again")

    def _value(self, job: Job) -> float | None:
        """What a job that has left the queue ended with; None: it has failed, and its folder says why, or where to look."""
        from lowerbound.claim import is_claimed
        from lowerbound.folder import FAILURE

        if (value := job.value()) is None:
            sleep(self.every_seconds)  # a folder on another machine may be seen late
            value = job.value()
        path, number = job.folder / FAILURE, _number(job)
        if value is None and not path.exists() and not is_claimed(job.folder):
            log = Path(self.config.hydra.sweep.dir) / LOGS
            path.write_text(f"job {number} has left the queue without results, as a cancelled one does: see {log}\n", encoding="utf-8")
        return value

    def _ended(self, jobs: Sequence[Job]) -> Iterator[int]:
        """The numbers of the jobs, as they leave the queue; those that had finished come first."""
        waiting = list(range(len(jobs)))
        while waiting:
            there = self._queue()
            for i in [i for i in waiting if _number(jobs[i]) not in there]:
                waiting.remove(i)
                yield i
            if waiting:
                sleep(self.every_seconds)

    def _queue(self) -> set[str]:
        """The jobs of this user that wait, run or are ending, once SLURM answers: without it nothing is known of them."""
        unheard = 0
        while (found := _queue()) is None:
            unheard += 1
            if unheard == UNHEARD:
                say("squeue does not answer; waiting for it")
            sleep(self.every_seconds)
        return found


def run(words: Sequence[str]) -> None:
    """A task of a job: the command of a run.

    Raises:
        SystemExit: it has not finished; submitit lets that through, so a requeued job is not taken for one that has ended.
    """
    from lowerbound.cli import main

    sys.argv = ["lowerbound-train", *words]
    if code := main():
        raise SystemExit(code)


def _queue() -> set[str] | None:
    """The jobs of this user; None: SLURM does not answer."""
    try:
        answer = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise ValueError("hydra/launcher=slurm: there is no squeue here; on one machine choose hydra/launcher=local") from None
    except subprocess.TimeoutExpired:
        return None
    return None if answer.returncode else set(answer.stdout.split())


def _number(job: Job) -> str:
    path = job.folder / JOB
    return path.read_text(encoding="utf-8") if path.is_file() else "none"


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
