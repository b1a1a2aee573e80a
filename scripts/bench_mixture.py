"""Seconds per EM iteration of a mixture of Gaussians with full covariances: `EMFit` against scikit-learn's GaussianMixture.

The same rows, the same start, no pseudo-counts and no regularisation, so that both take the same steps. They take turns, an
iteration each, in one process; the figure is the ratio of the medians. For `EMFit` the clock runs from the start of an epoch to
its M-step, for scikit-learn around the two calls of its loop, `_e_step` and `_m_step`. The rows are drawn from a mixture whose
means lie about `--separation` standard deviations apart in each dimension: the farther apart, the fewer responsibilities count.

    OMP_NUM_THREADS=2 python scripts/bench_mixture.py [--precision float32] [--separation 0.2]
"""

from __future__ import annotations

import argparse
import warnings
from statistics import median
from time import perf_counter, sleep
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from lowerbound.data.tables import InMemory
from lowerbound.dense_covariances import Full
from lowerbound.folder import device_name
from lowerbound.mixture import Enumeration, GaussianComponents
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot

REST = 0.1  # seconds between turns: the threads of either library wait busily for more work, and would take the other's processor
FRACTIONS = ("val_fraction", "test_fraction")


def draw(options: argparse.Namespace, count: int) -> Tensor:
    """Rows ``[count, D]`` of a mixture with random means and covariances, float64."""
    size = (options.components, options.dim)
    means = options.separation * torch.randn(size, dtype=torch.float64)
    roots = torch.randn(*size, options.dim, dtype=torch.float64) / options.dim**0.5
    component = torch.randint(options.components, (count,)).sort().values  # the data module shuffles
    noise = torch.randn(count, options.dim, dtype=torch.float64)
    turned = [rows @ roots[k].T for k, rows in enumerate(noise.split(component.bincount(minlength=options.components).tolist()))]
    return means[component] + torch.cat(turned) + 0.3 * torch.randn(count, options.dim, dtype=torch.float64)


def mixture(x: Tensor, components: int, dtype: torch.dtype) -> LatentVariableModel:
    """A mixture without a prior on its parameters, at its start."""
    dim = x.shape[1]
    likelihood = GaussianComponents(components, dim, Full(components, dim), pseudo_counts=0.0)
    model = LatentVariableModel(OneHot(components, pseudo_counts=0.0), likelihood, Enumeration())
    model.initialize(x, len(x))
    return model.to(dtype)


class Reference:
    """scikit-learn's mixture at the start of a model."""

    def __init__(self, model: LatentVariableModel, x: Tensor) -> None:
        components = model.likelihood
        assert isinstance(components, GaussianComponents)
        matrices = components.covariance.matrices.detach().double()
        self.x = x.numpy()
        start = {"weights_init": model.prior().mean, "means_init": components.mean, "precisions_init": matrices.inverse()}
        arrays = {name: value.detach().numpy().astype(self.x.dtype) for name, value in start.items()}
        self.mixture = GaussianMixture(len(components.mean), reg_covar=0, tol=0, max_iter=1, **arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one iteration does not converge
            self.mixture.fit(self.x)

    def iteration(self) -> tuple[float, float]:
        """The seconds of one iteration, and log p(x) per datum before it."""
        started = perf_counter()
        value, log_responsibilities = self.mixture._e_step(self.x)
        self.mixture._m_step(self.x, log_responsibilities)
        return perf_counter() - started, float(value)


class Turns(pl.Callback):
    """Before each epoch of the fit, an iteration of the reference."""

    def __init__(self, reference: Reference) -> None:
        self.reference, self.seconds, self.values = reference, {"theirs": [], "ours": []}, {"theirs": [], "ours": []}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        sleep(REST)
        seconds, value = self.reference.iteration()
        self.seconds["theirs"].append(seconds)
        self.values["theirs"].append(value)
        sleep(REST)
        self.started = perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds["ours"].append(perf_counter() - self.started)
        self.values["ours"].append(float(trainer.callback_metrics["log_evidence"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--separation", type=float, default=1.0)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--precision", nargs="+", default=["float64", "float32"], choices=["float64", "float32"])
    options = parser.parse_args()
    print(f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}")
    for precision in options.precision:
        torch.manual_seed(0)
        dtype = getattr(torch, precision)
        held_out = options.rows // 50  # for the validation and the test that a data module must have
        data = InMemory(
            draw(options, options.rows + 2 * held_out).to(dtype), **dict.fromkeys(FRACTIONS, held_out / (options.rows + 2 * held_out))
        )
        x = data.part("train").x.to(dtype)
        model = mixture(x[:10_000], options.components, dtype)
        turns = Turns(Reference(model, x))
        trainer = pl.Trainer(
            accelerator="cpu",
            precision="64-true" if dtype == torch.float64 else "32-true",
            max_epochs=options.iterations,
            check_val_every_n_epoch=options.iterations,
            callbacks=[turns],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        fit = lowerbound.EMFit(model, tolerance=0.0, start=None)
        trainer.fit(fit, datamodule=data)
        ours, theirs = (median(turns.seconds[name][1:]) for name in ("ours", "theirs"))  # the first iteration warms up
        print(f"{precision}: EMFit {ours:.3f} s, scikit-learn {theirs:.3f} s an iteration, ratio {theirs / ours:.2f}")
        print(f"         log p(x) per datum at the last: {turns.values['ours'][-1]:.6f} and {turns.values['theirs'][-1]:.6f} nats")


if __name__ == "__main__":
    main()
