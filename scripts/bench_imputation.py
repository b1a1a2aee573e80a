"""Hidden entries of digits, filled in: the models of this package beside scikit-learn's imputers, on the same rows with the same holes.

Everyone learns from the training rows and fills in the test rows; the error is the root mean square over hidden entries, in the
units of the prepared data (pixels in [0, 1]). scikit-learn's imputers are at their default settings. Where a model has a number of
latent dimensions or components, it is the one with the lowest error on validation rows; seconds are those of learning that one.
The VAE is the mean of p(x | z) over 100 draws of q(z | x_observed).

    python scripts/bench_imputation.py [--fraction 0.3] [--block 0] [--only gaussian vae]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import torch
from lightning.pytorch import Trainer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  IterativeImputer is not there without it
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

from lowerbound.covariances import Diagonal
from lowerbound.data import Digits, Missing
from lowerbound.dense_covariances import Tied
from lowerbound.gradient import GradientFit
from lowerbound.likelihoods import Gaussian, SharedNoise
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MaskedMLP, MLPDecoder
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.priors import StandardNormal

EM = partial(lowerbound.EMFit, tolerance=1e-3)  # nats per datum
ADAM = partial(GradientFit, optimizer=partial(torch.optim.Adam, lr=1e-3))
PEERS = {"mean of each pixel": SimpleImputer, "IterativeImputer": IterativeImputer, "KNNImputer": KNNImputer}


class Way(NamedTuple):
    """A model of one size, the sizes to try, and how it learns."""

    make: Callable[[int], LatentVariableModel]
    sizes: tuple[int, ...]
    fit: Callable[[LatentVariableModel], Any]
    epochs: int


def vae(latent_dim: int) -> LatentVariableModel:
    """The command line's `model=vae network=masked_mlp`."""
    decoder = partial(MLPDecoder, inputs=latent_dim, sizes=[512])
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=Gaussian(decoder, latent_dim, 64, SharedNoise(64)),
        posterior=DiagonalGaussian(partial(MaskedMLP, inputs=64, sizes=[512]), latent_dim),
    )


WAYS = {
    "pca": Way(lambda size: lowerbound.pca(64, size), (4, 8, 12, 16), EM, 100),
    "ppca": Way(lambda size: lowerbound.ppca(64, size), (8, 16, 24), EM, 100),
    "factor_analysis": Way(lambda size: lowerbound.factor_analysis(64, size), (8, 16, 24, 32), EM, 100),
    "gaussian": Way(lambda _: lowerbound.gaussian(64), (1,), EM, 50),
    "mixture, diagonal": Way(lambda size: lowerbound.gaussian_mixture(64, size, Diagonal(size, 64)), (10, 20, 40), EM, 100),
    "mixture, tied": Way(lambda size: lowerbound.gaussian_mixture(64, size, Tied(size, 64)), (10,), EM, 50),
    "vae": Way(vae, (8, 16), ADAM, 200),
}


def error(filled: Any, x: Tensor, truth: Tensor) -> float:
    """Root mean square over what is missing in x."""
    return (torch.as_tensor(filled) - truth)[x.isnan()].double().square().mean().sqrt().item()


@torch.no_grad()
def filled(model: LatentVariableModel, x: Tensor) -> Tensor:
    """E[x_missing | x_observed], with the same draws every time."""
    torch.manual_seed(0)
    return torch.cat([model.impute(rows).mean for rows in x.split(250)])


def learnt(way: Way, size: int, missing: Missing) -> tuple[LatentVariableModel, float]:
    """A model of that size, and the seconds it took."""
    torch.manual_seed(0)
    model = way.make(size)
    started = perf_counter()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=way.epochs, limit_val_batches=0, **quiet)
    trainer.fit(way.fit(model), datamodule=Digits(missing=missing))
    return model.eval(), perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--block", type=float, default=0.0)
    parser.add_argument("--only", nargs="*", default=[*PEERS, *WAYS])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    missing = Missing(arguments.fraction, arguments.block)
    data = Digits(missing=missing)
    train, val, test = (data.part(part).x for part in ("train", "val", "test"))
    val_truth, truth = data.unhidden("val"), data.unhidden("test")
    print(f"digits, {100 * test.isnan().double().mean():.0f}% of the entries hidden, {len(train)} training and {len(test)} test rows")
    print(f"{'':<28}{'RMSE':>8}{'seconds':>10}", flush=True)
    for name in (name for name in PEERS if name in arguments.only):
        started = perf_counter()
        imputer = PEERS[name]().fit(train.numpy())
        seconds = perf_counter() - started
        print(f"{name:<28}{error(imputer.transform(test.numpy()), test, truth):>8.4f}{seconds:>10.1f}", flush=True)
    for name in (name for name in WAYS if name in arguments.only):
        way = WAYS[name]
        tried = [(size, *learnt(way, size, missing)) for size in way.sizes]
        size, model, seconds = min(tried, key=lambda one: error(filled(one[1], val), val, val_truth))
        label = f"{name} ({size})" if len(way.sizes) > 1 or size > 1 else name
        print(f"{label:<28}{error(filled(model, test), test, truth):>8.4f}{seconds:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
