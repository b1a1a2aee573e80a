"""The processes of a run: how many its configuration asks for, how many there are, and which of them this is.

They are started by torchrun, by srun, or by Lightning in the first of them; each says so in variables of the environment.
"""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, ListConfig

from lowerbound.errors import whole

ALL = ("auto", "-1")
KINDS = ("cpu", "gpu", "cuda", "mps", "auto")
STARTED_BY = (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null")
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def started() -> tuple[int, int]:
    """The number of this process and how many there are; 0 of 1 where it is alone."""
    for rank, world in STARTED_BY:
        if rank in os.environ and world in os.environ:
            return number(rank), number(world)
    return 0, 1


def number(variable: str) -> int:
    """The whole number that a variable of the environment holds.

    Raises:
        ValueError: it holds something else.
    """
    value = os.environ[variable]
    if not value.isdecimal():
        raise ValueError(
            f"{variable}={value!r} in the environment must be a whole number; torchrun and srun set it, by hand leave it unset"
        )
    return int(value)


def is_first() -> bool:
    """Whether this is the process that tells, also before they are a group."""
    return started()[0] == 0


def started_by_others() -> bool:
    """Whether this process was started by torchrun or srun, and not by Lightning or by hand."""
    return "TORCHELASTIC_RUN_ID" in os.environ or ("LOCAL_RANK" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ)


def without_folder() -> tuple[str, ...]:
    """The words with which Hydra makes no folder, for all but the first process; Lightning gives those it starts words of its own."""
    return () if is_first() or not started_by_others() else NO_FOLDER


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch  # here, so that help and a typo need not wait for it

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(i) for i in range(count)])[:count]


def asked(trainer: DictConfig) -> int:
    """The processes that a run has on each machine: ``trainer.devices``, of which -1 and auto are all GPUs, or 1 on a CPU.

    Raises:
        ValueError: that is no number of devices.
    """
    devices: Any = trainer.devices
    if isinstance(devices, ListConfig):
        return len(devices)
    if str(devices) in ALL:
        return 1 if trainer.accelerator == "cpu" else max(1, len(gpus()))
    return whole(devices, "trainer.devices (or auto)")


def check_devices(trainer: DictConfig) -> None:
    """Refuse GPUs that are not there.

    Raises:
        ValueError: as said, or there is no such kind of device.
    """
    import torch  # here, so that help and a typo need not wait for it

    kind, count = trainer.accelerator, asked(trainer)
    if kind not in KINDS:
        raise ValueError(f"trainer.accelerator={kind} is none of {', '.join(KINDS)}")
    if kind == "mps" or (kind == "gpu" and torch.backends.mps.is_available()):
        return
    if kind in ("gpu", "cuda") and not gpus():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ValueError(
            f"trainer.accelerator={kind}: this process sees no GPU (CUDA_VISIBLE_DEVICES is {visible}).\n"
            "Choose trainer=cpu, or a machine with a GPU and a torch that is built for it."
        )
    if kind != "cpu" and 0 < len(gpus()) < count:
        raise ValueError(f"trainer.devices={trainer.devices} asks for {count} GPUs, and this process sees {len(gpus())}: ask for no more")


def check_started(trainer: DictConfig) -> None:
    """Refuse a run of one device in several processes: each would be a run of its own, in one folder.

    Raises:
        ValueError: as said.
    """
    _, world = started()
    if world > 1 and asked(trainer) * trainer.get("num_nodes", 1) == 1:
        raise ValueError(
            f"trainer.devices={trainer.devices} is one process, and torchrun or srun has started {world}\n"
            f"choose trainer=ddp trainer.devices={world} (per node; with several, trainer.num_nodes too), or start one process"
        )


def check_sweep(trainer: DictConfig, launcher: DictConfig) -> None:
    """Refuse runs of several processes in the one process of a sweep: the others would start the sweep again.

    Raises:
        ValueError: as said.
    """
    _, world = started()
    if launcher._target_ == BASIC and max(world, asked(trainer) * trainer.get("num_nodes", 1)) > 1:
        found = f"{world} processes" if world > 1 else f"trainer.devices={trainer.devices}"
        raise ValueError(
            f"--multirun with {found}: several processes cannot share the process of a sweep.\n"
            "Choose hydra/launcher=local (every run as processes of its own, here) or hydra/launcher=slurm (as a job, a task per device)."
        )
