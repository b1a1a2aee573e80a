"""What ends a run before its end through no mistake in its command: no memory, no room on the disk, a process of it that died, or an
error that nobody foresaw. Each is answered in at most three lines: what and where, what is left, what would help.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOMEM, ENOSPC, EPERM, EROFS
from math import floor, log2
from os import sysconf
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from lowerbound.errors import FaultError, size
from lowerbound.folder import FAILURE, last_good

NO_ROOM = {EDQUOT, EFBIG, ENOSPC}
NO_WRITING = {EACCES, EIO, EPERM, EROFS}
NO_MEMORY = r"can't allocate memory|out of memory|bad_alloc|ALLOC_FAILED|Cannot allocate memory|Unable to allocate"
ASKED = r"allocate (\d[\d.]*) ?(bytes|[KMGTP]iB)"
DEAD = r"gloo.*(closed by peer|reset by peer|Broken pipe|[Tt]imed out)|NCCL.*(remote|[Tt]imed? ?out|abort)|Connection closed by remote peer"
UNITS = {"bytes": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)}}
BLOCK = ("objective.num_samples", "data.batch_size", "fit.steps_per_execution")  # its memory is proportional to each


def explained(error: Exception, config: DictConfig, folder: Path) -> FaultError:
    """The error as an answer of three lines; one that nobody foresaw has its traceback as a note."""
    where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    for cause in _causes(error):
        if _is_memory(cause):
            return FaultError(f"out of memory{_asked(cause)}{where}.\n{_smaller(config, cause)}\n{last_good(folder)}.")
        if isinstance(cause, OSError) and cause.errno in NO_ROOM | NO_WRITING:
            return FaultError(f"{cause.filename or folder}: {cause.strerror}{where}.\n{last_good(folder)}.\n{_other_place(cause, folder)}")
        if re.search(DEAD, str(cause), re.DOTALL):
            return FaultError(
                f"another process of this run has died, or does not answer{where}: what it said itself stands elsewhere in the output.\n"
                f"{last_good(folder)}.\nlowerbound-train resume={folder} goes on from there, with as many processes."
            )
    return _unforeseen(error, where, folder)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    has_said = isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error)) is not None
    return has_said or (isinstance(error, OSError) and error.errno == ENOMEM)


def _bytes_asked(error: BaseException) -> float | None:
    found = re.search(ASKED, str(error))
    return None if found is None else float(found[1]) * UNITS[found[2]]


def _asked(error: BaseException) -> str:
    asked, device = _bytes_asked(error), "GPU" if isinstance(error, torch.OutOfMemoryError) else "CPU"
    return f" on the {device}" if asked is None else f" on the {device}: {size(asked)} more were asked for"


def _smaller(config: DictConfig, error: BaseException) -> str:
    """What a block is made of, and which smaller value of each to try."""
    sizes = {key: OmegaConf.select(config, key) for key in BLOCK} if "objective" in config.get("fit", {}) else {}
    sizes = {key: value for key, value in sizes.items() if isinstance(value, int) and value > 1}
    if not sizes:
        return "A smaller latent_dim, num_components or network takes less, and data.storage=host keeps the data out of a GPU's memory."
    share = min(0.5, _memory() / (_bytes_asked(error) or 1))
    smaller = {key: 2 ** floor(log2(value * share)) for key, value in sizes.items() if value * share >= 1} or dict.fromkeys(sizes, 1)
    return f"A block is {_joined(sizes, ' with ')}: try {_joined(smaller, ' or ')}."


def _joined(values: dict[str, int], word: str) -> str:
    return word.join(f"{key}={value}" for key, value in values.items())


def _memory() -> float:
    """The bytes of the GPU, or of this machine."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return float(sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES"))


def _other_place(error: OSError, folder: Path) -> str:
    if error.errno in NO_ROOM:
        return f"Make room there, and lowerbound-train resume={folder} goes on exactly, or choose another place with hydra.run.dir=FOLDER."
    return "Choose a place that can be written, with hydra.run.dir=FOLDER, or let this one be written."


def _unforeseen(error: Exception, where: str, folder: Path) -> FaultError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    place = f"{Path(last.filename).parent.name}/{Path(last.filename).name}, line {last.lineno}"
    answer = FaultError(f"{what} ({place}{where})\n{last_good(folder)}.\nThe traceback is in {folder / FAILURE}; debug=true shows it.")
    answer.add_note("".join(traceback.format_exception(error)).strip())
    return answer


@final
class Entire(Callback):
    """Sees to it that every epoch comes to its end.

    Raises:
        FaultError: batches are missing, because a loader has fewer than its len(), or because a callback has raised a StopIteration,
            which Lightning takes for the end of the data.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether all batches were there, or something has asked for an earlier end."""
        has_ended = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if not (trainer.is_last_batch or has_ended):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            raise FaultError(
                f"epoch {trainer.current_epoch + 1} ended after {done} of {trainer.num_training_batches} blocks.\n"
                "Look for a loader whose len() is more than it has, or for next(...) in a callback of your own."
            )
