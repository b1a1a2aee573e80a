"""Importance-weighted bounds: the same estimate however the samples are divided, and exactly as many as were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

import lowerbound
from lowerbound.bounds import importance_weighted_bound, importance_weighted_bounds

SAMPLES = [1, 10, 100, 1000]
TABLE = np.random.default_rng(0).normal(-50, 4, size=(1000, 3))  # log-weights


class Drawn:
    """A stand-in for a model that hands out the log-weights of a table, in order, and counts them."""

    def __init__(self) -> None:
        self.given = 0

    def log_weight(self, x: Tensor, num_samples: int) -> Tensor:
        self.given += num_samples
        return torch.from_numpy(TABLE[self.given - num_samples : self.given])


@pytest.mark.parametrize("chunk", [1, 7, 100, 333, 5000])
def test_the_samples_may_be_divided_in_any_way(chunk: int) -> None:
    model: Any = Drawn()
    found = importance_weighted_bounds(model, torch.zeros(3, 2), SAMPLES, chunk)
    assert model.given == SAMPLES[-1]
    for row, count in enumerate(SAMPLES):
        np.testing.assert_allclose(found.bound[row], logsumexp(TABLE[:count], 0) - np.log(count), rtol=0, atol=1e-12)
        weights = np.exp(TABLE[:count] + 50)
        np.testing.assert_allclose(found.effective[row], weights.sum(0) ** 2 / (weights**2).sum(0), rtol=1e-10)


@pytest.mark.parametrize("count", [1, 3, 100, 101])
def test_exactly_as_many_samples_as_asked_for(count: int) -> None:
    model: Any = Drawn()
    importance_weighted_bound(model, torch.zeros(3, 2), count)
    assert model.given == count


def test_one_sample_is_the_elbo_and_counts_as_one() -> None:
    model = lowerbound.vae(6, 2, sizes=(8,))
    x = torch.rand(20, 6)
    torch.manual_seed(0)
    found = importance_weighted_bounds(model, x, [1])
    torch.manual_seed(0)
    torch.testing.assert_close(found.bound[0], model.log_weight(x, 1)[0].double().detach())
    torch.testing.assert_close(found.effective[0], torch.ones(20, dtype=torch.float64))


def test_equal_weights_count_in_full() -> None:
    """Under the exact posterior every weight is p(x)."""
    model = lowerbound.ppca(6, 2)
    x = model.sample(5, noise=True).detach()
    found = importance_weighted_bounds(model, x, [50])
    torch.testing.assert_close(found.effective[0], torch.full((5,), 50.0, dtype=torch.float64))
    torch.testing.assert_close(found.bound[0], model.log_prob(x).detach())


@pytest.mark.parametrize("numbers", [[], [0], [10, 10], [10, 5]])
def test_numbers_of_samples_must_increase(numbers: list[int]) -> None:
    model: Any = Drawn()
    with pytest.raises(ValueError, match="must increase"):
        importance_weighted_bounds(model, torch.zeros(3, 2), numbers)
