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
from lowerbound.aggregate import Decomposition, active_units, decomposed_kl
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import whole
from lowerbound.evidence import Annealing, Estimate, estimates, is_annealed, sandwich
from lowerbound.instantiate import instantiate
from lowerbound.ladder_rows import markdown
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
    annealing = Annealing(**config.annealing)
    for folder in run_folders(config.run):
        run = load(folder)
        run.model.to(torch.device(config.device))
        x = test_rows(run)[: whole(config.num_data, "num_data") if config.num_data is not None else None]
        known = list(estimates(run.model, x, list(config.num_samples), annealing))
        found = {"evidence": [written(run, x, one) for one in known], "latent": latent(run.model, x, whole(config.num_codes, "num_codes"))}
        found["simulated"] = sandwich(run.model, annealing)._asdict() if is_annealed(run.model, annealing) else {}
        found |= {"versions": files.versions(), "device": files.device_name(torch.device(config.device)), "git_commit": files.git_commit()}
        (folder / files.EVALUATION).write_text(json.dumps(found, indent=2) + "\n")
        print("\n".join(report(folder, found, known)))


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


def test_rows(run: Loaded) -> Tensor:
    """The test rows ``[N, D]`` as the run prepared them.

    Raises:
        ValueError: the run's data do not say how they are split and prepared.
    """
    data = instantiate(run.config.data)
    if not isinstance(data, TensorDataModule) or run.prepare is None:
        raise ValueError(f"data={type(data).__name__} is no data module of this package, and has no test rows to evaluate on")
    data.load_state_dict({"prepare": dict(run.prepare.state_dict())})
    return data.part("test").x


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
        yield from markdown(
            HEADINGS, [_cells(one, row["bits_per_dimension"]) for one, row in zip(known, found["evidence"], strict=True)], (0,)
        )
    else:
        yield "a model with a flat prior has no p(x)"
    yield from (f"warning: {one.warning}" for one in known if one.warning)
    if simulated := found["simulated"]:
        yield "annealing both ways on data drawn from the model: {below:.3f} <= log p(x) <= {above:.3f}, ".format(**simulated) + (
            f"{simulated['gap']:.3f} apart (standard error {simulated['standard_error']:.3f})"
        )
    if space := found["latent"]:
        yield f"{space['active_units']} of {space['latent_dim']} latent dimensions active; of {space['num_data']} data, nats per datum:"
        parts = " + ".join(f"{name.replace('_', ' ')} {space[name]:.3f}" for name in Decomposition._fields[:3])
        yield f"KL {space['kl']:.3f} = {parts}"


def _cells(one: Estimate, bits: float | None) -> list[str]:
    return [
        one.quantity,
        f"{'≥ ' if one.is_bound else ''}{one.mean:.3f}",
        f"{one.standard_error:.3f}",
        "" if bits is None else f"{bits:.4f}",
        f"{one.num_data:,}",
        "" if one.effective is None else f"{one.effective:.1f}",
        f"{one.seconds:.1f}",
    ]
