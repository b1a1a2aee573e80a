"""One run folder for all processes of a run, however they were started.

Hydra makes the folder's name of the time at which it starts, so that every process that torchrun or srun starts would have its own.
The first one's counts, and it tells the others through a store of torch's: torchrun has one, for srun the first process serves it.
The processes that Lightning starts take the folder from their command line.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import read_write
from torch.distributed import DistNetworkError, PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage] where torch documents them

from lowerbound.devices import started, started_by_others

PATIENCE = timedelta(minutes=10)  # of the first to start, on a slow disk, for the last
BEYOND = 5000  # the ports from those where the processes of a SLURM job meet for training
LAST_PORT = 65535


def share() -> None:
    """Make the first process's run folder that of this one, where Hydra keeps it; runs of a sweep share theirs already.

    Raises:
        ValueError: the port where they meet cannot be had.
        torch.distributed.DistError: the others have not come within ten minutes.
    """
    rank, world = started()
    if world == 1 or not started_by_others() or HydraConfig.get().mode is not RunMode.RUN:
        return
    runtime: Any = HydraConfig.get().runtime
    with read_write(runtime):
        runtime.output_dir = told(_store(rank, world), rank, world, runtime.output_dir)


def told(store: Store, rank: int, world: int, folder: str) -> str:
    """The folder of rank 0. That one returns when all have read, since it may be the one that serves the store."""
    if rank > 0:
        folder = store.get("folder").decode()
        store.set(f"read by {rank}", "")
        return folder
    store.set("folder", folder)
    store.wait([f"read by {other}" for other in range(1, world)])
    return folder


def beside(port: int) -> int:
    """A port for the folder, a fixed distance from that for training."""
    return port + BEYOND if port + BEYOND <= LAST_PORT else port - BEYOND


def unreachable(address: str, main_port: int, port: int, error: Exception) -> str:
    """What to say where the processes of a run cannot meet: most often another run has the port."""
    found = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = f"MASTER_ADDR={address}, MASTER_PORT={main_port}"
    return (
        f"{where}: the processes of this run cannot meet at port {port}:\n{found}\nGive them another MASTER_PORT, which no other run uses."
    )


def _store(rank: int, world: int) -> Store:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        served = TCPStore(address, port, is_master=False, timeout=PATIENCE)
    else:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        meeting = SLURMEnvironment()  # for torchrun without a store it gives the same two variables
        port = beside(meeting.main_port)
        try:
            served = TCPStore(meeting.main_address, port, world, is_master=rank == 0, timeout=PATIENCE)
        except DistNetworkError as error:
            raise ValueError(unreachable(meeting.main_address, meeting.main_port, port, error)) from error
    return PrefixStore(f"lowerbound/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", served)
