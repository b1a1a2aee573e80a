"""``hydra/launcher=local``: every run of a sweep as processes of its own, in a queue over the devices of this machine.

A run has the folder, the configuration and the overrides that it would have with Hydra's own launcher. Its output is in ``output.log``
in its folder; the screen gets a line when it begins and one when it ends.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import final

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from lowerbound.devices import ALL, asked, gpus, started
from lowerbound.errors import real, whole
from lowerbound.local_queue import Queue, Running, Task

LOG = "output.log"
OF_THE_SWEEP = re.compile(r"[+~]*hydra([./](launcher|sweeper)|\.(mode|run|sweep|output_subdir))\b")  # words that are not for its runs
OF_TORCHRUN = re.compile(r"^E\d{4} .*torch/distributed/elastic", re.MULTILINE)  # where its own account of a failure begins


@dataclass(frozen=True)
class Job:
    """A run of the sweep: its configuration with Hydra's, its folder, what runs it in how many processes, and the length of its old log."""

    config: DictConfig
    folder: Path
    processes: int
    command: Sequence[str]
    logged: int

    @property
    def overrides(self) -> list[str]:
        """The words of the sweep for it."""
        return list(self.config.hydra.overrides.task)

    def returned(self, code: int) -> JobReturn:
        """What Hydra and its sweepers are told: the value of the model's monitor, or why there is none."""
        found = JobReturn(overrides=self.overrides, cfg=_without_hydra(self.config), working_dir=os.getcwd())
        found.hydra_cfg, found.task_name = OmegaConf.masked_copy(self.config, "hydra"), self.config.hydra.job.name
        found.status = JobStatus.FAILED if code else JobStatus.COMPLETED
        found.return_value = ValueError(self.last_line(code)) if code else self._value()
        return found

    def last_line(self, code: int) -> str:
        """Why it failed, in a line: what it says itself, or else the last that it has written."""
        from lowerbound.folder import FAILURE  # here, so that help and a typo need not wait for torch

        path = self.folder / FAILURE
        said = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        log = (self.folder / LOG).read_bytes()[self.logged :].decode(errors="replace")
        written = [line.strip() for line in OF_TORCHRUN.split(log)[0].splitlines() if line.strip()]
        return said.partition("\n")[0] or (written[-1] if written else f"exit code {code}")

    def _value(self) -> float | None:
        from lowerbound.folder import RESULTS, read_json

        results = read_json(self.folder / RESULTS) or {}
        return results.get(str(results.get("monitor")))


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
        """Run the jobs, and return what became of each, in their order.

        Raises:
            ValueError: a job does not fit this machine, or this is no sweep of trainings; nothing has begun then.
            SystemExit: the sweep was stopped; its runs have ended.
        """
        setup_globals()
        self._check()
        there = gpus()
        slots = self._slots(there)
        with _kept():
            jobs = [self._job(initial_job_idx + i, list(words), slots, bool(there)) for i, words in enumerate(job_overrides)]
        for job in jobs:
            _note(job)
        names, returns = _names(jobs), dict[int, JobReturn]()

        def begun(running: Running) -> None:
            _say(f"{names[running.task.number]}: begins on {'GPU ' + ','.join(running.slots) if there else 'the CPU'}")

        def ended(running: Running, code: int) -> None:
            job, seconds = jobs[running.task.number], f"{monotonic() - running.since:.0f} s"
            _say(f"{names[running.task.number]}: {f'failed after {seconds}: {job.last_line(code)}' if code else f'finished in {seconds}'}")
            returns[running.task.number] = job.returned(code)
            self.context.callbacks.on_job_end(config=job.config, job_return=returns[running.task.number])

        tasks = [Task(i, job.command, min(job.processes, len(slots)), job.folder / LOG) for i, job in enumerate(jobs)]
        Queue(slots, partial(_environment, len(slots), bool(there)), self.patience).run(tasks, begun, ended)
        return [returns[i] for i in range(len(jobs))]

    def _check(self) -> None:
        _, world = started()
        if world > 1:
            raise ValueError(f"hydra/launcher=local starts the processes itself, and torchrun or srun has started {world}: start it once")
        if self.config.hydra.job.config_name != "config":
            raise ValueError("hydra/launcher=local is for lowerbound-train")

    def _slots(self, there: Sequence[str]) -> list[str]:
        if there and self.devices is not None and self.devices > len(there):
            raise ValueError(f"hydra.launcher.devices={self.devices}: this machine has {len(there)} GPUs to use")
        return list(there[: self.devices]) if there else [str(i) for i in range(self.devices or 1)]

    def _job(self, number: int, overrides: list[str], slots: Sequence[str], on_gpus: bool) -> Job:
        """A job of the sweep, and Hydra's configuration of the moment, which its folder's name depends on."""
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        folder = (Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)).absolute()
        with read_write(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder)
        processes = _processes(config.trainer, len(slots), on_gpus)
        log = folder / LOG
        return Job(config, folder, processes, _command(config, folder, processes), log.stat().st_size if log.is_file() else 0)


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


def _command(config: DictConfig, folder: Path, processes: int) -> list[str]:
    """What runs a job in its folder, in which is already what Hydra notes; the name of the sweep may have the time in it."""
    words = [word for word in config.hydra.overrides.hydra if not OF_THE_SWEEP.match(word)]
    words += [word for word in config.hydra.overrides.task if not word.startswith("sweep=")]
    words += [f"sweep={_quoted(config.sweep)}", f"hydra.run.dir={_quoted(folder)}", "hydra.output_subdir=null", "hydra.mode=RUN"]
    folders = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
    options = [word for path in folders for word in ("--config-dir", path)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *torchrun, "-m", "lowerbound.cli", *words, *options]


def _names(jobs: Sequence[Job]) -> list[str]:
    """What they are called on the screen: the words that set each apart."""
    alike = set.intersection(*(set(job.overrides) for job in jobs)) if jobs else set()
    return [" ".join(word for word in job.overrides if word not in alike) or job.folder.name for job in jobs]


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _note(job: Job) -> None:
    """What Hydra notes in a run folder."""
    notes = job.folder / str(job.config.hydra.output_subdir)
    notes.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(_without_hydra(job.config), notes / "config.yaml")
    OmegaConf.save(OmegaConf.masked_copy(job.config, "hydra"), notes / "hydra.yaml")
    OmegaConf.save(job.config.hydra.overrides.task, notes / "overrides.yaml")


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _environment(slots: int, on_gpus: bool, taken: Sequence[str]) -> dict[str, str]:
    """The variables of a process: its GPUs, and its share of the processor's cores; it finds the modules that this one finds."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // slots))}
    return {**threads, **os.environ, "PYTHONSAFEPATH": "1", **({"CUDA_VISIBLE_DEVICES": ",".join(taken)} if on_gpus else {})}


@contextmanager
def _kept() -> Iterator[None]:
    """Hydra's configuration of the moment as it was before."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def _say(line: str) -> None:
    print(line, flush=True)
