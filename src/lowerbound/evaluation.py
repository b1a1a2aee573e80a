"""`lowerbound-evaluate`: the evidence of fitted models with error bars, and what their latent space holds, from their run folders.

Everything is of the test rows, in the units of the prepared data, and by generators of its own: evaluated twice, the numbers are the
same. What is found is printed, and kept in `evaluation.json` in the run's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from lowerbound import folder as files
from lowerbound.aggregate import active_units, decomposed_kl
from lowerbound.baselines import Baseline, baselines
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import whole
from lowerbound.evidence import Annealing, Estimate, estimates, is_annealed, sandwich
from lowerbound.instantiate import instantiate
from lowerbound.ladder_rows import markdown
from lowerbound.likelihoods import Bernoulli
from lowerbound.mixture import BernoulliComponents
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot
from lowerbound.randomness import own_generators
from lowerbound.run import Loaded, load

HEADINGS = ("log p(x)", "nats per datum", "standard error", "bits per dimension", "data", "effective samples", "seconds")


def evaluate(config: DictConfig) -> None:
    """Evaluate every run folder that is named.

    Raises:
        ValueError: a folder is none, the data are not there, or an option is out of its range.
    """
    annealing, device = Annealing(**config.annealing), device_of(config.device)
    for folder in run_folders(config.run):
        run = load(folder)
        run.model.to(device)
        data = data_of(run)
        x = data.part("test").x[: whole(config.num_data, "num_data") if config.num_data is not None else None]
        known = list(estimates(run.model, x, list(config.num_samples), annealing))
        others = beside(run, data, x) if config.baselines else []
        found: dict[str, Any] = {
            "evidence": [written(run, x, one) for one in known],
            "latent": latent(run.model, x, whole(config.num_codes, "num_codes")),
        }
        found["baselines"] = [written(run, x, one.estimate) | {"floored": one.floored} for one in others]
        found["verdict"] = verdict(known, others)
        found["simulated"] = sandwich(run.model, annealing)._asdict() if is_annealed(run.model, annealing) else {}
        found |= {"versions": files.versions(), "device": files.device_name(device), "git_commit": files.git_commit()}
        (folder / files.EVALUATION).write_text(json.dumps(found, indent=2) + "\n")
        print("\n".join(report(folder, found, known)))


def device_of(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is none here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {str(error).splitlines()[0]}") from error


def run_folders(named: str | ListConfig | Sequence[str]) -> list[Path]:
    """The run folders of a name, or of several: themselves, or, of a sweep, all finished ones inside.

    Raises:
        ValueError: there is none.
    """
    names = [named] if isinstance(named, str) else list(named)
    found = [one for name in names for one in _inside(Path(name))]
    return list(dict.fromkeys(found))


def _inside(folder: Path) -> list[Path]:
    if (folder / files.WEIGHTS).is_file():
        return [folder]
    if inner := sorted(path.parent for path in folder.glob(f"**/{files.WEIGHTS}")):
        return inner
    raise ValueError(f"run={folder}: there is no finished run ({files.WEIGHTS}) in it. A run folder looks like outputs/<name>/<date_time>.")


def data_of(run: Loaded) -> TensorDataModule:
    """The data of a run, prepared as they were there.

    Raises:
        ValueError: they are of the user's own kind, and do not say how they are split and prepared.
    """
    data = instantiate(run.config.data)
    if not isinstance(data, TensorDataModule) or run.prepare is None:
        raise ValueError(f"data={type(data).__name__} is no data module of this package, and has no test rows to evaluate on")
    data.load_state_dict({"prepare": dict(run.prepare.state_dict())})
    return data


def beside(run: Loaded, data: TensorDataModule, x: Tensor) -> list[Baseline]:
    """The simple models of the same data, if the model's likelihood is one of such data: else the two do not compare."""
    is_discrete = data.prepare.is_discrete
    if not run.model.is_bounded or isinstance(run.model.likelihood, (Bernoulli, BernoulliComponents)) != is_discrete:
        return []
    return list(baselines(data, x, run.model.latent_dim, is_discrete))


def verdict(known: Sequence[Estimate], others: Sequence[Baseline]) -> str | None:
    """Whether the best that is known of log p(x) of all rows is above the best of the simple models, and by how much."""
    sound = [other.estimate for other in others if other.floored is None]
    own = [one for one in known if one.num_data == max(one.num_data for one in known)]
    if not own or not sound:
        return None
    best, rival = max(own, key=lambda one: one.mean), max(sound, key=lambda one: one.mean)
    gain = best.mean - rival.mean
    side = "above" if gain > 0 else "BELOW"
    return f"{best.quantity} lies {abs(gain):.3f} nats {side} the best simple model, {rival.quantity}"


def written(run: Loaded, x: Tensor, one: Estimate) -> dict[str, Any]:
    """An estimate for the file, with its bits per dimension of the original data, where they are complete and the estimate is of them."""
    own = x[: one.num_data]
    bits = None
    if run.prepare is not None and not own.isnan().any():
        volume = run.prepare.log_jacobian(own).mean().item()
        bits = -(one.mean + volume) / (x.shape[1] * log(2))
    return asdict(one) | {"bits_per_dimension": bits, "warning": one.warning}


@torch.no_grad()
def latent(model: LatentVariableModel, x: Tensor, num_codes: int) -> dict[str, Any]:
    """What z holds of at most `num_codes` rows, drawn once and for all: active units and the parts of the KL, nats per datum."""
    if not model.is_bounded or isinstance(model.prior, OneHot):
        return {}
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:num_codes]
    x = x[chosen].to(next(model.parameters()))
    with own_generators(0):
        parts = decomposed_kl(model, x)
    terms = {name: value.item() for name, value in parts._asdict().items()}
    return {"num_data": len(x), "active_units": int(active_units(model, x).sum()), "latent_dim": model.latent_dim} | terms


def report(folder: Path, found: dict[str, Any], known: Sequence[Estimate]) -> Iterator[str]:
    """The tables in Markdown, and the warnings."""
    yield f"\n{folder}"
    if known:
        yield from markdown(HEADINGS, [_cells(row) for row in found["evidence"] + found["baselines"]], (0,))
    else:
        yield "a model with a flat prior has no p(x)"
    yield from (f"warning: {one.warning}" for one in known if one.warning)
    yield from (f"{row['quantity']}: {row['floored']}" for row in found["baselines"] if row["floored"])
    yield from [found["verdict"]] if found["verdict"] else []
    if simulated := found["simulated"]:
        yield "annealing both ways on data drawn from the model: {below:.3f} <= log p(x) <= {above:.3f}, ".format(**simulated) + (
            f"{simulated['gap']:.3f} apart (standard error {simulated['standard_error']:.3f})"
        )
    if space := found["latent"]:
        yield f"{space['active_units']} of {space['latent_dim']} latent dimensions active; of {space['num_data']} data, nats per datum:"
        yield "KL {kl:.3f} = mutual information {mutual_information:.3f} + total correlation {total_correlation:.3f} + ".format(**space) + (
            f"dimension-wise KL {space['dimension_wise_kl']:.3f}"
        )


def _cells(row: dict[str, Any]) -> list[str]:
    bits, effective = row["bits_per_dimension"], row["effective"]
    return [
        row["quantity"],
        f"{'≥ ' if row['is_bound'] else ''}{row['mean']:.3f}",
        f"{row['standard_error']:.3f}",
        "" if bits is None else f"{bits:.4f}",
        f"{row['num_data']:,}",
        "" if effective is None else f"{effective:.1f}",
        f"{row['seconds']:.1f}",
    ]
