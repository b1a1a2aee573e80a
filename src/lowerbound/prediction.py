"""`lowerbound-predict`: what a fitted model makes of rows, as a file: codes, reconstructions, log p(x), missing entries filled in, samples.

Rows are read, and reconstructions, filled-in rows and samples written, in the data's own units; log p(x) is in nats, of the prepared data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from lowerbound.bounds import importance_weighted_bound
from lowerbound.data.tables import Table
from lowerbound.errors import one, whole
from lowerbound.evaluation import data_of
from lowerbound.randomness import own_generators
from lowerbound.run import Loaded, load

ROWS = 100  # at a time
SUFFIXES = (".npy", ".csv")


def predict(config: DictConfig) -> None:
    """Write the output that is asked for.

    Raises:
        ValueError: there is no such run, file or output, or the model does not have it.
    """
    run, count = load(one(config.run, "run"), config.trust), whole(config.num_samples, "num_samples")
    ways = outputs(run, count)
    if config.output not in ways and config.output != "sample":
        raise ValueError(f"output={config.output} is none of {', '.join([*ways, 'sample'])}")
    path = Path(config.file or Path(config.run) / f"{config.output}.npy")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"file={path} is none of {', '.join(SUFFIXES)}")
    with torch.no_grad(), own_generators(0):
        if config.output == "sample":
            found = original(run, run.model.sample(count))
        else:
            x = prepared_rows(run, config.rows).to(next(run.model.parameters()))
            found = torch.cat([ways[config.output](rows) for rows in x.split(ROWS)])
    written(found, path)
    print(f"{told(run, config.output, count)}: {' x '.join(map(str, found.shape))} numbers in {path}")


def told(run: Loaded, output: str, num_samples: int) -> str:
    """The output, and of log p(x) whether it is that or a bound."""
    known = "exact" if run.model.is_exact else f"a lower bound by {num_samples} samples of z"
    return f"log_prob, nats, {known}" if output == "log_prob" else output


def outputs(run: Loaded, num_samples: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What can be asked of prepared rows ``[n, D]``, by name; log p(x) is a bound by `num_samples` samples where it is not known."""
    model = run.model

    def log_prob(x: Tensor) -> Tensor:
        return model.log_prob(x) if model.is_exact else importance_weighted_bound(model, x, num_samples)

    return {
        "encode": model.encode,
        "reconstruct": lambda x: original(run, model.reconstruct(x)),
        "log_prob": log_prob,
        "impute": lambda x: original(run, model.impute(x).mean),
    }


def prepared_rows(run: Loaded, path: str | None) -> Tensor:
    """Rows of a file, prepared as those of the run were, with one draw that is the same every time; without a file its test rows.

    Raises:
        ValueError: the file cannot be read, or has other columns.
    """
    if path is None:
        return data_of(run).part("test").x
    dim = run.model.data_dim
    try:
        raw = Table(path=str(path), dim=dim).read().train
    except ValueError as error:
        raise ValueError(str(error).splitlines()[0].replace("data.path", "rows")) from error
    if raw.shape[1] != dim:
        raise ValueError(f"rows={path} has {raw.shape[1]} columns, and the model of run={run.config.name} has {dim}")
    if run.prepare is None:
        return raw
    try:
        run.prepare.check(raw)
    except ValueError as error:
        raise ValueError(f"rows={path}: {str(error).splitlines()[0]}, as those of the run are") from error
    return run.prepare(raw, torch.Generator().manual_seed(0))


def original(run: Loaded, y: Tensor) -> Tensor:
    """Prepared rows in the data's own units."""
    return y if run.prepare is None else run.prepare.inverse(y)


def written(found: Tensor, path: Path) -> None:
    """Save numbers ``[N]`` or ``[N, D]``; a row of a ``.csv`` is one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = found.detach().cpu().numpy()
    if path.suffix == ".npy":
        np.save(path, array, allow_pickle=False)
    else:
        np.savetxt(path, array, delimiter=",", fmt="%.9g")
