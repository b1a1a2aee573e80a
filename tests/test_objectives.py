"""Closed forms of the reconstruction: they equal their Monte-Carlo definition, and nothing is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

import lowerbound
import oracles
from lowerbound.distributions import Delta, diagonal_normal
from lowerbound.likelihoods import Noise, NoisePerDimension, SharedNoise
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.objectives import ELBO, LogEvidence, Reconstruction
from lowerbound.schedules import Step

SIX = 6.0  # standard errors
N, D, L = 7, 5, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def posteriors() -> dict[str, Distribution]:
    loc, below = random(N, L, seed=1), random(N, L, L, seed=2).tril(-1)
    factor = below + torch.diag_embed(random(N, L, seed=3).exp())
    return {
        "diagonal": diagonal_normal(loc, random(N, L, seed=3).exp()),
        "full": MultivariateNormal(loc, scale_tril=factor),
        "one_covariance": MultivariateNormal(loc, scale_tril=factor[0]),
        "point": Delta(loc),
    }


def likelihood(noise: type[Noise]) -> LinearGaussian:
    torch.manual_seed(0)
    p = LinearGaussian(L, D, noise(D))  # type: ignore[call-arg] every noise takes it
    with torch.no_grad():
        p.bias.copy_(random(D, seed=4))
        if isinstance(p.noise, NoisePerDimension):
            p.noise.log_scale.copy_(random(D, seed=5) / 2 - 1)
    return p


def data(missing: bool) -> Tensor:
    x = random(N, D, seed=6)
    if missing:
        x[random(N, D, seed=7) > 0.3] = torch.nan
        x[0], x[1] = torch.nan, random(D, seed=8)  # one row with nothing, one with everything
    return x


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("noise", [SharedNoise, NoisePerDimension])
@pytest.mark.parametrize("name", ["diagonal", "full", "one_covariance", "point"])
def test_the_expected_log_density_is_the_mean_over_samples(name: str, noise: type[Noise], missing: bool) -> None:
    p, q, x = likelihood(noise), posteriors()[name], data(missing)
    found = p.expected_log_prob(x, q).detach()
    torch.manual_seed(0)
    z = q.rsample(torch.Size([20_000]))
    loc = z.numpy() @ p.weight.detach().numpy().T + p.bias.detach().numpy()  # [S, N, D]
    drawn = torch.from_numpy(oracles.gaussian_log_density(x.numpy(), loc, p.scale.detach().numpy()))
    error = SIX * drawn.std(0) / len(drawn) ** 0.5 + 1e-10  # of a point all samples are the same
    assert found.shape == (N,)
    assert ((found - drawn.mean(0)).abs() < error).all()
    assert not missing or found[0] == 0, "nothing observed, nothing expected"


def test_its_gradient_does_not_meet_missing_entries() -> None:
    """The gradient in W of the rows with holes is that of the sum over observed entries, by finite differences."""
    p, q, x = likelihood(NoisePerDimension), posteriors()["full"], data(missing=True)
    (found,) = torch.autograd.grad(p.expected_log_prob(x, q).sum(), [p.weight])
    bias, scale, seen = p.bias.detach().numpy(), p.scale.detach().numpy(), ~np.isnan(x.numpy())
    covariance = q.covariance_matrix.numpy()  # type: ignore[attr-defined]

    def expected(weight: np.ndarray) -> float:
        at_mean = oracles.gaussian_log_density(x.numpy(), q.mean.numpy() @ weight.T + bias, scale).sum()
        spread = np.einsum("dl,nlm,dm->nd", weight, covariance, weight) / scale**2
        return at_mean - spread[seen].sum() / 2

    np.testing.assert_allclose(found.numpy(), oracles.finite_difference(expected, p.weight.detach().numpy()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
def test_an_analytic_reconstruction_is_the_mean_of_sampled_ones(kl: str) -> None:
    torch.manual_seed(0)
    model, x = lowerbound.linear_vae(D, L), random(N, D, seed=9)
    with torch.no_grad():
        analytic = ELBO(reconstruction="analytic", kl=kl)(model, x, Step())
        sampled = model.draw(x, 20_000).log_likelihood  # [S, N]
    assert ((analytic.reconstruction - sampled.mean(0)).abs() < SIX * sampled.std(0) / len(sampled) ** 0.5).all()
    assert analytic.kl is not None
    assert torch.equal(analytic.value, analytic.reconstruction - analytic.kl)


def test_nothing_is_drawn_where_both_terms_are_analytic() -> None:
    torch.manual_seed(0)
    model, x, objective = lowerbound.linear_vae(D, L), random(N, D, seed=9), ELBO(reconstruction="analytic")
    before = torch.get_rng_state()
    first, second = (objective(model, x, Step()).value for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(*(ELBO()(model, x, Step()).value for _ in range(2)))


def test_free_bits_and_beta_hold_with_it() -> None:
    torch.manual_seed(0)
    model, x = lowerbound.linear_vae(D, L), random(N, D, seed=9)
    plain = ELBO(reconstruction="analytic")(model, x, Step())
    charged = ELBO(beta=2.0, free_bits=100.0, reconstruction="analytic")(model, x, Step())
    torch.testing.assert_close(charged.value, plain.reconstruction - 2 * L * 100.0)
    assert torch.equal(charged.reconstruction, plain.reconstruction)


def test_a_network_has_no_closed_form() -> None:
    with pytest.raises(ValueError, match=r"objective\.reconstruction=analytic: .* of Gaussian has no closed form"):
        ELBO(reconstruction="analytic")(lowerbound.vae(D, L, sizes=[4]), torch.rand(N, D), Step())


def test_an_unknown_reconstruction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.reconstruction='exact' is unknown: analytic or sampled"):
        ELBO(reconstruction="exact")


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("vae", ELBO()),
        ("vae", ELBO(kl="sampled")),
        ("linear_vae", ELBO(reconstruction="analytic")),
        ("autoencoder", Reconstruction()),
        ("ppca", LogEvidence()),
        ("factor_analysis", LogEvidence()),
        ("gaussian", LogEvidence()),
    ],
)
def test_of_no_rows_there_are_no_terms_and_no_gradient(kind: str, objective: Any) -> None:
    """The last block of an epoch has none for a rank where fewer rows than ranks remain (`TensorBatches`)."""
    model = lowerbound.gaussian(6) if kind == "gaussian" else getattr(lowerbound, kind)(6, 2)
    bound = objective(model, torch.empty(0, 6, dtype=next(model.parameters()).dtype), Step())
    assert [None if term is None else tuple(term.shape) for term in bound] in ([(0,), (0,), (0,)], [(0,), (0,), None])
    bound.value.sum().backward()
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in model.parameters())
