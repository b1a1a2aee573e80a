"""PCA and factor analysis of a memory-mapped .npy file larger than a quarter of the machine's memory.

The rows are random, of 784 numbers, float32; the figures are the seconds of the fit, validation and test among them, and the most
memory that the process held at any time beyond what it held before, files not counted (RssAnon of /proc).

    python scripts/bench_memory.py [--share 0.3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import warnings
from pathlib import Path
from time import perf_counter

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import numpy as np
import torch

from lowerbound.data import Table
from lowerbound.folder import device_name

DIM, ROWS = 784, 10_000
MODELS = {"pca": (lowerbound.pca, lowerbound.ClosedFormFit), "factor_analysis": (lowerbound.factor_analysis, lowerbound.EMFit)}


def write(path: Path, size: float) -> int:
    """A file of about `size` bytes, block by block; its rows."""
    blocks = int(size / (4 * DIM * ROWS)) + 1
    table = np.lib.format.open_memmap(path, "w+", np.float32, (blocks * ROWS, DIM))
    generator = np.random.default_rng(0)
    for index in range(blocks):
        table[index * ROWS : (index + 1) * ROWS] = generator.standard_normal((ROWS, DIM), dtype=np.float32)
    table.flush()
    return len(table)


def anonymous() -> float:
    """The memory of this process that is no file's, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def peak(name: str, path: Path) -> tuple[float, float]:
    """The seconds of a fit, and the most memory that it took, in MB."""
    make, fit = MODELS[name]
    seen, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(anonymous())

    watcher, started = threading.Thread(target=watch), perf_counter()
    watcher.start()
    try:
        data = Table(path=str(path), dim=DIM, memory_map=True, val_fraction=0.01, test_fraction=0.01)
        lowerbound.learn(make(DIM, 16), fit, data, max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    finally:
        done.set()
        watcher.join()
    return perf_counter() - started, max(seen) - seen[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.3, help="the file's share of the machine's memory")
    parser.add_argument("--folder", default=None, help="where the file is written, and removed")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "rows.npy"
        count = write(path, options.share * memory)
        size = path.stat().st_size
        print(f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{count:,} x {DIM} float32: {size / 1e9:.1f} GB, {size / memory:.0%} of {memory / 1e9:.1f} GB of memory")
        for name in MODELS:
            seconds, most = peak(name, path)
            print(f"{name:>16}: {seconds:.0f} s, {most:.0f} MB at most")


if __name__ == "__main__":
    main()
