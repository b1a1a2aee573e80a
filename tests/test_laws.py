"""The laws of the design, over every model in conf/. Monte-Carlo statements hold within six standard errors."""

from __future__ import annotations

from math import log, pi

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
import zoo
from lowerbound.bounds import importance_weighted_bound, quadrature_log_evidence
from lowerbound.distributions import kl_per_dimension
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, IWAE, Objective, Reconstruction, ScoreFunctionELBO
from lowerbound.schedules import Step

SIX = 6.0
NORMAL_PRIOR = [name for name in zoo.BOUNDED if name != "vae_mixture_prior"]


AT_ONCE = 20  # repetitions in one call, which each have noise of their own


def repeated(objective: Objective, model: LatentVariableModel, x: Tensor, times: int = 200) -> tuple[float, float]:
    """The mean over data and repetitions of an objective's value, and its standard error over repetitions."""
    many = x.repeat(AT_ONCE, 1)  # [A N, D]
    with torch.no_grad():
        calls = [objective(model, many, Step()).value.double().view(AT_ONCE, -1).mean(1) for _ in range(times // AT_ONCE)]
    values = torch.cat(calls)  # [times]
    return values.mean().item(), values.std().item() / times**0.5


def grid_evidence(model: LatentVariableModel, x: Tensor, points: int = 200, limit: float = 6.5) -> np.ndarray:
    """log p(x) of a small model by the oracle's grid: only the decoder's outputs are the model's."""

    def log_likelihood(z: np.ndarray) -> np.ndarray:
        likelihood = model.likelihood
        if isinstance(likelihood, LinearGaussian):
            loc = z @ likelihood.weight.detach().numpy().T + likelihood.bias.detach().numpy()  # [G, D]
            return oracles.gaussian_log_density(x.double().numpy(), loc[:, None], likelihood.scale.detach().numpy())
        assert isinstance(likelihood, (Gaussian, Bernoulli))
        with torch.no_grad():
            outputs = likelihood.network(torch.as_tensor(z, dtype=x.dtype)).double().numpy()[:, None]  # [G, 1, D or 2 D]
        data = x.double().numpy()
        if isinstance(likelihood, Bernoulli):
            return oracles.bernoulli_log_density(data, outputs)
        loc, raw = outputs[..., : data.shape[1]], torch.as_tensor(outputs[..., data.shape[1] :])
        return oracles.gaussian_log_density(data, loc, likelihood.noise(raw).detach().double().numpy())

    return oracles.grid_log_evidence(log_likelihood, model.latent_dim, limit, points)


# Law 4


@pytest.mark.parametrize("name", zoo.BOUNDED)
def test_more_samples_bound_more_tightly(name: str) -> None:
    model, x = zoo.build(name), zoo.data(name, 16)
    elbo, one, eight, sixteen = (repeated(o, model, x) for o in (zoo.objective(name), IWAE(1), IWAE(8), IWAE(16)))
    assert abs(elbo[0] - one[0]) < SIX * (elbo[1] + one[1])
    assert one[0] < eight[0] + SIX * (one[1] + eight[1])
    assert eight[0] < sixteen[0] + SIX * (eight[1] + sixteen[1])
    assert one[0] < sixteen[0], "sixteen samples must be visibly better than one on an untrained model"


@pytest.mark.parametrize("name", NORMAL_PRIOR)
def test_bounds_lie_below_the_evidence_on_a_grid(name: str) -> None:
    """Laws 4 and 15: log p(x) of any model with two latent dimensions by brute force."""
    model, x = zoo.build(name), zoo.data(name, 4)
    evidence = grid_evidence(model, x).mean()
    for objective in (zoo.objective(name), IWAE(32), IWAE(32, doubly_reparameterized=True), ScoreFunctionELBO()):
        mean, error = repeated(objective, model, x, 100)
        assert mean < evidence + SIX * error + 1e-4, type(objective).__name__  # float32 sums over 64 entries
    many = importance_weighted_bound(model, x, 20_000).mean().item()
    assert many == pytest.approx(evidence, abs=0.05)


def test_the_evidence_of_a_linear_model_is_a_dense_gaussian() -> None:
    model, x = zoo.build("linear_vae").double(), zoo.data("linear_vae", 6).double()
    weight, bias, scale = (value.detach().numpy() for value in (model.likelihood.weight, model.likelihood.bias, model.likelihood.scale))
    exact = oracles.dense_gaussian(x.numpy(), weight, bias, scale)
    np.testing.assert_allclose(grid_evidence(model, x), exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(quadrature_log_evidence(model, x), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", [IWAE(5, doubly_reparameterized=True), ScoreFunctionELBO(5)])
def test_the_value_is_the_bound_where_the_gradient_is_another_function(objective: Objective) -> None:
    model, x = zoo.build("vae"), zoo.data("vae", 8)
    torch.manual_seed(3)
    with_gradient = objective(model, x, Step()).value
    torch.manual_seed(3)
    log_weight = model.log_weight(x, 5)
    bound = log_weight.mean(0) if isinstance(objective, ScoreFunctionELBO) else log_weight.logsumexp(0) - log(5)
    torch.testing.assert_close(with_gradient, bound, atol=1e-4, rtol=0)  # float32 at 100 nats


# Law 11


@pytest.mark.parametrize("name", NORMAL_PRIOR)
def test_the_analytic_kl_is_the_mean_of_the_sampled_one(name: str) -> None:
    model, x = zoo.build(name).double(), zoo.data(name, 8).double()
    with torch.no_grad():
        analytic = ELBO()(model, x, Step()).kl
        q, z, _ = model.draw(x, 20_000)
        sampled = q.log_prob(z) - model.prior().log_prob(z)  # [S, N]
    assert analytic is not None
    assert ((analytic - sampled.mean(0)).abs() < SIX * sampled.std(0) / len(z) ** 0.5).all()


@pytest.mark.parametrize("name", [name for name in NORMAL_PRIOR if name != "vae_full_gaussian"])
def test_kl_per_dimension_adds_up(name: str) -> None:
    model, x = zoo.build(name).double(), zoo.data(name, 8).double()
    bound = ELBO()(model, x, Step())
    torch.testing.assert_close(kl_per_dimension(model.posterior(x), model.prior()).sum(-1), bound.kl, atol=1e-10, rtol=0)


def gradients(objective: Objective, model: LatentVariableModel, x: Tensor, times: int) -> Tensor:
    """Gradients of the mean value, one row for the mean of some repetitions."""
    parameters, many = list(model.parameters()), x.repeat(AT_ONCE, 1)  # [A N, D]
    rows = []
    for _ in range(times // AT_ONCE):
        found = torch.autograd.grad(objective(model, many, Step()).value.mean(), parameters)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def test_the_doubly_reparameterised_gradient_is_the_formula_of_the_paper() -> None:
    """Tucker et al. 2019, eq. 8, written out with q's parameters in hand and the same noise: w^2 on the path through z, w on p."""
    model, x, samples = zoo.build("linear_vae").double(), zoo.data("linear_vae", 3).double(), 4
    torch.manual_seed(2)
    parameters = list(model.parameters())
    found = torch.autograd.grad(IWAE(samples, doubly_reparameterized=True)(model, x, Step()).value.sum(), parameters)
    torch.manual_seed(2)
    q, z, _ = model.draw(x, samples)
    fixed = torch.distributions.Independent(torch.distributions.Normal(q.mean.detach(), q.stddev.detach()), 1)

    def log_weight(z: Tensor) -> Tensor:
        return model.log_likelihood(x, z) + model.prior().log_prob(z) - fixed.log_prob(z)

    weights = log_weight(z).detach().softmax(0)
    through_z = torch.autograd.grad((weights.square().detach() * log_weight(z)).sum(), list(model.posterior_rule.parameters()))
    through_p = torch.autograd.grad((weights * log_weight(z.detach())).sum(), list(model.likelihood.parameters()))
    for one, other in zip(found, (*through_p, *through_z), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ELBO(kl="analytic"), ELBO(kl="sampled")),
        (ELBO(reconstruction="analytic"), ELBO()),
        (ELBO(), ScoreFunctionELBO(8)),
        (IWAE(4), IWAE(4, doubly_reparameterized=True)),
    ],
)
def test_estimators_of_one_gradient_agree(one: Objective, other: Objective) -> None:
    """Projected on random directions, so that a few numbers decide and six standard errors mean what they say."""
    model = LatentVariableModel(*zoo.build("linear_vae").double().children())
    x = zoo.data("linear_vae", 4).double() / 4
    a, b = gradients(one, model, x, 3000), gradients(other, model, x, 3000)
    directions = torch.randn(a.shape[1], 8, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    a, b = a @ directions, b @ directions
    error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < SIX * error).all()


# Law 13


def same_noise(objective: Objective, model: LatentVariableModel, x: Tensor) -> Tensor:
    torch.manual_seed(5)
    return objective(model, x, Step()).value


@pytest.mark.parametrize("name", NORMAL_PRIOR)
def test_beta_zero_is_reconstruction_and_beta_one_the_elbo(name: str) -> None:
    model, x = zoo.build(name), zoo.data(name)
    assert torch.equal(same_noise(ELBO(beta=0), model, x), same_noise(Reconstruction(), model, x))
    torch.manual_seed(5)
    bound = ELBO()(model, x, Step())
    assert bound.kl is not None
    assert torch.equal(bound.value, bound.reconstruction - bound.kl)


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_beta_is_a_change_of_the_noise(beta: float) -> None:
    # The scales are exact in float32, in which a model is built.
    model, x, variance = zoo.build("vae_fixed_noise").double(), zoo.data("vae_fixed_noise").double(), 0.25
    dim = x.shape[1]

    def at(noise_variance: float, objective: Objective) -> Tensor:
        model.likelihood.noise = FixedNoise(dim, noise_variance**0.5).double()
        return same_noise(objective, model, x)

    constant = dim / 2 * (beta * log(2 * pi * beta * variance) - log(2 * pi * variance))
    torch.testing.assert_close(at(variance, ELBO(beta=beta)), beta * at(beta * variance, ELBO()) + constant, atol=1e-9, rtol=0)


def test_free_bits_charge_at_least_their_nats_and_leave_the_elbo_alone() -> None:
    model, x = zoo.build("vae"), zoo.data("vae")
    torch.manual_seed(5)
    charged = ELBO(free_bits=3.0)(model, x, Step())
    torch.manual_seed(5)
    plain = ELBO()(model, x, Step())
    assert charged.kl is not None
    assert plain.kl is not None
    torch.testing.assert_close(charged.kl, plain.kl)
    per_dimension = kl_per_dimension(model.posterior(x), model.prior())
    assert (per_dimension < 3).any()
    expected = plain.reconstruction - torch.maximum(per_dimension, torch.tensor(3.0)).sum(-1)
    torch.testing.assert_close(charged.value, expected)


def test_averaging_over_samples_is_a_mean_of_bounds() -> None:
    model, x = zoo.build("vae"), zoo.data("vae", 8)
    once, often = repeated(ELBO(), model, x), repeated(ELBO(num_samples=16), model, x)
    assert abs(once[0] - often[0]) < SIX * (once[1] + often[1])
    assert often[1] < once[1] / 2, "sixteen samples have a quarter of the standard error of one"


# Law 15


@pytest.mark.parametrize("name", NORMAL_PRIOR)
def test_quadrature_equals_the_oracles_grid(name: str) -> None:
    model, x = zoo.build(name).double(), zoo.data(name, 3).double()
    np.testing.assert_allclose(quadrature_log_evidence(model, x), grid_evidence(model, x), rtol=0, atol=1e-6)


def test_the_gap_of_the_elbo_is_the_kl_to_the_posterior_on_the_grid() -> None:
    """log p(x) - ELBO = KL(q, p(z | x)), with the posterior from the grid, in a nonlinear model."""
    model, x = zoo.build("vae").double(), zoo.data("vae", 2).double()
    axis = torch.linspace(-7, 7, 200, dtype=torch.float64)
    z, volume = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    with torch.no_grad():
        evidence = torch.as_tensor(grid_evidence(model, x))
        log_posterior = model.log_likelihood(x, z.unsqueeze(1)) + model.prior().log_prob(z).unsqueeze(1) - evidence  # [G, N]
        log_q = model.posterior(x).log_prob(z.unsqueeze(1))  # [G, N]
        kl = (log_q.exp() * (log_q - log_posterior)).sum(0) * volume
        weights = torch.stack([model.log_weight(x, 5000) for _ in range(4)]).flatten(0, 1)  # [S, N]
    elbo, error = weights.mean(0), weights.std(0) / len(weights) ** 0.5
    assert ((evidence - elbo - kl).abs() < SIX * error + 1e-6).all()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_importance_weighting_uses_exactly_its_samples(chunk: int) -> None:
    """Of weights that do not vary the bound is the weight itself, whatever the number of samples and the chunk."""
    model, x = zoo.build("vae"), zoo.data("vae", 3)
    model.log_weight = lambda x, num_samples: torch.full((num_samples, len(x)), 2.5)  # type: ignore[method-assign]
    torch.testing.assert_close(importance_weighted_bound(model, x, 100, chunk), torch.full((3,), 2.5, dtype=torch.float64))
