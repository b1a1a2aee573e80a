"""Annealed importance sampling: its two bounds enclose an evidence that is known, and its steps leave a density as it is."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import lowerbound
from lowerbound.annealing import Path, annealed_bound, energy, reverse_annealed_bound, temperatures, transition, tuned
from lowerbound.bounds import quadrature_log_evidence
from lowerbound.model import LatentVariableModel

SIX = 6.0
NUM_DATA = 200


def linear() -> LatentVariableModel:
    torch.manual_seed(0)
    return lowerbound.ppca(8, 3)


def nonlinear() -> LatentVariableModel:
    """A VAE whose decoder bends: its posteriors are far from the prior, and from Gaussians."""
    torch.manual_seed(0)
    model = lowerbound.vae(12, 2, sizes=(16,))
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.mul_(2)
    return model


def simulated(model: LatentVariableModel) -> tuple[Tensor, Tensor]:
    """z ``[N, L]`` of the prior and x ``[N, D]`` given z: so z is an exact sample of p(z | x)."""
    torch.manual_seed(1)
    with torch.no_grad():
        z = model.prior().sample(torch.Size([NUM_DATA]))
        return z, model.likelihood(z).sample()


MODELS = {"linear": (linear, lambda model, x: model.log_prob(x)), "nonlinear": (nonlinear, quadrature_log_evidence)}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_lies_between_the_two_ways(name: str) -> None:
    """Law 4, within six standard errors over data; and the longer path closes the gap, which the shorter leaves open."""
    make, exact = MODELS[name]
    model = make()
    z, x = simulated(model)
    truth, gaps = exact(model, x).detach(), []
    for count in (20, 200):
        path = tuned(model, x, count, num_chains=4, leapfrogs=5)
        below, above = annealed_bound(model, x, path, 8) - truth, reverse_annealed_bound(model, x, z, path, 8) - truth
        for mean, error in (mean_and_error(below), mean_and_error(-above)):
            assert mean < SIX * error
        gaps.append((above - below).mean().item())
    assert 0 < gaps[1] < gaps[0] / 3
    assert gaps[1] < 1.5, "nats"


def test_both_ways_are_unbiased_however_rough_the_path() -> None:
    """E w = p(x) and E 1/w = 1 / p(x), by one chain for each of many copies of a datum and a coarse path."""
    model = linear()
    torch.manual_seed(2)
    x = model.sample(1, noise=True).detach().expand(40_000, -1)
    truth, z = model.log_prob(x).detach(), model.posterior(x).sample()
    path = Path(temperatures(20), torch.full((20,), 0.4), 3)
    with torch.no_grad():
        forward, reverse = annealed_bound(model, x, path, 1), reverse_annealed_bound(model, x, z, path, 1)
    for log_ratio in (forward - truth, truth - reverse):
        mean, error = mean_and_error(log_ratio.exp())
        assert abs(mean - 1) < SIX * error
        assert error < 0.05, "else nothing is tested"


@pytest.mark.parametrize("size", [0.3, 0.9])
def test_a_transition_leaves_the_density_as_it_is(size: float) -> None:
    """Chains that begin as samples of p(z) p(x | z)^beta, a Gaussian here, stay such, whatever the step size."""
    model = linear()
    beta, weight, noise = 0.3, model.likelihood.weight.detach(), model.likelihood.scale.detach()[0]
    torch.manual_seed(3)
    x = model.sample(1, noise=True).detach()
    precision = torch.eye(3).double() + beta * weight.T @ weight / noise**2
    mean = torch.linalg.solve(precision, beta * weight.T @ (x[0] - model.likelihood.bias.detach()) / noise**2)
    start = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    z = start.sample(torch.Size([60_000, 1]))
    moved, now, share = transition(model, x, z, energy(model, x, z), torch.tensor(beta), torch.tensor(size), 4)
    assert 0 < share < 1
    torch.testing.assert_close(now.log_likelihood, model.log_likelihood(x, moved).detach())
    error = start.variance.sqrt() / 60_000**0.5
    assert ((moved.mean((0, 1)) - mean).abs() < SIX * error).all()
    spread = (moved[:, 0] - mean).T @ (moved[:, 0] - mean) / 60_000
    torch.testing.assert_close(spread, start.covariance_matrix, atol=SIX * 2 * start.variance.max().item() / 60_000**0.5, rtol=0)


def test_step_sizes_are_frozen() -> None:
    """Neither way changes the path that it is given, and the acceptance on the way is about that which was sought."""
    model = nonlinear()
    z, x = simulated(model)
    path = tuned(model, x, 100, num_chains=2, leapfrogs=5)
    kept = path.step_sizes.clone()
    annealed_bound(model, x, path, 2)
    reverse_annealed_bound(model, x, z, path, 2)
    assert torch.equal(kept, path.step_sizes)
    assert path.temperatures[0] == 0
    assert path.temperatures[-1] == 1
    now = energy(model, x, z.expand(4, -1, -1))
    *_, share = transition(model, x, z.expand(4, -1, -1), now, path.temperatures[-1].float(), path.step_sizes[-1], 5)
    assert 0.4 < share < 0.9


@pytest.mark.parametrize(
    ("model", "words"),
    [(partial(lowerbound.autoencoder, 8, 2), "no p\\(x\\)"), (partial(lowerbound.gaussian_mixture, 8, 2), "not continuous")],
)
def test_models_without_a_continuous_z_are_refused(model: partial[LatentVariableModel], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tuned(model(), torch.rand(3, 8))
