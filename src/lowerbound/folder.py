"""The run folder: what its files are called, read and written.

    config.yaml    the resolved configuration       weights.ckpt   the best weights, by the model's monitor
    last.ckpt      everything, to go on from        metrics.csv    a row for each validation
    results.json   the final numbers                figures/       pictures
    overrides.yaml   the words of the command line
    evaluation.json  the evidence with error bars, if it was asked for
    report.html    all of that as one page        failure.txt    why there are no results, if the run failed

`config.yaml` and `weights.ckpt` are the model; the rest is what was seen on the way. Hidden are `.lock` (a process is at work here),
`.wandb.json` (the run's id at W&B), `.slurm_job` (its number) and `.hydra/` (what Hydra notes).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from errno import ENOSPC
from importlib.metadata import version
from pathlib import Path
from platform import processor, python_version
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from lowerbound.checkpoints import damage
from lowerbound.errors import STUMBLES
from lowerbound.kinds import KINDS, whole_number
from lowerbound.kinds import require as require_kind
from lowerbound.sizes import require_room

CONFIG, WEIGHTS, LAST, RESULTS, FIGURES = "config.yaml", "weights.ckpt", "last.ckpt", "results.json", "figures"
EVALUATION, REPORT, FAILURE = "evaluation.json", "report.html", "failure.txt"
CURVE, COLLAPSE = "importance_weighted_curve.png", "collapse.png"  # the pictures of an evaluation
SWEEP = "multirun.yaml"  # Hydra's own note, in a sweep's folder, of what it is over
STUDY = "optuna.db"  # the trials of a search, in its sweep's folder
OVERRIDES = Path(".hydra") / "overrides.yaml"  # of whatever command was last given for the folder
WORDS = "overrides.yaml"  # of the command that the folder is of
WANDBS = "wandb/*/logs/debug-core.log"  # a link
FORMAT = 1  # of checkpoints, one more whenever an older version could not read them
SHOWN = 3  # tensors in a message
INSTEAD = "Put the run's own in its place, or train in another folder."


def existing(folder: str | Path, name: str) -> Path:
    """The path of a file of a run folder.

    Raises:
        ValueError: it is not there.
    """
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{folder} is no complete run folder: {name} is missing. {_instead(Path(folder))}")
    return path


def _instead(folder: Path) -> str:
    if (folder / FAILURE).is_file():
        return f"The run has failed: {FAILURE} in it says why."
    inside = min(folder.glob(f"*/{WEIGHTS}"), default=None)
    return f"There are run folders in it, as {inside.parent}." if inside else "A run folder looks like outputs/<name>/<date_time>."


def require_own(folder: str | Path) -> None:
    """Refuse a folder in which a link leads out of it, at whatever depth: files are read and written in it, also by libraries.

    W&B's own to its log elsewhere stays: nothing is read or written through that.

    Raises:
        ValueError: as said; the message names the link.
    """
    root = os.path.realpath(folder)
    for place, folders, names in os.walk(root):  # which follows no link
        for path in (os.path.join(place, name) for name in (*folders, *names)):
            if not os.path.islink(path) or Path(path).match(WANDBS):
                continue
            if not Path(end := os.path.realpath(path)).is_relative_to(root):
                raise ValueError(f"{path} is a link to {end}, out of its folder: nothing is read or written through it")


def last_good(folder: Path) -> str:
    """A sentence that names the newest checkpoint of a run folder."""
    kept = [path for path in (folder / LAST, folder / WEIGHTS) if path.is_file()]
    newest = max(kept, key=lambda path: path.stat().st_mtime, default=None)
    return "There is no checkpoint yet" if newest is None else f"The last good checkpoint is {newest}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors and plain containers of a checkpoint, on the CPU; nothing in it can run code.

    Raises:
        ValueError: it is damaged, no checkpoint of a model, or of a newer version; the message names it.
    """
    if (found := damage(path)) is not None:
        raise ValueError(f"{path} is damaged, or no checkpoint: {found}\nPut a whole copy in its place, or train again.")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    require(checkpoint, ("state_dict",), str(path))
    for name in ("state_dict", "preparation"):
        require_kind(checkpoint.get(name, {}), {"*?": Tensor}, f"{path}: {name}")
    return checkpoint


def require(checkpoint: Any, keys: Sequence[str], what: str) -> None:
    """Refuse a checkpoint that this version does not understand.

    Raises:
        ValueError: it lacks a key, or a newer version has written it.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{what} is no checkpoint, but holds a {type(checkpoint).__name__}.\n{INSTEAD}")
    if missing := [key for key in keys if key not in checkpoint]:
        raise ValueError(f"{what} is no checkpoint of such a run: it has no {', '.join(missing)}.\n{INSTEAD}")
    require_kind(checkpoint, {"format?": int}, what)
    if (found := checkpoint.get("format", FORMAT)) > FORMAT:
        raise ValueError(
            f"{what} has format {found}, and lowerbound {version('lowerbound')} reads formats up to {FORMAT}.\n"
            "Install the lowerbound that wrote it, or a newer one: pip install --upgrade lowerbound"
        )


def require_fitting(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not those of a model whose own are `own`.

    Raises:
        ValueError: a tensor is missing, has another shape or type, or is not known; the message names the first ones.
    """
    found = [f"{key} is missing" for key in own if key not in state]
    found += [f"{key} is not known" for key in state if key not in own]
    common = [key for key in own if key in state and own[key].shape != state[key].shape]
    found += [f"{key} is {[*state[key].shape]} and not {[*own[key].shape]}" for key in common]
    found += [f"{key} is of {state[key].dtype}" for key in own if key in state and not _is_alike(own[key], state[key])]
    if found:
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"{what} does not hold the weights of this model: {', '.join(found[:SHOWN])}{more}.\n"
            "It is of another model, or the configuration beside it is: put the run's own back."
        )


def _is_alike(own: Tensor, other: Tensor) -> bool:
    """Whether one can stand for the other: floats may be finer or coarser, but are computed with."""
    return other.dtype in (torch.float32, torch.float64) if own.is_floating_point() else own.dtype == other.dtype


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the model that was evaluated: the averaged ones if the fit averaged, else the trained ones."""
    state: dict[str, Tensor] = checkpoint["state_dict"]
    averaged = any(key.startswith("average.module.") for key in state)
    prefix = "average.module." if averaged else "model."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`: whole, or not at all."""
    (folder / FAILURE).unlink(missing_ok=True)
    write_whole(folder / RESULTS, json.dumps(results, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, and move it there.

    Raises:
        OSError: it could not be written, and what was in its place still is; the error names it.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.unlink(missing_ok=True)  # what is there may be a pipe, or a second name of another file
        with beside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def append_whole(path: Path, text: str) -> None:
    """Add to the end of a file all of the text, or nothing.

    Raises:
        OSError: it could not be written; the error names the file.
    """
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(text.encode()) < len(text.encode()):
                raise OSError(ENOSPC, os.strerror(ENOSPC))  # which the rest would be told
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def read_text(path: Path, errors: str = "strict") -> str:
    """A file as text; `errors` says what becomes of what is no UTF-8.

    Raises:
        ValueError: there is such, and it is not replaced, or the file is larger than the memory.
    """
    require_room(path, path.stat().st_size)
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, of the kinds that a file of its name has; or None where there is no such file.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(read_text(path), parse_int=whole_number)
        require_kind(found, KINDS.get(path.name, {}), "its content")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain containers; interpolations in it stay text.

    Raises:
        ValueError: the file is damaged, or an alias in it stands for another part, which a few lines can let grow beyond all memory.
    """
    try:
        text = read_text(path)
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("there is an alias in it, which no run writes")
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except (*STUMBLES, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def read_config(path: Path) -> DictConfig:
    """A run's resolved configuration.

    Raises:
        ValueError: it is damaged, or holds an interpolation, which could read the environment; the message names the file.
    """
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no configuration")
    if "${" in str(found):
        raise ValueError(f"{path} holds an interpolation (${{...}}), which a run resolves before it writes: it is not followed")
    return OmegaConf.create(found)


def begin(folder: Path) -> None:
    """In the folder of an earlier run, take away what that has said of its end, and nothing else."""
    (folder / FAILURE).unlink(missing_ok=True)
    if (folder / CONFIG).is_file():
        for name in (RESULTS, EVALUATION, REPORT, f"{FIGURES}/{CURVE}", f"{FIGURES}/{COLLAPSE}"):
            (folder / name).unlink(missing_ok=True)


def read_overrides(folder: Path, name: str | Path = OVERRIDES) -> list[str] | None:
    """The ``key=value`` words of the command line that made a run folder, or None where they are not kept.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / name
    if not path.is_file():
        return None
    found = read_yaml(path) or []
    require_kind(found, [object], f"{path} is damaged: its content")
    return [str(word) for word in found]


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that numbers depend on."""
    names = ("lowerbound", "torch", "lightning", "hydra-core", "torchmetrics", "numpy")
    return {"python": python_version()} | {name: version(name) for name in names}


def device_name(device: torch.device) -> str:
    """What the device is called by its driver, or the processor and the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {processor()} ({torch.get_num_threads()} threads)".replace("  ", " ")


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
