"""Factor analysis of 20,000 MNIST images plus noise N(0, 0.1^2), 16 factors, against scikit-learn's LAPACK solver.

Both in one process, taking turns; the figures are seconds and the log-likelihood per datum of the training rows in nats. EM runs
from the start of probabilistic PCA until it has reached scikit-learn's log-likelihood, to the fourth decimal place. "moments" is the
pass over the data, the start in closed form and the EM steps; "learn" all that a user waits for, with start=pca on half of the rows.

    python scripts/bench_factor_analysis.py --root DATA [--repeats 1] [--threads 2]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from functools import partial
from statistics import median
from time import perf_counter, sleep

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import numpy as np
import torch
from sklearn.decomposition import FactorAnalysis
from torchvision.datasets import MNIST

from lowerbound.data import InMemory
from lowerbound.em import EMFit
from lowerbound.folder import device_name
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.starts import FromPCA
from lowerbound.statistics import moments_of

ROWS, FACTORS, NOISE = 20_000, 16, 0.1
REST = 0.1  # seconds between turns: a library's threads wait busily for more work, and would take the other's processor


def rows(root: str) -> np.ndarray:
    """Images in [0, 1] plus noise, float64 ``[20000, 784]``."""
    pixels = MNIST(root, train=True).data[:ROWS].flatten(1).numpy() / 255
    return pixels + NOISE * np.random.default_rng(0).standard_normal(pixels.shape)


def by_sklearn(x: np.ndarray) -> tuple[float, int]:
    """Log-likelihood per datum and steps."""
    found = FactorAnalysis(FACTORS, svd_method="lapack").fit(x)
    return found.loglike_[-1] / len(x), found.n_iter_


def by_moments(x: np.ndarray, target: float) -> tuple[float, int]:
    model, start = lowerbound.factor_analysis(x.shape[1], FACTORS), lowerbound.ppca(x.shape[1], FACTORS)
    likelihood = model.likelihood
    assert isinstance(likelihood, LinearGaussian)
    assert isinstance(start.likelihood, LinearGaussian)
    with torch.no_grad():
        moments = moments_of(torch.from_numpy(x).split(EMFit(model).rows_per_chunk or 1))
        start.likelihood.solve(moments.spectrum(), start)
        likelihood.count_from(moments.mean.unsqueeze(0))
        likelihood.weight.copy_(start.likelihood.weight)
        likelihood.bias.copy_(moments.mean)
        likelihood.noise.maximize(moments.squares - moments.count * likelihood.weight.square().sum(1), moments.count)
        steps, expected = 0, likelihood.expected(moments, model)
        while (value := likelihood.terms(expected, model)[0].item()) < target - 5e-5 and steps < 10_000:
            likelihood.maximize(expected)
            steps, expected = steps + 1, likelihood.expected(moments, model)
    return value, steps


def by_learn(x: np.ndarray) -> tuple[float, int]:
    model = lowerbound.factor_analysis(x.shape[1], FACTORS)
    fits: list[EMFit] = []

    def fit(model: lowerbound.LatentVariableModel) -> EMFit:
        fits.append(EMFit(model, tolerance=1e-5, start=FromPCA()))
        return fits[0]

    data = InMemory(x, val_fraction=0.001, test_fraction=0.001)
    lowerbound.learn(model, partial(fit), data, max_epochs=200, accelerator="cpu", enable_progress_bar=False)
    with torch.no_grad():
        value = torch.cat([model.log_prob(part) for part in torch.from_numpy(x).split(2000)]).mean().item()
    return value, fits[0].clock.now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None, required=True, help="folder that holds MNIST")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    x = rows(options.root)
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, {options.threads} threads, {len(x):,} x {x.shape[1]} float64")
    seconds: dict[str, list[float]] = {"scikit-learn": [], "moments": [], "learn": []}
    found: dict[str, tuple[float, int]] = {}
    for _ in range(options.repeats):
        sleep(REST)
        started = perf_counter()
        found["scikit-learn"] = by_sklearn(x)
        seconds["scikit-learn"].append(perf_counter() - started)
        for _ in range(3):
            for name, way in (("moments", partial(by_moments, target=found["scikit-learn"][0])), ("learn", by_learn)):
                sleep(REST)
                started = perf_counter()
                found[name] = way(x)
                seconds[name].append(perf_counter() - started)
    base = median(seconds["scikit-learn"])
    for name, values in seconds.items():
        value, steps = found[name]
        times = base / median(values)
        print(f"{name:>14}: {median(values):7.3f} s ({times:.1f} times faster), {value:.4f} nats per datum, {steps} steps")


if __name__ == "__main__":
    main()
