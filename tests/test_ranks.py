"""Law 6 over ranks, with real processes: two ranks of half the batch are one rank of the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "worker_of_ranks.py"


def launch(folder: Path, ranks: int, global_batch: int) -> list[dict[str, Any]]:
    """The results of every rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, str(WORKER), str(folder), str(ranks), str(global_batch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, check=True, env=environment, timeout=120, capture_output=True)
    return [torch.load(folder / f"rank_{rank}_of_{ranks}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[8, 12])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """37 training rows in global batches of 8: the last has 5, of which the ranks get 3 and 2; of 12: it has 1, and one rank gets none."""
    folder = tmp_path_factory.mktemp("ranks")
    (alone,) = launch(folder, 1, request.param)
    return alone, launch(folder, 2, request.param)


def test_two_ranks_learn_what_one_learns(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """To float32: the sums are taken in another order."""
    alone, (first, _) = results
    assert alone["steps"] == first["steps"] == alone["total"] == first["total"]
    assert alone["steps"] in (20, 16), "4 epochs of 5 batches of 8, or of 4 of 12"
    for name, value in alone["state"].items():
        torch.testing.assert_close(first["state"][name], value, atol=1e-6, rtol=1e-5)


def test_two_ranks_have_the_gradients_of_one(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """Those of the last step, whose batch is the uneven one."""
    alone, both = results
    assert max(gradient.abs().max().item() for gradient in alone["gradients"].values()) > 0.01
    for rank in both:
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], gradient, atol=1e-6, rtol=1e-5)


def test_the_ranks_stay_equal_to_the_last_bit(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    _, (first, second) = results
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())


def test_metrics_are_sums_over_ranks_and_right_for_uneven_counts(results: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, both = results
    for rank in both:
        for key in ("train/reconstruction", "val/reconstruction", "test/reconstruction", "test/loss"):
            assert rank["metrics"][key] == pytest.approx(alone["metrics"][key], rel=1e-6), key
