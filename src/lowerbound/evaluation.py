"""`lowerbound-evaluate`: the evidence of fitted models with error bars, and what their latent space holds, from their run folders.

Everything is of the test rows, in the units of the prepared data, and by generators of its own: evaluated twice, the numbers are the
same. What is found is printed, and kept in `evaluation.json` in the run's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from lowerbound import folder as files
from lowerbound.baselines import Baseline, baselines
from lowerbound.data.module import TensorDataModule
from lowerbound.devices import is_first
from lowerbound.distributions import kl_per_dimension
from lowerbound.errors import reading, whole
from lowerbound.evidence import ROWS, Annealing, Estimate, estimates, is_annealed, sandwich
from lowerbound.latent_plots import collapse_panel, importance_weighted_curve
from lowerbound.latent_space import has_units, latent_space, sentences, units_of
from lowerbound.likelihoods import Bernoulli
from lowerbound.loaded import Loaded, load
from lowerbound.metrics import Units
from lowerbound.mixture import BernoulliComponents
from lowerbound.model import LatentVariableModel
from lowerbound.plots import save
from lowerbound.ranks import place, processes
from lowerbound.report import write_report
from lowerbound.runs import beta_at_the_end, read_runs
from lowerbound.sweep_report import summarize
from lowerbound.trust import safe_instantiate
from lowerbound.wording import EVIDENCE, evidence_cells, markdown, say

NO_EVIDENCE = "A model with a flat prior has no p(x): there is no evidence to set beside others"


def evaluate(config: DictConfig) -> None:
    """Evaluate every run folder that is named; under torchrun the rows are shared out among its processes.

    Raises:
        ValueError: a folder is none, the data are not there, or an option is out of its range.
    """
    annealing, folders = Annealing(**config.annealing), run_folders(config.run)
    whole(config.num_codes, "num_codes", least=2)
    numbers(config.num_samples)  # before anything is learnt
    device = device_of(config.device)
    # Learnt before the processes are a group, in which they would learn together.
    others = rivals(folders, config) if config.baselines and is_first() else {}
    with processes(device) as own:
        for folder in folders:
            run = load(folder, config.trust)
            run.model.to(own)
            found = evaluated(run, folder, config, annealing, others.get(folder, []))
            if is_first():
                files.write_whole(folder / files.EVALUATION, json.dumps(found, indent=2) + "\n")
                write_report(folder)
                say(report(folder, found))
    for sweep in sweeps(config.run) if is_first() else []:
        *_, renewed = summarize(sweep)
        say(["", renewed])


def evaluated(run: Loaded, folder: Path, config: DictConfig, annealing: Annealing, others: Sequence[Baseline]) -> dict[str, Any]:
    """What is found of a run, as it stands in evaluation.json, and its pictures."""
    data, model, beta = data_of(run), run.model, beta_at_the_end(run.config.get("objective") or {})
    x = test_rows(data, config).to(next(model.parameters()))
    known, floored = list(estimates(model, x, numbers(config.num_samples), annealing)), model.likelihood.floored()
    simulated = sandwich(model, annealing)._asdict() if is_annealed(model, annealing) else {}
    units = units_of(model, x) if has_units(model) else None
    space = latent_space(model, data, x, units, beta, config.num_codes)
    if is_first():
        draw(folder / files.FIGURES, model, x, known, units)
    return {
        "evidence": [written(run, x, one) for one in known],
        "baselines": [written(run, x, one.estimate) | {"floored": one.floored} for one in others],
        "verdict": verdict(known, others, floored),
        "warnings": warnings(known, others, floored),
        "simulated": simulated,
        "latent": space,
        "sentences": [*([] if model.is_bounded else [NO_EVIDENCE]), *told(simulated), *sentences(space)],
        "versions": files.versions(),
        "device": files.device_name(x.device),
        "processes": place()[1],
        "git_commit": files.git_commit(),
    }


def numbers(num_samples: Any) -> list[int]:
    """One number of samples or several.

    Raises:
        ValueError: one of them is none.
    """
    return [whole(one, "num_samples") for one in (num_samples if OmegaConf.is_list(num_samples) else [num_samples])]


def draw(folder: Path, model: LatentVariableModel, x: Tensor, known: Sequence[Estimate], units: Units | None) -> None:
    """The pictures of an evaluation: the bound against its number of samples, and which latent dimensions are used."""
    folder.mkdir(exist_ok=True)
    bounds = [one for one in known if one.quantity.startswith("IWAE") and one.num_data == len(x)]
    if len(bounds) > 1:
        others = {one.quantity: (one.mean, one.standard_error) for one in known if one.num_data == len(x) and one not in bounds}
        counts = [int(one.quantity.removeprefix("IWAE-")) for one in bounds]
        figure = importance_weighted_curve(counts, [one.mean for one in bounds], [one.standard_error for one in bounds], others)
        save(figure, folder / files.CURVE)
    if units is not None:
        with suppress(ValueError):  # posteriors that do not factorise have no KL of a dimension
            kl = torch.cat([kl_per_dimension(model.posterior(rows), model.prior()) for rows in x.split(ROWS)])
            save(collapse_panel(kl, units.mean_variance, units.posterior_variance), folder / files.COLLAPSE)


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


def sweeps(named: str | ListConfig | Sequence[str]) -> list[Path]:
    """Those of the names that are folders of sweeps, whose reports show what was evaluated."""
    folders = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    return [folder for folder in folders if not (folder / files.WEIGHTS).is_file() and read_runs(folder)]


def _inside(folder: Path) -> list[Path]:
    if (folder / files.WEIGHTS).is_file():
        return [folder]
    if inner := sorted(path.parent for path in folder.glob(f"**/{files.WEIGHTS}")):
        return inner
    raise ValueError(f"run={folder}: there is no finished run ({files.WEIGHTS}) in it. A run folder looks like outputs/<name>/<date_time>.")


def data_of(run: Loaded) -> TensorDataModule:
    """The data of a run, prepared as they were there; they are read where they are, and not fetched: a folder may name any place.

    Raises:
        ValueError: they are of the user's own kind, and do not say how they are split and prepared, or the configuration is damaged.
    """
    with reading(f"data of {files.CONFIG}"):
        data = safe_instantiate(run.config, "data", run.trust)
    if not isinstance(data, TensorDataModule) or run.prepare is None:
        raise ValueError(f"data={type(data).__name__} is no data module of this package, and has no test rows to evaluate on")
    if hasattr(data, "download"):
        data.download = False  # pyright: ignore[reportAttributeAccessIssue] some have it
    data.load_state_dict({"prepare": dict(run.prepare.state_dict())})
    return data


def test_rows(data: TensorDataModule, config: DictConfig) -> Tensor:
    """Those that are asked for, ``[N, D]``."""
    return data.part("test", None if config.num_data is None else whole(config.num_data, "num_data", least=2)).x


def rivals(folders: Sequence[Path], config: DictConfig) -> dict[Path, list[Baseline]]:
    """The simple models beside each run; runs on the same data with the same seed, as those of a sweep over beta, share theirs."""
    known: dict[str, list[Baseline]] = {}
    found: dict[Path, list[Baseline]] = {}
    for folder in folders:
        run = load(folder, config.trust)
        key = f"{run.model.latent_dim} {type(run.model.likelihood).__name__} {run.model.is_bounded} {OmegaConf.to_yaml(run.config.data)}"
        if key not in known:
            known[key] = beside(run, config)
        found[folder] = known[key]
    return found


def beside(run: Loaded, config: DictConfig) -> list[Baseline]:
    """The simple models of the same data, if the model's likelihood is one of such data: else the two do not compare."""
    data = data_of(run)
    is_discrete = data.prepare.is_discrete
    if not run.model.is_bounded or isinstance(run.model.likelihood, (Bernoulli, BernoulliComponents)) != is_discrete:
        return []
    return list(baselines(data, test_rows(data, config), run.model.latent_dim, is_discrete))


def warnings(known: Sequence[Estimate], others: Sequence[Baseline], floored: str | None) -> list[str]:
    """Which numbers rest on too little, or on a variance floor alone; each once."""
    at_floor = [f"{other.estimate.quantity}: {other.floored}" for other in others if other.floored]
    return list(dict.fromkeys([*([floored] if floored else []), *(one.warning for one in known if one.warning), *at_floor]))


def verdict(known: Sequence[Estimate], others: Sequence[Baseline], floored: str | None = None) -> str | None:
    """Whether what is known of log p(x) of all rows, best exactly, is above the best of the simple models, and by how much.

    None without a rival, and for a model that is `floored`: its variance floor alone limits its density.
    """
    sound = [other.estimate for other in others if other.floored is None]
    own = [one for one in known if one.num_data == max(one.num_data for one in known)]
    if not own or not sound or floored:
        return None
    best, rival = max(own, key=lambda one: (not one.is_bound, one.mean)), max(sound, key=lambda one: one.mean)
    gain = best.mean - rival.mean
    side = "above" if gain > 0 else "BELOW"
    return f"log p(x) ({best.quantity}) lies {abs(gain):.3f} nats {side} the best simple model, {rival.quantity}"


def written(run: Loaded, x: Tensor, one: Estimate) -> dict[str, Any]:
    """An estimate for the file, with its bits per dimension of the original data, where they are complete and the estimate is of them."""
    own = x[: one.num_data]
    bits = None
    if run.prepare is not None and not own.isnan().any():
        volume = run.prepare.log_jacobian(own).mean().item()
        bits = -(one.mean + volume) / (x.shape[1] * log(2))
    return asdict(one) | {"bits_per_dimension": bits, "warning": one.warning}


def told(simulated: dict[str, float]) -> Iterator[str]:
    """What annealing both ways found, in words."""
    if simulated:
        yield "Annealing both ways on data drawn from the model: {below:.3f} ≤ log p(x) ≤ {above:.3f}, ".format(**simulated) + (
            f"{simulated['gap']:.3f} apart (standard error {simulated['standard_error']:.3f})"
        )


def report(folder: Path, found: dict[str, Any]) -> Iterator[str]:
    """The table in Markdown, and what there is to say."""
    yield from ["", str(folder)]
    rows = [evidence_cells(row) for row in found["evidence"] + found["baselines"]]
    yield from markdown(EVIDENCE, rows, (0,)) if rows else []
    yield from (f"warning: {sentence}" for sentence in found["warnings"])
    yield from [found["verdict"]] if found["verdict"] else []
    yield from found["sentences"]
    yield f"report: {Path(os.path.relpath(folder)) / files.REPORT}"
