"""`lowerbound-predict`: what a fitted model makes of rows, as a file: codes, reconstructions, log p(x), missing entries filled in, samples.

Rows are read, and reconstructions, filled-in rows and samples written, in the data's own units; log p(x) is in nats, of the prepared data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from torch import Tensor

from lowerbound.data.tables import Table
from lowerbound.errors import one, whole
from lowerbound.evaluation import data_of
from lowerbound.loaded import Loaded, load
from lowerbound.randomness import own_generators

SUFFIXES = (".npy", ".csv")


def predict(config: DictConfig) -> None:
    """Write the output that is asked for.

    Raises:
        ValueError: there is no such run, file or output, or the model does not have it.
    """
    run, count = load(one(config.run, "run"), config.trust), whole(config.num_samples, "num_samples")
    known = [*run.outputs(count), "sample"]
    if config.output not in known:
        raise ValueError(f"output={config.output} is none of {', '.join(known)}")
    path = Path(config.file or Path(config.run) / f"{config.output}.npy")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"file={path} is none of {', '.join(SUFFIXES)}")
    if config.output == "sample":
        with own_generators(0):
            found = run.sample(count)
    else:
        found = run.answered(config.output, prepared_rows(run, config.rows), count)
    written(found, path)
    print(f"{told(run, config.output, count)}: {' x '.join(map(str, found.shape))} numbers in {path}")


def told(run: Loaded, output: str, num_samples: int) -> str:
    """The output, and of log p(x) whether it is that or a bound."""
    known = "exact" if run.model.is_exact else f"a lower bound by {num_samples} samples of z"
    return f"log_prob, nats, {known}" if output == "log_prob" else output


def prepared_rows(run: Loaded, path: str | None) -> Tensor:
    """Rows of a file, prepared as those of the run were, with one draw that is the same every time; without a file its test rows.

    Raises:
        ValueError: the file cannot be read, or has other columns.
    """
    if path is None:
        return data_of(run).part("test").x
    try:
        raw = Table(path=str(path), dim=run.model.data_dim).read().train
    except ValueError as error:
        raise ValueError(str(error).splitlines()[0].replace("data.path", "rows")) from error
    return run.prepared(raw, f"rows={path}")


def written(found: Tensor, path: Path) -> None:
    """Save numbers ``[N]`` or ``[N, D]``; a row of a ``.csv`` is one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = found.detach().cpu().numpy()
    if path.suffix == ".npy":
        np.save(path, array, allow_pickle=False)
    else:
        np.savetxt(path, array, delimiter=",", fmt="%.9g")
