"""Command lines of the training put together by chance, and what such a line may end in."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from math import isfinite
from pathlib import Path
from traceback import format_exc
from typing import NamedTuple, TypeVar

import numpy as np
from hydra.core.global_hydra import GlobalHydra

from lowerbound import cli, preemption

T = TypeVar("T")
CONF = Path(__file__).parents[1] / "conf"
BRIEF = ("~callbacks.pictures", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
COMMANDS: dict[str, Callable[[], int]] = {
    "lowerbound-train": cli.main,
    "lowerbound-evaluate": cli.evaluate,
    "lowerbound-predict": cli.predict,
    "lowerbound-report": cli.report,
}


class Answer(NamedTuple):
    """What a command line ended in: its exit code (None: an exception that nobody caught), and what it wrote."""

    code: int | None
    out: str
    err: str


def answered(folder: Path, command: str, *words: str) -> Answer:
    """A command line in a folder, in this process, which is left as it was."""
    before, argv, handlers = os.getcwd(), sys.argv, list(logging.root.handlers)
    path, full, out, err = list(sys.path), os.environ.get("HYDRA_FULL_ERROR"), io.StringIO(), io.StringIO()
    os.chdir(folder)
    sys.argv = [command, *words]
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            code = _code(COMMANDS[command])
    finally:
        preemption.uninstall()
        GlobalHydra.instance().clear()
        sys.argv, sys.path, logging.root.handlers = argv, path, handlers
        os.environ.pop("HYDRA_FULL_ERROR", None) if full is None else os.environ.update(HYDRA_FULL_ERROR=full)
        os.chdir(before)
    return Answer(code, out.getvalue(), err.getvalue())


def _code(command: Callable[[], int]) -> int | None:
    try:
        return command()
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        print(format_exc(), file=sys.stderr)
        return None


def fault(answer: Answer, command: str = "lowerbound-train") -> str | None:
    """What is wrong with the answer to a line that does not fit, or None: a code, and at most three lines that begin with the command."""
    lines = answer.err.splitlines()
    if answer.code not in (1, 2):
        return f"exit code {answer.code}"
    if not lines or not lines[0].startswith(f"{command}: "):
        return "no message"
    if "The traceback is in " in answer.err:
        return f"an error that nobody foresaw: {lines[0]}"
    return f"{len(lines)} lines" if len(lines) > 3 else None


def outcome(answer: Answer, folder: Path) -> str:
    """``trained`` with finite terms, ``refused`` or ``diverged`` with a message, or else what is wrong."""
    if answer.code != 0:
        return fault(answer) or ("refused" if answer.code == 2 else "diverged")
    results = json.loads((folder / "results.json").read_text())
    terms = {key: value for key, value in results.items() if key.startswith(("val/", "test/"))}
    bad = [key for key, value in terms.items() if not isfinite(value)]
    return f"{', '.join(bad)} not finite" if bad or not terms else "trained"


def write_tables(folder: Path) -> None:
    """The small files that compositions are of."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(60, 16))
    holes = np.where(draws.random(x.shape) < 0.1, np.nan, x)
    tables = {"real": x, "bits": x > 0, "counts": draws.integers(0, 5, x.shape), "holes": holes, "few": x[:9], "flat": np.zeros_like(x)}
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table)


TABLES = ("real", "bits", "counts", "holes", "few", "flat")
DATA = (
    *(f"data=table data.path={name}.npy data.dim=16" for name in TABLES),
    "data=table data.path=real.npy data.dim=16 data.shape=[1,4,4]",
    "data=table data.path=counts.npy data.dim=16 data.prepare.levels=5 data.prepare.dequantize=true",
    "data=linear_gaussian data.num_data=50",
    "data=mixture data.num_data=50",
    "data=bernoulli_mixture data.num_data=50",
    "data=fashion_mnist data.root=nowhere data.download=false",
)
GROUPS = ("likelihood", "posterior", "prior", "network", "noise", "covariance", "objective", "fit", "beta", "start", "callbacks", "trainer")
VALUES = {
    "latent_dim": (1, 3, 15, 0, -1, 40, "two", "null", 1.5),
    "seed": (1, 4294967295, -1, "abc", 99999999999),
    "name": ("mine", "a/b", "null", "''"),
    "num_components": (1, 2, 0, 500, -3),
    "data.batch_size": (1, 7, 100000, 0, "many"),
    "data.eval_batch_size": (1, 0),
    "data.val_fraction": (0.3, 0, 0.9, -1, "half"),
    "data.test_fraction": (0.3, 0, 1),
    "data.dim": (16, 3, 0, -4, 2.5, "wide"),
    "data.shape": ("[2,8]", "[1,4,4]", 16, "[a]", "null"),
    "data.storage": ("host", "cloud"),
    "data.prepare.levels": (2, 5, 256, 1, -2, "few"),
    "data.prepare.dequantize": ("true", "maybe"),
    "data.prepare.standardize": ("true", 3),
    "data.prepare.binarize": ("threshold", "dynamic", "yes"),
    "data.missing.fraction": (0.2, 0.99, 1, "some"),
    "data.missing.block": (0.3, -1),
    "objective.beta": (0, 4, -1, "abc", "null", "nan"),
    "objective.beta.end": (2, -1),
    "objective.free_bits": (0.1, -1, "x"),
    "objective.num_samples": (3, 0, 1.5),
    "objective.kl": ("sampled", "exact"),
    "objective.penalty": (0.1, -1, "[1]"),
    "fit.optimizer.lr": (0, 0.1, 1e30, -1, "fast", "null", "nan"),
    "fit.optimizer._target_": ("torch.optim.SGD", "torch.optim.LBFGS", "torch.optim.Nobody", "lowerbound.nowhere"),
    "fit.optimizer": ("adam", "null"),
    "fit.scheduler": ("cosine", 3),
    "fit.clip": (1, 0, -1, "tight"),
    "fit.ema": (0.9, 1, 0, "slow"),
    "fit.steps_per_execution": (1, 3, 0, 2.5),
    "fit.tolerance": (0, -1),
    "fit.update": ("batch", "never"),
    "fit.e_step": ("sampled", "guess"),
    "fit.method": ("eigen", "svd", "magic"),
    "noise.scale": (1, 0, -1, 1e-30, "loud"),
    "noise.min_scale": (0.1, 0, 10),
    "covariance.min_scale": (0.1, 0, "x"),
    "likelihood.pseudo_counts": (0, 3, -1, "x"),
    "prior.num_components": (2, 0),
    "network.encoder.sizes": ("[4]", "[]", "[0]", 5, "[a]", "null"),
    "network.encoder.activation": ("tanh", "sine", "null"),
    "network.encoder.channels": ("[2]", "[0]", "[2,2,2,2,2,2,2]"),
    "trainer.max_epochs": (2, 0, 1.5, "abc"),
    "trainer.max_steps": (2, 0, -5, "x"),
    "trainer.precision": ("bf16-mixed", "64-true", "16-mixed", "8-bit", 32),
    "trainer.accelerator": ("gpu", "tpu", "auto", "abacus"),
    "trainer.devices": ("auto", 0, -3, "all", "[0,1,2,3]"),
    "trainer.check_val_every_n_epoch": (2, 0, "x"),
    "trainer.limit_train_batches": (1, 0, -1, 0.5, "x"),
    "trainer.limit_val_batches": (1, 0, -1),
    "trainer.max_time": ("00:00:01:00", "soon"),
    "trainer.deterministic": ("true", "perhaps"),
    "callbacks.best": ("null", 3),
    "callbacks.last.every_seconds": (0, -1, "x"),
    "callbacks.last.every_n_steps": (1, 0),
    "logger": ("null", "tensorbaord"),
    "debug": ("perhaps",),
    "fit.start": ("null", 3),
    "model.likelihood": (3, "null"),
    "data.prepare": ("null", 3),
    "data._target_": ("lowerbound.data.Digits", "builtins.dict", "nowhere.Data"),
    "lr": (3,),
    "+latent": (2,),
}


def composition(choose: Callable[[Sequence[T]], T]) -> list[str]:
    """The words of a line: data and a model, now and then another part of it, now and then a value that fits or does not."""

    def some(options: Sequence[T], shares: Sequence[int]) -> list[T]:
        return [choose(options) for _ in range(choose(shares))]  # pyright: ignore[reportArgumentType]

    model = choose(files("model"))  # pyright: ignore[reportArgumentType]
    words = [*BRIEF, *choose(DATA).split(), f"model={model}", "latent_dim=2"]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    words += ["network.encoder.sizes=[4]"] if model in ("vae", "autoencoder") else []
    words += [f"{group}={choose(files(group))}" for group in dict.fromkeys(some(GROUPS, (0, 0, 0, 1, 2)))]
    words += [f"{key}={choose(VALUES[key])}" for key in dict.fromkeys(some(tuple(VALUES), (0, 0, 1, 1, 2)))]
    return [word for word in words if word not in ("trainer=ddp", "trainer.devices=2")]


def files(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))
