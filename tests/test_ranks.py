"""Law 6 over ranks, with real processes: two ranks of half the batch are one rank of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import worker_of_ranks
from processes import two_ranks


@pytest.fixture(scope="module", params=[8, 12])
def results(
    request: pytest.FixtureRequest, processes: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """37 training rows in global batches of 8: the last has 5, of which the ranks get 3 and 2; of 12: it has 1, and one rank gets none."""
    folder = tmp_path_factory.mktemp("ranks")
    worker_of_ranks.main(folder, 1, request.param)
    two_ranks(processes, worker_of_ranks.__file__, folder, 2, request.param)
    alone, *both = (torch.load(folder / f"rank_{name}.pt", weights_only=True) for name in ("0_of_1", "0_of_2", "1_of_2"))
    return alone, both


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
