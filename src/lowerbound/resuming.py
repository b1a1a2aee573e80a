"""What a run goes on from: all that Lightning does not keep, put into a checkpoint and taken back when training starts.

These are the optimizer step, the generators and running sums of every rank, the loader's place in the epoch, whether training had
ended, and how the data were prepared. Everything is a tensor or a plain container.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowerbound.data.batches import TensorBatches
from lowerbound.data.module import TensorDataModule
from lowerbound.folder import FORMAT, LAST, require, require_fitting
from lowerbound.randomness import process_states, set_process_states
from lowerbound.ranks import of_all
from lowerbound.schedules import Step

LIGHTNINGS = ("state_dict", "loops", "optimizer_states", "callbacks", "global_step", "epoch")
OURS = ("ranks", "clock", "has_ended", "seconds", "remarks")

if TYPE_CHECKING:
    from lowerbound.fit import Fit


def keep(fit: Fit, checkpoint: dict[str, Any]) -> None:
    """Put it into a checkpoint; all ranks together."""
    trainer = fit.trainer
    mine = {"generators": process_states(), "train_means": list(fit.train_means.sums()), "rows_seen": fit.rows_seen}
    checkpoint["format"] = FORMAT
    checkpoint["ranks"] = of_all(mine)
    checkpoint["clock"] = [fit.clock.now, fit.clock.total]
    checkpoint["has_ended"] = bool(trainer.should_stop)
    checkpoint["seconds"] = fit.seconds
    checkpoint["remarks"] = list(fit.remarks)
    if isinstance(loader := trainer.train_dataloader, TensorBatches):
        state = loader.state_dict()
        cut_short = trainer.is_last_batch and state["taken"]  # by trainer.limit_train_batches
        checkpoint["loader"] = {"epoch": state["epoch"] + 1, "taken": 0} if cut_short else state
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TensorDataModule):
        checkpoint["preparation"] = dict(data.prepare.state_dict())


def take(fit: Fit, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take back the optimizer step and the remarks; what `put_back` needs is returned.

    Raises:
        ValueError: the checkpoint is of another model, of a newer version or incomplete, or the run had another number of processes.
    """
    require(checkpoint, (*LIGHTNINGS, *OURS), LAST)
    require_fitting(fit.state_dict(), checkpoint["state_dict"], LAST)
    if len(checkpoint["ranks"]) != fit.trainer.world_size:
        raise ValueError(
            f"the checkpoint is of a run in {len(checkpoint['ranks'])} process(es), and there are {fit.trainer.world_size}:\n"
            "go on with as many as before"
        )
    fit.seconds_before = checkpoint["seconds"]
    fit.rows_seen = checkpoint["ranks"][fit.global_rank]["rows_seen"]
    fit.clock, fit.remarks = Step(*checkpoint["clock"]), list(checkpoint["remarks"])
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)  # it would hand out the old epoch again
    return {name: checkpoint[name] for name in ("ranks", "loader", "has_ended") if name in checkpoint}


def put_back(fit: Fit, kept: dict[str, Any]) -> None:
    """Go on from there: the loader, the running sums, and, last of all, the generators of this rank."""
    trainer, mine = fit.trainer, kept["ranks"][fit.global_rank]
    if isinstance(loader := trainer.train_dataloader, TensorBatches) and "loader" in kept:
        loader.load_state_dict(kept["loader"])
    total, count = mine["train_means"]
    fit.train_means.reset()
    if count:
        fit.train_means.update(total.to(fit.device), count)
    trainer.should_stop = kept["has_ended"]  # else a run that ended by itself would take another epoch
    set_process_states(mine["generators"])
