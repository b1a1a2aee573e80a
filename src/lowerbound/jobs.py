"""The runs of a sweep that are processes of their own: the folder, the words and the notes of each, and what Hydra is told of it.

A run has the folder, the configuration and the overrides that it would have with Hydra's own launcher.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lowerbound import preemption
from lowerbound.devices import started

LOG = "output.log"
ADVICE = "debug=true shows the whole traceback."  # which ends what a command says
OF_THE_SWEEP = re.compile(r"[+~]*hydra([./](launcher|sweeper)|\.(mode|run|sweep|output_subdir))\b")  # words that are not for its runs
OF_TORCHRUN = re.compile(r"^E\d{4} .*torch/distributed/elastic", re.MULTILINE)  # where its own account of a failure begins


@dataclass(frozen=True)
class Job:
    """A run of the sweep: its configuration with Hydra's, its folder, the words that make it, whether it is done, and the length of its
    old log."""

    config: DictConfig
    folder: Path
    words: Sequence[str]
    is_done: bool
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
        found.return_value = ValueError(self.last_line(code)) if code else self.value()
        return found

    def last_line(self, code: int) -> str:
        """Why it failed, in a line: what it says itself, or else the last that it has written."""
        from lowerbound.folder import FAILURE  # here, so that help and a typo need not wait for torch

        path, log = self.folder / FAILURE, self.folder / LOG
        said = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        text = log.read_bytes()[self.logged :].decode(errors="replace") if log.is_file() else ""
        written = [line.strip() for line in OF_TORCHRUN.split(text)[0].splitlines() if line.strip() and line.strip() != ADVICE]
        return said.partition("\n")[0] or (written[-1] if written else f"exit code {code}")

    def value(self) -> float | None:
        """What the run ended with; None: it has not finished."""
        from lowerbound.claim import finished

        return finished(self.folder)

    def note(self) -> None:
        """Write what Hydra notes in a run folder."""
        notes = self.folder / str(self.config.hydra.output_subdir)
        notes.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(_without_hydra(self.config), notes / "config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(self.config, "hydra"), notes / "hydra.yaml")
        OmegaConf.save(self.config.hydra.overrides.task, notes / "overrides.yaml")


def jobs_of(context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The jobs of a sweep, numbered from `first`.

    Raises:
        ValueError: torchrun or srun has started several of this process, this is no sweep of trainings, or a folder is another
            configuration's.
        SystemExit: the sweep was told to stop before it began.
    """
    if preemption.received():
        raise SystemExit(preemption.Stopped().exit_code)
    preemption.uninstall()  # this process only waits
    setup_globals()
    launcher, (_, world) = config.hydra.runtime.choices["hydra/launcher"], started()
    if world > 1:
        raise ValueError(f"hydra/launcher={launcher} starts the processes itself, and torchrun or srun has started {world}: start it once")
    if config.hydra.job.config_name != "config":
        raise ValueError(f"hydra/launcher={launcher} is for lowerbound-train")
    with _kept():
        return [_job(context, config, first + i, list(words)) for i, words in enumerate(job_overrides)]


def names_of(jobs: Sequence[Job]) -> list[str]:
    """What they are called on the screen: the words that set each apart."""
    alike = set.intersection(*(set(job.overrides) for job in jobs)) if jobs else set()
    return [" ".join(word for word in job.overrides if word not in alike) or job.folder.name for job in jobs]


def say(line: str) -> None:
    """A line on the screen, at once: the next may be hours away."""
    print(line, flush=True)


def quoted(value: object) -> str:
    """As Hydra reads it back whatever is in it: names of run folders have = and , in them."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _job(context: HydraContext, config: DictConfig, number: int, overrides: list[str]) -> Job:
    """A job, made while Hydra's configuration of the moment is its own, on which its folder's name depends."""
    config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    folder = (Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)).absolute()
    with read_write(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    log = folder / LOG
    return Job(config, folder, _words(config, folder), _is_done(config, folder), log.stat().st_size if log.is_file() else 0)


def _is_done(config: DictConfig, folder: Path) -> bool:
    from lowerbound import claim  # here, so that help and a typo need not wait for torch

    claim.require_same(folder, _without_hydra(config))
    return claim.finished(folder) is not None


def _words(config: DictConfig, folder: Path) -> list[str]:
    """What makes the run in its folder, in which is already what Hydra notes; the name of the sweep may have the time in it."""
    words = [word for word in config.hydra.overrides.hydra if not OF_THE_SWEEP.match(word)]
    words += [word for word in config.hydra.overrides.task if not word.startswith("sweep=")]
    words += [f"sweep={quoted(config.sweep)}", f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null", "hydra.mode=RUN"]
    folders = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
    return [*words, *(word for path in folders for word in ("--config-dir", path))]


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


@contextmanager
def _kept() -> Iterator[None]:
    """Hydra's configuration of the moment as it was before."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
