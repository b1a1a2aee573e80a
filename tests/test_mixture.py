"""Mixtures: exactness, EM against scikit-learn and NumPy, ascent, missing entries, components without data, recovery."""

from __future__ import annotations

import warnings
from functools import partial
from itertools import product
from math import log

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal, OneHotCategorical, kl_divergence

import lowerbound
import mixture_oracles
from lowerbound.data.synthetic import BernoulliMixtureData, MixtureData
from lowerbound.dense_covariances import MAX_PATTERN_DIM, Full
from lowerbound.distributions import Delta
from lowerbound.mixture import BernoulliComponents, Enumeration, GaussianComponents, Responsibilities
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, LogEvidence
from lowerbound.priors import OneHot, StandardNormal
from lowerbound.schedules import Step
from lowerbound.statistics import Statistics, added, moments_of
from mixture_oracles import DENSE, KINDS, Mixture, covariance_of_kind, mixture_of_kind

ALGEBRA = 1e-10  # float64: some hundred additions of terms of order one
SIX = 6.0
K, D = 3, 4
ALL = (*KINDS, "bernoulli")
kinds = pytest.mark.parametrize("kind", KINDS)
models = pytest.mark.parametrize("kind", ALL)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bernoulli_of(num_components: int = K, data_dim: int = D, pseudo_counts: float = 0.0, seed: int = 0) -> LatentVariableModel:
    torch.manual_seed(seed)
    likelihood = BernoulliComponents(num_components, data_dim, pseudo_counts)
    model = LatentVariableModel(OneHot(num_components, pseudo_counts), likelihood, Enumeration())
    with torch.no_grad():
        model.prior.logits.normal_()
    return model


def build(kind: str, pseudo_counts: float = 0.0, seed: int = 0, num_components: int = K, data_dim: int = D) -> LatentVariableModel:
    if kind == "bernoulli":
        return bernoulli_of(num_components, data_dim, pseudo_counts, seed)
    return mixture_of_kind(kind, num_components, data_dim, pseudo_counts, seed)


def rows(kind: str, count: int = 60, data_dim: int = D, seed: int = 1) -> Tensor:
    """Rows in overlapping clusters, or bits."""
    x = random(count, data_dim, seed=seed) + 2 * random(4, data_dim, seed=seed + 1)[torch.arange(count) % 4]
    return (x > 0).double() if kind == "bernoulli" else x


def with_holes(x: Tensor, seed: int = 7) -> Tensor:
    """A third of the entries missing, one row complete and one missing altogether."""
    holes = x.masked_fill(random(*x.shape, seed=seed) > 0.4, torch.nan)
    holes[0], holes[1] = x[0], torch.nan
    return holes


def bits_of(model: LatentVariableModel) -> tuple[np.ndarray, np.ndarray]:
    """Weights and means of a Bernoulli mixture."""
    logits = model.prior.logits.detach().double().numpy()
    return np.exp(logits - logsumexp(logits)), expit(model.likelihood.logits.detach().double().numpy())


def log_joint(model: LatentVariableModel, x: Tensor) -> np.ndarray:
    """The oracle's log p(x, z) ``[N, K]``."""
    if isinstance(model.likelihood, BernoulliComponents):
        return mixture_oracles.bernoulli_log_joint(*bits_of(model), x.numpy())
    return mixture_oracles.of(model).log_joint(x.numpy())


def step(model: LatentVariableModel, x: Tensor) -> float:
    """One EM step; the objective before it, per datum."""
    with torch.no_grad():
        value = model.log_prob(x).mean() + model.log_prior()
        model.maximize(model.statistics(x))
    return float(value)


def prior_of(model: LatentVariableModel) -> float:
    with torch.no_grad():
        return float(model.log_prior())


def climb(model: LatentVariableModel, x: Tensor, steps: int) -> np.ndarray:
    """The objective before each of some EM steps, and at their end."""
    values = [step(model, x) for _ in range(steps)]
    with torch.no_grad():
        return np.array([*values, float(model.log_prob(x).mean() + model.log_prior())])


def assert_alike(model: LatentVariableModel, expected: Mixture, tolerance: float) -> None:
    found = mixture_oracles.of(model)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name)


# log p(x) by enumeration (laws 1, 3, 11)


@models
@pytest.mark.parametrize("holes", [False, True])
def test_log_p_is_the_sum_over_components(kind: str, holes: bool) -> None:
    model = build(kind)
    x = with_holes(rows(kind, 12)) if holes else rows(kind, 12)
    expected = logsumexp(log_joint(model, x), axis=1)
    np.testing.assert_allclose(model.log_prob(x).detach().numpy(), expected, rtol=0, atol=1e-8 if holes else ALGEBRA)
    responsibilities = np.exp(log_joint(model, x) - expected[:, None])
    np.testing.assert_allclose(model.posterior(x).mean.detach().numpy(), responsibilities, rtol=0, atol=1e-8 if holes else ALGEBRA)


@models
@pytest.mark.parametrize("holes", [False, True])
def test_the_log_weight_is_log_p_at_every_z(kind: str, holes: bool) -> None:
    model = build(kind)
    x = with_holes(rows(kind, 12)) if holes else rows(kind, 12)
    q, exact = model.posterior(x), model.log_prob(x)
    for z in torch.eye(K, dtype=torch.float64):
        z = z.expand(1, len(x), K)
        weight = model.log_likelihood(x, z) + model.prior().log_prob(z) - q.log_prob(z)
        torch.testing.assert_close(weight[0], exact, atol=1e-8 if holes else ALGEBRA, rtol=0)
    torch.testing.assert_close(model.log_weight(x, 5), exact.expand(5, -1), atol=1e-8 if holes else ALGEBRA, rtol=0)


def written_out(model: LatentVariableModel) -> Distribution:
    """The marginal p(x) as torch has it, a function of the same parameters."""
    weights, likelihood = Categorical(logits=model.prior.logits), model.likelihood
    if isinstance(likelihood, BernoulliComponents):
        bits = torch.distributions.Bernoulli(logits=likelihood.logits)
        return MixtureSameFamily(weights, torch.distributions.Independent(bits, 1))
    each = [likelihood.covariance.distribution(z, likelihood.mean[k]) for k, z in enumerate(torch.eye(K, dtype=torch.float64))]
    matrices = [p.covariance_matrix if isinstance(p, MultivariateNormal) else p.variance.diag() for p in each]
    return MixtureSameFamily(weights, MultivariateNormal(likelihood.mean, torch.stack(matrices)))


@models
def test_gradients_of_log_p_and_of_the_log_weight_are_those_of_the_mixture(kind: str) -> None:
    model, x = build(kind), rows(kind, 12)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(written_out(model).log_prob(x).mean(), parameters)
    for value in (model.log_prob(x), model.log_weight(x, 1)[0], LogEvidence()(model, x, Step()).value):
        for one, other in zip(torch.autograd.grad(value.mean(), parameters), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@kinds
def test_a_mixture_of_gaussians_integrates_to_one(kind: str) -> None:
    data_dim = 3 if kind == "low_rank" else 1
    model = mixture_of_kind(kind, 3, data_dim, spacing=1.0)
    if kind == "low_rank":  # importance sampling
        proposal = MultivariateNormal(torch.zeros(data_dim).double(), 12 * torch.eye(data_dim).double())
        torch.manual_seed(0)
        x = proposal.sample(torch.Size([40_000]))
        weights = (model.log_prob(x) - proposal.log_prob(x)).exp().detach()
        assert abs(weights.mean() - 1) < SIX * weights.std() / len(x) ** 0.5
        return
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64).unsqueeze(1)
    assert model.log_prob(grid).exp().sum().item() * 60 / 20_000 == pytest.approx(1.0, abs=1e-9)


def test_a_mixture_of_bits_adds_up_to_one() -> None:
    x = torch.tensor(list(product([0.0, 1.0], repeat=D)), dtype=torch.float64)
    assert bernoulli_of().log_prob(x).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@models
def test_the_score_has_mean_zero(kind: str) -> None:
    """Law 2, projected on random directions."""
    model = build(kind)
    torch.manual_seed(0)
    x = model.sample(20_000, noise=True).detach()
    parameters = list(model.parameters())
    scores = []
    for part in x.split(200):
        found = torch.autograd.grad(model.log_prob(part).mean(), parameters)
        scores.append(torch.cat([g.flatten() for g in found]))
    projected = torch.stack(scores) @ random(scores[0].numel(), 8)
    error = projected.std(0) / len(scores) ** 0.5
    assert (projected.mean(0).abs() < SIX * error).all()


@models
def test_kl_and_reconstruction_are_their_definitions(kind: str) -> None:
    model, x = build(kind), rows(kind, 12)
    q = model.posterior(x)
    terms = LogEvidence()(model, x, Step())
    joint = log_joint(model, x)
    r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    log_pi = np.log(mixture_oracles.of(model).weights if kind != "bernoulli" else bits_of(model)[0])
    np.testing.assert_allclose(terms.kl.numpy(), (r * (np.log(r) - log_pi)).sum(1), rtol=0, atol=ALGEBRA)
    np.testing.assert_allclose(terms.reconstruction.detach().numpy(), (r * (joint - log_pi)).sum(1), rtol=0, atol=1e-9)
    generic = kl_divergence(OneHotCategorical(logits=q.logits), OneHotCategorical(logits=model.prior.logits))
    torch.testing.assert_close(terms.kl, generic.detach(), atol=ALGEBRA, rtol=0)
    analytic = ELBO(kl="analytic", reconstruction="analytic")(model, x, Step())
    torch.testing.assert_close(analytic.value, model.log_prob(x), atol=1e-9, rtol=0)


def test_the_kl_of_a_certain_responsibility_is_finite() -> None:
    q = Responsibilities(torch.tensor([[0.0, -torch.inf], [-1e5, 0.0]], dtype=torch.float64))
    p = OneHotCategorical(logits=torch.tensor([1.0, 3.0], dtype=torch.float64).log())
    torch.testing.assert_close(kl_divergence(q, p), torch.tensor([log(4), log(4 / 3)], dtype=torch.float64))


@kinds
def test_draws_have_the_moments_of_the_mixture(kind: str) -> None:
    model = build(kind)
    known, count = mixture_oracles.of(model), 40_000
    torch.manual_seed(0)
    x = model.sample(count, noise=True).detach().numpy()
    mean = known.weights @ known.means
    shifts = known.means - mean
    covariance = np.einsum("k,kde->de", known.weights, known.covariances + shifts[:, :, None] * shifts[:, None])
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    assert (np.abs(x.mean(0) - mean) < SIX * x.std(0) / count**0.5).all()
    assert (np.abs(products.mean(0) - covariance) < SIX * products.std(0) / count**0.5).all()


def test_the_order_of_components_and_of_data_changes_nothing() -> None:
    for kind in ("diagonal", "full", "low_rank"):
        model, other, x = build(kind), build(kind), with_holes(rows(kind, 20))
        order, data = torch.tensor([2, 0, 1]), torch.randperm(20, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(parameter[order])
        torch.testing.assert_close(other.log_prob(x), model.log_prob(x), atol=ALGEBRA, rtol=0)
        torch.testing.assert_close(model.log_prob(x[data]), model.log_prob(x)[data], atol=ALGEBRA, rtol=0)


# EM against scikit-learn and NumPy


def started(kind: str, x: Tensor, pseudo_counts: float = 0.0, num_components: int = K) -> LatentVariableModel:
    """A model whose means are rows, with the variances of the data and equal weights."""
    model = build(kind, pseudo_counts, num_components=num_components, data_dim=x.shape[1])
    model.likelihood.count_from(x)
    with torch.no_grad():
        model.prior.logits.zero_()
        model.likelihood.mean.copy_(x[:num_components].nan_to_num(0.0))
        one = torch.ones((), dtype=torch.float64)
        model.likelihood.covariance.maximize(*model.likelihood.covariance.shaped(one, x.nan_to_num(0.0).var(0).diag()))
    return model


@pytest.mark.parametrize(("kind", "theirs"), [("full", "full"), ("tied", "tied"), ("diagonal", "diag"), ("spherical", "spherical")])
def test_em_takes_the_steps_of_scikit_learn(kind: str, theirs: str) -> None:
    x, steps = rows(kind, 200), 12
    model = started(kind, x)
    start = mixture_oracles.of(model)
    inverse = np.linalg.inv(start.covariances)
    precisions = {"full": inverse, "tied": inverse[0], "diag": np.diagonal(inverse, 0, 1, 2), "spherical": inverse[:, 0, 0]}[theirs]
    reference = GaussianMixture(
        K, covariance_type=theirs, reg_covar=0, tol=0, max_iter=steps, weights_init=start.weights, means_init=start.means,
        precisions_init=precisions,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged, as asked
        reference.fit(x.numpy())
    values = climb(model, x, steps)
    assert values[-1] == pytest.approx(reference.score(x.numpy()), abs=1e-8)
    np.testing.assert_allclose(model.likelihood.mean.detach().numpy(), reference.means_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(mixture_oracles.of(model).weights, reference.weights_, rtol=0, atol=1e-8)
    for covariance, k in zip(mixture_oracles.of(model).covariances, range(K), strict=True):
        theirs_k = reference.covariances_ if theirs == "tied" else reference.covariances_[k]
        np.testing.assert_allclose(covariance, theirs_k * np.eye(D) if np.ndim(theirs_k) < 2 else theirs_k, rtol=0, atol=1e-8)


@kinds
@pytest.mark.parametrize("pseudo_counts", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_em_takes_the_steps_of_the_formulas(kind: str, pseudo_counts: float, holes: bool) -> None:
    x = with_holes(rows(kind, 40)) if holes else rows(kind, 40)
    model = started(kind, x, pseudo_counts)
    spread = np.nanvar(x.numpy(), axis=0)
    expected = mixture_oracles.of(model)
    for _ in range(3):
        step(model, x)
        expected = mixture_oracles.em_step(expected, x.numpy(), kind, pseudo_counts, spread)
    assert_alike(model, expected, 1e-8)
    prior = mixture_oracles.log_prior(expected, pseudo_counts, spread) / len(x)
    assert prior_of(model) == pytest.approx(prior, abs=1e-8)


@pytest.mark.parametrize("pseudo_counts", [0.5, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_em_for_bits_takes_the_steps_of_the_formulas(pseudo_counts: float, holes: bool) -> None:
    x = with_holes(rows("bernoulli", 40)) if holes else rows("bernoulli", 40)
    model = build("bernoulli", pseudo_counts)
    weights, means = bits_of(model)
    for _ in range(4):
        step(model, x)
        weights, means = mixture_oracles.bernoulli_em_step(weights, means, x.numpy(), pseudo_counts)
    found = bits_of(model)
    np.testing.assert_allclose(found[0], weights, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[1], means, rtol=0, atol=1e-9)
    prior = pseudo_counts * np.log(weights).sum() + pseudo_counts / 2 * (np.log(means) + np.log(1 - means)).sum()
    assert prior_of(model) == pytest.approx(prior / len(x), abs=1e-9)


def test_without_pseudo_counts_bits_may_be_certain() -> None:
    x = rows("bernoulli", 40)
    x[:, 0] = 1
    model = build("bernoulli", 0.0)
    values = climb(model, x, 10)
    weights, means = bits_of(model)
    np.testing.assert_allclose(means[:, 0], 1.0, rtol=0, atol=1e-14)
    assert np.isfinite(values).all()
    assert weights.sum() == pytest.approx(1.0)


# Ascent and additivity (laws 5, 6)


@models
@pytest.mark.parametrize("pseudo_counts", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_every_step_ascends(kind: str, pseudo_counts: float, holes: bool) -> None:
    x = with_holes(rows(kind, 80)) if holes else rows(kind, 80)
    model = build(kind, pseudo_counts, seed=3)
    model.initialize(x, len(x))
    if kind != "bernoulli":
        with torch.no_grad():
            model.likelihood.mean.copy_(x[:K].nan_to_num(0.0))
    values = climb(model, x, 25)
    assert (np.diff(values) >= -1e-10).all()
    assert values[-1] > values[0] + 0.01, "something was learnt"


@pytest.mark.parametrize("kind", ["diagonal", "full", "low_rank", "bernoulli"])
@pytest.mark.parametrize("pseudo_counts", [0.0, 1.0])
def test_after_the_m_step_the_expected_log_density_has_no_slope(kind: str, pseudo_counts: float) -> None:
    """The penalised Q of Bishop 2006, eq. 9.40 and section 9.4: gradient zero in every parameter, with gamma as it was."""
    x = rows(kind, 50)
    model = build(kind, pseudo_counts)
    model.initialize(x, len(x))
    with torch.no_grad():
        r = model.posterior(x).mean
        model.maximize(model.statistics(x))
    value = (r * (model.likelihood.log_densities(x) + model.prior.logits.log_softmax(0))).sum() / len(x) + model.log_prior()
    for gradient in torch.autograd.grad(value, list(model.parameters())):
        assert gradient.abs().max() < 1e-8


@models
def test_statistics_add_up_over_any_partition(kind: str) -> None:
    model, x = build(kind), with_holes(rows(kind, 30))
    parts: list[Statistics] = [model.statistics(part) for part in x.split([1, 13, 2, 14])]
    total = parts[0]
    for part in parts[1:]:
        total = added(total, part)
    for name, value in model.statistics(x).items():
        torch.testing.assert_close(total[name], value, atol=1e-9, rtol=0)


@models
def test_sums_do_not_mind_a_large_mean(kind: str) -> None:
    """The same step near the origin and a million away, which the squares would not survive."""
    if kind == "bernoulli":
        return
    x = rows(kind, 60)
    here, there = build(kind), build(kind)
    there.likelihood.count_from(x + 1e6)
    here.likelihood.count_from(x)
    with torch.no_grad():
        there.likelihood.mean += 1e6
    step(here, x)
    step(there, x + 1e6)
    torch.testing.assert_close(there.likelihood.mean - 1e6, here.likelihood.mean, atol=1e-8, rtol=0)
    np.testing.assert_allclose(mixture_oracles.of(there).covariances, mixture_oracles.of(here).covariances, rtol=0, atol=1e-7)


# Missing entries (law 9)


@models
def test_nothing_missing_is_no_mask(kind: str) -> None:
    model, x = build(kind), rows(kind, 20)
    some = torch.cat([x, torch.full((1, D), torch.nan, dtype=torch.float64)])
    torch.testing.assert_close(model.log_prob(some)[:-1], model.log_prob(x), atol=ALGEBRA, rtol=0)
    weights = model.prior().mean
    with_one, without = model.statistics(some), model.statistics(x)
    torch.testing.assert_close(with_one["responsibilities"], without["responsibilities"] + weights, atol=ALGEBRA, rtol=0)


@models
def test_an_all_missing_row_says_nothing(kind: str) -> None:
    model = build(kind)
    row = torch.full((2, D), torch.nan, dtype=torch.float64)
    assert model.log_prob(row).detach().numpy() == pytest.approx(0.0, abs=1e-14)
    torch.testing.assert_close(model.posterior(row).mean, model.prior().mean.expand(2, -1))


@kinds
def test_imputation_is_the_conditional_mean_and_deviation(kind: str) -> None:
    model, x = build(kind), with_holes(rows(kind, 10))
    known, (mean, std) = mixture_oracles.of(model), model.impute(x)
    r = known.responsibilities(x.numpy())
    for n, row in enumerate(x.numpy()):
        hidden = np.isnan(row)
        means, variances = np.zeros((K, D)), np.zeros((K, D))
        for k in range(K):
            means[k], left = known.regressed(row, k)
            variances[k] = np.diag(left)
        middle = r[n] @ means
        np.testing.assert_allclose(mean[n].detach().numpy(), middle, rtol=0, atol=1e-8)
        deviation = np.sqrt(np.maximum(r[n] @ (variances + means**2) - middle**2, 0))
        np.testing.assert_allclose(std[n].detach().numpy()[hidden], deviation[hidden], rtol=0, atol=1e-7)
        assert (std[n][~torch.from_numpy(hidden)] == 0).all()


def test_imputation_of_bits_is_their_probability() -> None:
    model, x = build("bernoulli"), with_holes(rows("bernoulli", 10))
    joint = log_joint(model, x)
    expected = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)) @ bits_of(model)[1]
    mean, std = model.impute(x)
    hidden = x.isnan().numpy()
    np.testing.assert_allclose(mean.detach().numpy()[hidden], expected[hidden], rtol=0, atol=ALGEBRA)
    np.testing.assert_allclose(std.detach().numpy()[hidden], np.sqrt(expected * (1 - expected))[hidden], rtol=0, atol=1e-9)


def test_dense_covariances_refuse_missing_entries_beyond_their_means() -> None:
    size = MAX_PATTERN_DIM + 1
    x = torch.zeros(3, size).index_fill(0, torch.tensor([1]), torch.nan)
    for kind in DENSE:
        likelihood = GaussianComponents(1, size, covariance_of_kind(kind, 1, size))
        with pytest.raises(ValueError, match=f"{size} x {size} matrix"):
            likelihood.check_data(x)
        assert likelihood.check_data(x[:1] + 0.5) is None
    assert GaussianComponents(1, size, covariance_of_kind("diagonal", 1, size)).check_data(x + 0.5) is None


@pytest.mark.parametrize("kind", ["diagonal", "spherical", "bernoulli"])
def test_a_dimension_of_which_nothing_was_observed_stays(kind: str) -> None:
    model, x = build(kind), rows(kind, 30)
    x[:, 1] = torch.nan
    parameter = model.likelihood.logits if kind == "bernoulli" else model.likelihood.mean
    before = parameter.detach().clone()
    step(model, x)
    assert torch.equal(parameter[:, 1], before[:, 1])
    assert (parameter[:, 0] != before[:, 0]).all()


# Components that lose their data


@models
@pytest.mark.parametrize("pseudo_counts", [0.0, 1.0])
def test_a_component_infinitely_far_away_begins_again(kind: str, pseudo_counts: float) -> None:
    model, x = build(kind, pseudo_counts), rows(kind, 80)
    model.initialize(x, len(x))
    with torch.no_grad():
        (model.likelihood.logits if kind == "bernoulli" else model.likelihood.mean)[0] = 40.0 if kind == "bernoulli" else 1e200
        if kind == "bernoulli":
            model.likelihood.logits[0] *= 1 - 2 * x.mean(0).round()
            model.prior.logits[0] = -60.0
    counts = model.posterior(x).mean.sum(0)
    assert counts[0] < 1e-6, "the premise: it has no data"
    heaviest = int(counts.argmax())
    step(model, x)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    weights = model.prior().mean
    share = (counts[heaviest].item() / 2 + pseudo_counts) / (len(x) + K * pseudo_counts)
    assert weights[[0, heaviest]].tolist() == pytest.approx([share, share]), "half of the weight of the heaviest"
    if kind != "bernoulli":
        matrices = mixture_oracles.of(model).covariances
        away = (model.likelihood.mean[0] - model.likelihood.mean[heaviest]).detach().numpy()
        np.testing.assert_array_equal(matrices[0], matrices[heaviest])
        assert away @ np.linalg.solve(matrices[0], away) == pytest.approx(1.0), "one standard deviation aside"
    values = climb(model, x, 15)
    assert (np.diff(values) >= -1e-10).all()
    assert model.posterior(x).mean[:, 0].sum() > 1, "it has found data again"


@models
@pytest.mark.parametrize("distinct", [1, 2])
def test_fewer_distinct_rows_than_components_never_give_nan(kind: str, distinct: int) -> None:
    x = rows(kind, distinct).repeat_interleave(6, 0)
    for pseudo_counts in (0.0, 1.0):
        model = build(kind, pseudo_counts, num_components=4)
        model.initialize(x, len(x))
        assert np.isfinite(climb(model, x, 10)).all()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert model.prior().mean.sum().item() == pytest.approx(1.0)


@models
def test_fewer_rows_than_components_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="num_components=3 needs as many training rows, and there are 2"):
        build(kind).initialize(rows(kind, 2), 2)


@kinds
def test_one_row_is_a_gaussian_at_the_floor(kind: str) -> None:
    model, x = build(kind, num_components=1), rows(kind, 1)
    model.initialize(x, 1)
    values = climb(model, x, 3)
    assert np.isfinite(values).all()
    torch.testing.assert_close(model.likelihood.mean.detach(), x)
    assert "covariance.min_scale=0.001" in str(model.likelihood.floored())


@kinds
def test_constant_columns_end_at_the_floor_and_it_is_said(kind: str) -> None:
    x = rows(kind, 80)
    model = build(kind)
    model.initialize(x, len(x))
    climb(model, x, 3)
    assert model.likelihood.floored() is None
    x[:, 2] = 5.0
    model.initialize(x, len(x))
    assert (np.diff(climb(model, x, 10)) >= -1e-10).all()
    if kind == "spherical":  # the other columns hold the shared scale up
        return
    if kind != "low_rank":
        torch.testing.assert_close(
            model.likelihood.covariance.variances()[:, 2], torch.full((K,), 1e-6, dtype=torch.float64), rtol=1e-3, atol=0
        )
        assert f"{K} of {K} components" in str(model.likelihood.floored())


# Refusals


def test_data_that_bits_cannot_have_produced_are_refused() -> None:
    model = build("bernoulli")
    with pytest.raises(ValueError, match="0, 1"):
        model.check_data(torch.tensor([[0.0, 1.0, 2.0, 0.0]]))
    assert model.check_data(torch.tensor([[0.0, 1.0, torch.nan, 0.0]])) is None
    assert "likelihood=bernoulli_components" in str(build("full").check_data(torch.tensor([[0.0, 1.0, 1.0, 0.0]])))


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_components=3 and data.dim=4"):
        GaussianComponents(3, 4, Full(2, 4))
    with pytest.raises(ValueError, match="pseudo_counts"):
        OneHot(3, -1.0)
    with pytest.raises(ValueError, match="prior=one_hot"):
        LatentVariableModel(StandardNormal(3), BernoulliComponents(3, 4), Enumeration())
    x = rows("full", 20)
    with pytest.raises(ValueError, match="num_components=3 has no closed form"):
        build("full").likelihood.solve(moments_of([x]).spectrum(), build("full"))


# One component


@kinds
@pytest.mark.parametrize("pseudo_counts", [0.0, 1.0])
def test_one_gaussian_by_closed_form_and_em_is_what_numpy_says(kind: str, pseudo_counts: float) -> None:
    x = rows(kind, 50)
    moments = (x.mean(0).numpy(), np.cov(x.numpy().T, bias=True))
    prior = pseudo_counts * np.diag(np.diag(moments[1]))
    counts = np.array([50 + pseudo_counts])
    expected = Mixture(np.ones(1), moments[0][None], mixture_oracles.shaped(kind, (50 * moments[1] + prior)[None], counts))
    for solve in (lambda m: m.likelihood.solve(moments_of([x]).spectrum(), m), lambda m: step(m, x)):
        model = build(kind, pseudo_counts, num_components=1)
        model.initialize(x, len(x))
        solve(model)
        assert_alike(model, expected, 1e-9)
        step(model, x)  # law 7: it stays
        assert_alike(model, expected, 1e-9)


@pytest.mark.parametrize("pseudo_counts", [0.0, 1.0])
def test_one_row_of_bits_by_closed_form_and_em_is_their_mean(pseudo_counts: float) -> None:
    x = rows("bernoulli", 50)
    expected = (x.numpy().sum(0) + pseudo_counts / 2) / (50 + pseudo_counts)
    for solve in (lambda m: m.likelihood.solve(moments_of([x]).spectrum(), m), lambda m: step(m, x)):
        model = build("bernoulli", pseudo_counts, num_components=1)
        solve(model)
        np.testing.assert_allclose(bits_of(model)[1][0], expected, rtol=0, atol=1e-12)


def test_a_fit_in_closed_form_is_the_fit_by_em() -> None:
    x = rows("full", 100)
    solved, climbed = (build("full", 1.0, num_components=1) for _ in range(2))
    lowerbound.learn(solved, lowerbound.ClosedFormFit, x, max_epochs=1, enable_progress_bar=False)
    lowerbound.learn(climbed, lowerbound.EMFit, x, max_epochs=3, enable_progress_bar=False)
    assert_alike(climbed, mixture_oracles.of(solved), 1e-9)
    assert prior_of(solved) == pytest.approx(prior_of(climbed), abs=1e-12)


# Starts, recovery (law 10)


@pytest.mark.parametrize("kind", ["spherical", "full"])
def test_separate_clusters_are_found_from_most_starts(kind: str) -> None:
    data = MixtureData(num_data=2000, dim=10)  # in two dimensions two of its four clusters overlap
    x, count = data.read().train, len(data.truth.means)
    found = 0
    for seed in range(10):
        model = build(kind, 1.0, seed, count, x.shape[1])
        model.initialize(x, len(x))
        climb(model, x, 30)
        nearest = torch.cdist(data.truth.means, model.likelihood.mean.detach())
        found += bool((nearest.min(1).values < 0.5).all() and nearest.argmin(1).unique().numel() == count)
    assert found >= 8


def test_the_truth_is_recovered() -> None:
    """The matched means and weights lie within six standard errors, and the covariances within 10%."""
    data = MixtureData(num_data=20_000, num_components=3, separation=8.0)
    x, truth = data.read().train, data.truth
    model = build("full", 0.0, 0, 3, 2)
    model.initialize(x, len(x))
    climb(model, x, 15)
    found = mixture_oracles.of(model)
    order = torch.cdist(truth.means, model.likelihood.mean.detach()).argmin(1).numpy()
    counts = truth.probabilities.numpy() * len(x)
    assert (np.abs(found.means[order] - truth.means.numpy()) < SIX / np.sqrt(counts)[:, None]).all()
    error = (truth.probabilities * (1 - truth.probabilities) / len(x)).sqrt().numpy()
    assert (np.abs(found.weights[order] - truth.probabilities.numpy()) < SIX * error).all()
    assert (np.abs(found.covariances[order] - np.eye(2)) < SIX * np.sqrt(2 / counts)[:, None, None]).all()


def test_the_truth_of_bits_is_recovered() -> None:
    data = BernoulliMixtureData(num_data=20_000, num_components=3, dim=30)
    x, truth = data.read().train.double(), data.truth
    model = build("bernoulli", 1.0, 0, 3, 30)
    model.initialize(x, len(x))
    climb(model, x, 12)
    weights, means = bits_of(model)
    order = torch.cdist(truth.means, torch.from_numpy(means)).argmin(1).numpy()
    counts = truth.probabilities.numpy() * len(x)
    error = np.sqrt(truth.means.numpy() * (1 - truth.means.numpy()) / counts[:, None]) + 1 / counts[:, None]
    assert (np.abs(means[order] - truth.means.numpy()) < SIX * error).all()
    assert np.abs(weights[order] - truth.probabilities.numpy()).max() < SIX * 0.5 / len(x) ** 0.5


# Other ways of learning, other precisions


@pytest.mark.parametrize("kind", ["diagonal", "full", "bernoulli"])
def test_gradient_ascent_reaches_the_optimum_of_em(kind: str) -> None:
    """Full batch, float64, from the same start; log p(X) + log p(parameters) to 1e-6 nats per datum."""
    x = rows(kind, 120)
    climbed = build(kind, 1.0)
    climbed.initialize(x, len(x))
    climb(climbed, x, 2)
    descended = build(kind, 1.0)
    descended.load_state_dict(climbed.state_dict())
    best = climb(climbed, x, 300)[-1]
    optimizer = torch.optim.LBFGS(descended.parameters(), max_iter=400, history_size=30, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    values: list[float] = []

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = LogEvidence()(descended, x, Step()).value.mean()
        values.append(value.item())
        (-value).backward()
        return -value

    optimizer.step(loss)
    assert max(values) == pytest.approx(best, abs=1e-6)
    assert values[-1] > values[0] + 1e-4


def test_a_gradient_fit_ascends() -> None:
    x = rows("full", 200)
    model = build("full", 1.0)
    model.initialize(x, len(x))
    before = model.log_prob(x).mean().item()
    fit = partial(lowerbound.GradientFit, optimizer=partial(torch.optim.Adam, lr=0.02))
    lowerbound.learn(model, fit, x, max_epochs=20, enable_progress_bar=False)
    assert model.log_prob(x).mean().item() > before + 0.02


@pytest.mark.parametrize("kind", ["diagonal", "full", "bernoulli"])
def test_a_sampled_e_step_has_the_mean_of_the_exact_one(kind: str) -> None:
    model, x = build(kind), rows(kind, 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)  # so that no component is out of the question
    q, exact = model.posterior(x), model.statistics(x)
    torch.manual_seed(0)
    draws = [model.statistics(x, Delta(z)) for z in q.sample(torch.Size([1000]))]
    for name, value in exact.items():
        sampled = torch.stack([draw[name] for draw in draws])
        error = sampled.std(0) / len(draws) ** 0.5
        assert ((sampled.mean(0) - value).abs() <= SIX * error + 1e-9).all(), name


def test_monte_carlo_em_comes_near_to_em() -> None:
    x = rows("full", 200)
    exact, sampled = build("full", 1.0), build("full", 1.0)
    lowerbound.learn(exact, lowerbound.EMFit, x, max_epochs=12, enable_progress_bar=False)
    lowerbound.learn(sampled, partial(lowerbound.EMFit, e_step="sampled", num_samples=10), x, max_epochs=12, enable_progress_bar=False)
    assert sampled.log_prob(x).mean().item() == pytest.approx(exact.log_prob(x).mean().item(), abs=0.05)


@models
@pytest.mark.parametrize("holes", [False, True])
def test_em_in_float32_ends_where_float64_does(kind: str, holes: bool) -> None:
    """log p(x) per datum to 1e-3 nats, with a mean a hundred standard deviations from the origin."""
    x = rows(kind, 300)
    if kind != "bernoulli":
        x = x + 100
    x = with_holes(x) if holes else x
    double, single = build(kind, 1.0), build(kind, 1.0)
    for model in (double, single):
        torch.manual_seed(0)
        model.initialize(x, len(x))
    single.float()
    climb(double, x, 15)
    climb(single, x.float(), 15)
    assert all(parameter.dtype == torch.float32 for parameter in single.parameters())
    error = (single.log_prob(x.float()).double() - double.log_prob(x)).abs()
    assert error.max() < 1e-3


def test_a_start_forgets_what_was_learnt() -> None:
    x = rows("full", 60)
    model = build("full", 1.0)
    torch.manual_seed(0)
    model.initialize(x, len(x))
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    climb(model, x, 5)
    torch.manual_seed(0)
    model.initialize(x, len(x))
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


def test_the_prior_counts_once_the_number_of_data_is_known() -> None:
    model, x = build("full", 1.0), rows("full", 30)
    assert prior_of(model) == 0
    step(model, x)
    assert prior_of(model) != 0
    assert model.likelihood.num_data.item() == pytest.approx(30)
    assert (np.diff(climb(model, x, 10)) >= -1e-10).all()


def test_gradient_counts_the_prior_of_the_parameters_without_a_start() -> None:
    x = rows("full")
    model = build("full", pseudo_counts=5.0)
    lowerbound.learn(model, lowerbound.GradientFit, x, max_epochs=1, enable_progress_bar=False)
    assert model.prior.num_data == 42, "of 60 rows, the training part"
    assert float(model.log_prior()) != 0
