"""PCA of MNIST with 32 components against scikit-learn's fastest solver, on float32 rows in memory.

The two take turns in one process; the figures are medians of seconds, and the largest relative error among the 32 eigenvalues
against those of the covariance in float64. "moments" is the pass over the data and the solution; "learn" is all that a user
waits for: checking the data, splitting them, the fit, validation and test.

    python scripts/bench_pca.py [--root DATA] [--repeats 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import numpy as np
import torch
from sklearn.decomposition import PCA
from torchvision.datasets import MNIST

from lowerbound.data import InMemory
from lowerbound.folder import device_name
from lowerbound.solve import ClosedFormFit
from lowerbound.statistics import moments_of

COMPONENTS = 32
REST = 0.1  # seconds between turns: a library's threads wait busily for more work, and would take the other's processor


def rows(root: str) -> np.ndarray:
    """60,000 images in [0, 1], float32 ``[60000, 784]``."""
    return (MNIST(root, train=True).data.flatten(1).numpy() / np.float32(255)).astype(np.float32)


def by_sklearn(x: np.ndarray) -> np.ndarray:
    pca = PCA(COMPONENTS, svd_solver="covariance_eigh").fit(x)
    return pca.explained_variance_.astype(np.float64) * (len(x) - 1) / len(x)  # it divides by n - 1


def by_moments(x: np.ndarray) -> np.ndarray:
    model = lowerbound.pca(x.shape[1], COMPONENTS)
    spectrum = moments_of(torch.from_numpy(x).split(ClosedFormFit(model).rows_per_chunk)).spectrum()
    model.likelihood.solve(spectrum, model)  # type: ignore[operator]
    return spectrum.variances[:COMPONENTS].numpy()


def by_learn(x: np.ndarray) -> np.ndarray:
    data = InMemory(x, val_fraction=0.001, test_fraction=0.001)
    model = lowerbound.pca(x.shape[1], COMPONENTS)
    lowerbound.learn(model, ClosedFormFit, data, max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return np.empty(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None, required=True, help="folder that holds MNIST")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    x = rows(options.root)
    exact = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    truth = np.linalg.eigvalsh(exact.T @ exact / len(x))[::-1][:COMPONENTS]
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {"scikit-learn": by_sklearn, "moments": by_moments, "learn": by_learn}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, float] = {}
    for _ in range(options.repeats + 1):
        for name, way in ways.items():
            sleep(REST)
            started = perf_counter()
            found = way(x)
            seconds[name].append(perf_counter() - started)
            errors[name] = float(np.abs(found / truth - 1).max()) if len(found) else float("nan")
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, {options.threads} threads, {len(x):,} x {x.shape[1]} float32")
    base = median(seconds["scikit-learn"][1:])
    for name, values in seconds.items():
        print(f"{name:>14}: {median(values[1:]):.3f} s, ratio {median(values[1:]) / base:.2f}, error of eigenvalues {errors[name]:.1e}")


if __name__ == "__main__":
    main()
