"""The ladder, `lowerbound-ladder`: every rung on the same rows, each beside its exact answer, in one table and one figure.

Densities of real numbers and probabilities of bits have a table each, and no ranking in common. Real numbers are centred, which
changes no density. What is compared with an exact answer is compared on training data, where that answer is a maximum; ranks are
those of test data. A fit at its variance floor is marked, and neither ranked nor compared: its density is what the floor allows.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lowerbound import folder as files
from lowerbound import ladder_plots, plots
from lowerbound.answers import Truth, truth_of, truth_of_bits
from lowerbound.data.module import PARTS, TensorDataModule
from lowerbound.identities import Collapse
from lowerbound.instantiate import instantiate
from lowerbound.ladder_checks import Check, checks_of, linear_vae_checks
from lowerbound.ladder_linear_vae import Seen, Watch, collapses
from lowerbound.ladder_rows import Row, log_probs, ranked, rows_of, small, table
from lowerbound.rungs import Prepared, Rung, Sizes, climb, densities, probabilities
from lowerbound.wording import markdown


@dataclass(frozen=True)
class Course:
    """What all rungs of a table are fitted to, how large and on what machine, and what they must arrive at."""

    data: Prepared
    truth: Truth
    sizes: Sizes
    how: dict[str, Any]
    device: torch.device


@dataclass(frozen=True)
class Ladder:
    """All that was found. Data that are no integers have no probabilities."""

    densities: list[Row]
    probabilities: list[Row]
    checks: list[Check]
    seen: list[Seen]
    collapses: list[Collapse]
    eigenvalues: list[float]


def climb_and_tell(config: DictConfig) -> None:
    """Climb, print, and save into the run's folder; exit with code 1 if something misses its exact answer."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    found = climb_all(config)
    lines = report(found)
    print("\n".join(["", *lines]))
    save(found, lines, config, folder)
    print(f"\ntables and figure: {folder}")
    missed = [check for check in found.checks if not check.holds]
    for check in missed:
        print(f"missed: {check.what}: {small(check.value)} {check.unit}, allowed {check.tolerance:g}", file=sys.stderr)
    if missed:
        raise SystemExit(1)


def climb_all(config: DictConfig) -> Ladder:
    """Fit every rung.

    Raises:
        ValueError: the data, the sizes and the machine do not fit each other.
    """
    real, bits = courses(config)
    eigenvalues, train = real.truth.eigenvalues, real.data.parts["train"]
    watch = Watch(train)
    rows, checks = climbed(densities(real.data.dim, real.sizes), real, watch)
    fixed = collapses(train.to(real.device), eigenvalues, real.sizes.latent_dim, config.seed)
    checks += linear_vae_checks(watch.seen, fixed)
    others, more = ([], []) if bits is None else climbed(probabilities(bits.data.dim, bits.sizes), bits)
    return Ladder(ranked(rows), ranked(others), checks + more, watch.seen, fixed, eigenvalues.tolist())


def courses(config: DictConfig) -> tuple[Course, Course | None]:
    """Of real numbers, and of bits, if the data are integers.

    Raises:
        ValueError: the data, the sizes and the machine do not fit each other.
    """
    sizes = Sizes(config.latent_dim, config.num_components, config.num_samples, config.steps)
    how = {"seed": config.seed, "accelerator": config.accelerator, "precision": config.precision, "devices": 1}
    device, real, bits = device_of(config), prepared(config), prepared_bits(config)
    if sizes.latent_dim >= real.dim:
        raise ValueError(f"latent_dim={sizes.latent_dim} must be below data.dim={real.dim}: set latent_dim")
    course = Course(real, truth_of(real.parts["train"], sizes.latent_dim), sizes, how, device)
    return course, None if bits is None else Course(bits, truth_of_bits(bits.parts["train"]), sizes, how, device)


def device_of(config: DictConfig) -> torch.device:
    """Where models are learnt and measured.

    Raises:
        ValueError: there is no such accelerator, or the precision is none that exact answers can be compared in.
    """
    if config.precision not in ("32-true", "64-true"):
        raise ValueError(f"precision={config.precision} is none of 32-true, 64-true")
    try:
        return Trainer(accelerator=config.accelerator, devices=1, logger=False, enable_checkpointing=False).strategy.root_device
    except MisconfigurationException as error:
        raise ValueError(f"accelerator={config.accelerator}: {error}") from error


def prepared(config: DictConfig) -> Prepared:
    """The data as real numbers, integers dequantized, less the mean of the training rows."""
    is_integer = OmegaConf.select(config, "data.prepare.levels") is not None
    parts = parts_of(config, {"binarize": "none", "dequantize": is_integer})
    mean = parts["train"].mean(0)
    parts = {name: x - mean for name, x in parts.items()}
    return Prepared(parts=parts, dim=len(mean), batch_size=config.data.batch_size, seed=config.seed)


def prepared_bits(config: DictConfig) -> Prepared | None:
    """The data as bits, if they are integers: whether each is in the upper half of its range."""
    if OmegaConf.select(config, "data.prepare.levels") is None:
        return None
    parts = parts_of(config, {"binarize": "threshold", "dequantize": False, "standardize": False})
    return Prepared(parts=parts, dim=parts["train"].shape[1], batch_size=config.data.batch_size, seed=config.seed)


def parts_of(config: DictConfig, prepare: dict[str, Any]) -> dict[str, Tensor]:
    """Train, val and test ``[n, D]`` in float64 by the data module's fixed draw, prepared so.

    Raises:
        ValueError: entries are missing.
    """
    data = instantiate(OmegaConf.merge(config, {"data": {"prepare": prepare}}).data)
    assert isinstance(data, TensorDataModule)
    parts = {name: data.part(name).x.double() for name in PARTS}
    if any(x.isnan().any() for x in parts.values()):
        raise ValueError("the data have missing entries (NaN), and closed forms need all of them: the ladder takes complete data")
    return parts


def climbed(rungs: Sequence[Rung], course: Course, watch: Watch | None = None) -> tuple[list[Row], list[Check]]:
    """Learn and measure rungs, saying how long each took."""
    rows: list[Row] = []
    checks: list[Check] = []
    for rung in rungs:
        callbacks = [watch] if watch is not None and rung.name == "linear VAE" else []
        one = climb(rung, course.data, course.sizes.steps, callbacks=callbacks, **course.how)
        print(f"{rung.name}, {rung.way}: {one.seconds:.1f} s", flush=True)
        parts, model = course.data.parts, one.model.to(course.device).eval()
        known = {part: log_probs(model, parts[part], course.sizes.num_samples) for part in ("train", "test")}
        own = rows_of(one, parts, known, course.truth)
        rows += own
        degrees = rung.degrees if rung.degrees and course.truth.has_plane(model.latent_dim) else None
        checks += checks_of(own, model, parts["test"], known["test"], degrees)
    return rows, checks


def report(found: Ladder) -> list[str]:
    """The tables in Markdown."""
    lines = ["Densities of real numbers, nats per datum", "", *table(found.densities)]
    if found.probabilities:
        lines += ["", "Probabilities of bits, nats per datum", "", *table(found.probabilities)]
    checks = [[c.what, f"{small(c.value)} {c.unit}".rstrip(), f"{c.tolerance:g}", "" if c.holds else "missed"] for c in found.checks]
    return [*lines, "", "What must hold", "", *markdown(("", "off by", "allowed", ""), checks, left=(0, 3))]


def save(found: Ladder, lines: Sequence[str], config: DictConfig, folder: Path) -> None:
    """Write config.yaml, ladder.json, ladder.csv, ladder.md and ladder.png."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / files.CONFIG, resolve=True)
    (folder / "ladder.md").write_text("\n".join([*lines, ""]))
    rows = {"densities": found.densities, "probabilities": found.probabilities}
    plain = {name: [asdict(row) for row in own] for name, own in rows.items()}
    with (folder / "ladder.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["table", *(entry.name for entry in fields(Row))])
        writer.writeheader()
        writer.writerows({"table": name, **row} for name, own in plain.items() for row in own)
    others = {
        "checks": [check._asdict() | {"holds": check.holds} for check in found.checks],
        "identity": [seen._asdict() for seen in found.seen],
        "collapse": [one._asdict() | {"kl": one.kl.tolist(), "predicted": one.predicted.tolist()} for one in found.collapses],
        "versions": files.versions(),
        "git_commit": files.git_commit(),
    }
    (folder / "ladder.json").write_text(json.dumps(plain | others, indent=2) + "\n")
    plots.save(ladder_plots.ladder(found), folder / "ladder.png")
