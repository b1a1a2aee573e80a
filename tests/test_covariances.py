"""Every covariance of a Gaussian mixture against dense matrices: densities, sums, maxima, floors, missing entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

import mixture_oracles
import oracles
from lowerbound import conditioning, dense_covariances
from lowerbound.covariances import Covariance, Diagonal, Spherical
from lowerbound.dense_covariances import MAX_PATTERN_DIM, Dense, Full, LowRank, Tied, above_floor
from lowerbound.distributions import DenseNormal, observed_precision
from lowerbound.statistics import added
from mixture_oracles import DENSE, KINDS, Mixture, covariance_of_kind

ALGEBRA = 1e-10  # float64: some hundred additions of terms of order one
K, D = 3, 4
kinds = pytest.mark.parametrize("kind", KINDS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_holes(x: Tensor, seed: int = 7) -> Tensor:
    """A third of the entries missing, one row complete and one missing altogether."""
    x = x.masked_fill(random(*x.shape, seed=seed) > 0.4, torch.nan)
    x[0], x[1] = random(x.shape[1], seed=seed + 1), torch.nan
    return x


def covariance(kind: str, seed: int = 0) -> Covariance:
    made = covariance_of_kind(kind, K, D)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def oracle(made: Covariance, mean: Tensor) -> Mixture:
    return Mixture(np.ones(len(mean)), mean.numpy(), mixture_oracles.covariances(made))


def responsibilities(rows: int, seed: int = 3) -> Tensor:
    return random(rows, K, seed=seed).softmax(1)


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_densities_are_those_of_the_dense_matrices(kind: str, seed: int) -> None:
    made, mean, x = covariance(kind, seed), random(K, D, seed=seed), 2 * random(7, D, seed=seed + 1)
    found = made.log_densities(x, mean).detach().numpy()
    np.testing.assert_allclose(found, oracle(made, mean).log_joint(x.numpy()), atol=ALGEBRA, rtol=ALGEBRA)


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_densities_of_incomplete_rows_are_marginals(kind: str, seed: int) -> None:
    made, mean, x = covariance(kind, seed), random(K, D, seed=seed), with_holes(2 * random(9, D, seed=seed + 1), seed)
    found = made.log_densities(x, mean).detach().numpy()
    np.testing.assert_allclose(found, oracle(made, mean).log_joint(x.numpy()), rtol=0, atol=1e-8)  # an inverse more than above
    np.testing.assert_allclose(found[1], 0, rtol=0, atol=1e-12, err_msg="nothing observed")  # log |Sigma| + log |Sigma^-1|


@kinds
def test_densities_do_not_depend_on_how_many_rows_go_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, mean, x = covariance(kind), random(K, D), with_holes(random(40, D, seed=1))
    together, complete = made.log_densities(x, mean), made.log_densities(x[:1].expand(40, -1), mean)
    monkeypatch.setattr(conditioning, "CELLS", 5 * K * D * D)
    monkeypatch.setattr(dense_covariances, "ROWS", 7)
    torch.testing.assert_close(made.log_densities(x, mean), together, atol=ALGEBRA, rtol=0)
    torch.testing.assert_close(made.log_densities(x[:1].expand(40, -1), mean), complete, atol=ALGEBRA, rtol=0)


@kinds
def test_the_distribution_of_a_component_has_its_density(kind: str) -> None:
    made, mean, x = covariance(kind), random(K, D), with_holes(random(9, D, seed=1))
    z = torch.eye(K, dtype=torch.float64).unsqueeze(1)  # [K, 1, K]
    p = made.distribution(z, z @ mean)
    torch.testing.assert_close(p.observed_log_prob(x).T, made.log_densities(x, mean), atol=1e-8, rtol=0)


@kinds
def test_gradients_of_densities_are_those_of_autograd_through_the_dense_one(kind: str) -> None:
    made, x, r = covariance(kind), 2 * random(12, D, seed=1), responsibilities(12)
    mean = random(K, D).requires_grad_()
    (made.log_densities(x, mean) * r).sum().backward()
    found = [mean.grad, *(parameter.grad for parameter in made.parameters())]
    for tensor in (mean, *made.parameters()):
        tensor.grad = None
    matrices = torch.stack([dense(made, k) for k in range(K)])
    (MultivariateNormal(mean, matrices).log_prob(x.unsqueeze(1)) * r).sum().backward()
    for one, other in zip(found, [mean.grad, *(parameter.grad for parameter in made.parameters())], strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def dense(made: Covariance, k: int) -> Tensor:
    """Sigma_k written out in torch, for its gradient."""
    if isinstance(made, (Spherical, Diagonal)):
        return ((made.min_scale + made.log_scale[k].exp()) ** 2).expand(D).diag()
    if isinstance(made, LowRank):
        return made.weight[k] @ made.weight[k].T + (made.min_scale + made.log_scale[k].exp()) ** 2 * torch.eye(D, dtype=torch.float64)
    assert isinstance(made, (Full, Tied))
    k = k if isinstance(made, Full) else 0
    factor = made.lower[k].tril(-1) + (made.min_scale + made.log_diagonal[k].exp()).diag()
    return factor @ factor.T


@kinds
def test_missing_entries_leave_no_trace_in_the_gradient(kind: str) -> None:
    made, mean, x = covariance(kind), random(K, D).requires_grad_(), with_holes(random(9, D, seed=1))
    made.log_densities(x, mean).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (mean, *made.parameters()))
    before, only = made.log_densities(x[:1], mean).sum(), x[:1].clone()
    only[0, 2] = torch.nan
    (gradient,) = torch.autograd.grad(made.log_densities(only, mean).sum(), mean)
    assert before.isfinite()
    assert (gradient[:, 2] == 0).all()
    assert (gradient[:, [0, 1, 3]] != 0).all()


# Sums


@kinds
def test_sums_are_weighted_moments(kind: str) -> None:
    made, mean, x, r = covariance(kind), random(K, D), 1 + random(20, D, seed=1), responsibilities(20)
    found = made.statistics(x, mean, r)
    second = torch.einsum("nk,nd,ne->kde", r, x, x)
    if kind not in DENSE:
        second = second.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found["first"], r.T @ x, atol=ALGEBRA, rtol=0)
    torch.testing.assert_close(found["second"], second, atol=ALGEBRA, rtol=0)
    torch.testing.assert_close(found["count"], r.sum(0) if kind in DENSE else r.sum(0).unsqueeze(1).expand(K, D), atol=ALGEBRA, rtol=0)


@pytest.mark.parametrize("kind", DENSE)
def test_sums_over_missing_entries_are_those_of_the_regression(kind: str) -> None:
    made, mean, x, r = covariance(kind), random(K, D), with_holes(random(12, D, seed=1)), responsibilities(12)
    found, known = made.statistics(x, mean, r), oracle(made, mean)
    first, second = np.zeros((K, D)), np.zeros((K, D, D))
    for row, weights in zip(x.numpy(), r.numpy(), strict=True):
        for k, weight in enumerate(weights):
            filled, left = known.regressed(row, k)
            first[k] += weight * filled
            second[k] += weight * (np.outer(filled, filled) + left)
    np.testing.assert_allclose(found["first"].detach().numpy(), first, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["second"].detach().numpy(), second, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["spherical", "diagonal"])
def test_sums_leave_missing_entries_out_where_none_goes_with_another(kind: str) -> None:
    made, mean, x, r = covariance(kind), random(K, D), with_holes(random(12, D, seed=1)), responsibilities(12)
    found = made.statistics(x, mean, r)
    for k, d in np.ndindex(K, D):
        seen = ~x[:, d].isnan()
        for name, power in (("count", 0), ("first", 1), ("second", 2)):
            assert found[name][k, d].item() == pytest.approx((r[seen, k] * x[seen, d] ** power).sum().item(), abs=ALGEBRA)


@kinds
@pytest.mark.parametrize("holes", [False, True])
def test_sums_add_up_over_any_partition(kind: str, holes: bool) -> None:
    made, mean, r = covariance(kind), random(K, D), responsibilities(30)
    x = with_holes(random(30, D, seed=1)) if holes else random(30, D, seed=1)
    whole = made.statistics(x, mean, r)
    parts = [made.statistics(x[rows], mean, r[rows]) for rows in torch.arange(30).split([1, 13, 2, 14])]
    total = parts[0]
    for part in parts[1:]:
        total = added(total, part)
    assert all(value.dtype == torch.float64 for value in total.values())
    for name, value in whole.items():
        torch.testing.assert_close(total[name], value, atol=1e-9, rtol=0)


# Maxima


def drawn_scatter(seed: int = 5) -> tuple[Tensor, Tensor]:
    """Counts and scatter matrices of K components."""
    root = random(K, D, 3 * D, seed=seed)
    return torch.tensor([5.0, 11.0, 40.0], dtype=torch.float64), root @ root.mT


def given_to(made: Covariance, counts: Tensor, scatter: Tensor) -> None:
    """Counts and scatter as the kind takes them."""
    if isinstance(made, Dense):
        made.maximize(counts, scatter)
    else:
        made.maximize(counts.unsqueeze(1).expand(K, D), scatter.diagonal(dim1=1, dim2=2))


def expected(matrices: np.ndarray, counts: Tensor, scatter: Tensor) -> float:
    """-1/2 sum_k N_k log |Sigma_k| + tr(Sigma_k^-1 S_k)."""
    terms = zip(matrices, counts.numpy(), scatter.numpy(), strict=True)
    return -0.5 * sum(n * np.linalg.slogdet(matrix)[1] + np.trace(np.linalg.solve(matrix, s)) for matrix, n, s in terms)


@kinds
def test_at_the_maximum_the_gradient_is_zero(kind: str) -> None:
    made, (counts, scatter) = covariance(kind), drawn_scatter()
    given_to(made, counts, scatter)
    np.testing.assert_allclose(
        mixture_oracles.covariances(made), mixture_oracles.shaped(kind, scatter.numpy(), counts.numpy()), rtol=0, atol=1e-9
    )
    for parameter in made.parameters():
        start = parameter.detach().clone()

        def value(raw: np.ndarray, parameter: torch.nn.Parameter = parameter) -> float:
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(raw))
            return expected(mixture_oracles.covariances(made), counts, scatter)

        slope = oracles.finite_difference(value, start.numpy().copy(), 1e-5)
        value(start.numpy())
        assert np.abs(slope).max() < 1e-6 * counts.sum().item()


@kinds
def test_below_the_floor_no_feasible_covariance_is_better(kind: str) -> None:
    """Scatter with one direction empty; the rivals are covariances of the kind, eigenvalues at least at the floor."""
    floor, counts = 0.3, torch.tensor([5.0, 11.0, 40.0], dtype=torch.float64)
    root = random(K, D, 3 * D, seed=5) * torch.tensor([1.5, 1.0, 0.4, 0.0], dtype=torch.float64).unsqueeze(1)
    scatter = root @ root.mT / 3 / D * counts[:, None, None]
    if kind == "spherical":
        scatter = scatter * 0.01
    made = covariance_of_kind(kind, K, D, floor)
    given_to(made, counts, scatter)
    best = mixture_oracles.covariances(made)
    assert np.linalg.eigvalsh(best).min() > floor**2 * (1 - 1e-9)
    assert made.floored() == K
    draws = np.random.default_rng(0)
    for size in np.repeat([1e-3, 1e-2, 0.1, 1.0], 25):
        noise = draws.normal(size=(K, D, D)) * size
        rivals = mixture_oracles.shaped(kind, (best + noise + noise.transpose(0, 2, 1)) * counts.numpy()[:, None, None], counts.numpy())
        values, vectors = np.linalg.eigh(rivals)
        rivals = (vectors * np.maximum(values, floor**2)[:, None]) @ vectors.transpose(0, 2, 1)
        assert expected(rivals, counts, scatter) <= expected(best, counts, scatter) + 1e-9


def test_a_matrix_above_the_floor_is_left_alone() -> None:
    _, scatter = drawn_scatter()
    factors = above_floor(scatter, 1e-3)
    np.testing.assert_allclose(factors.numpy(), np.linalg.cholesky(scatter.numpy()), rtol=0, atol=ALGEBRA)


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_collinear_columns_of_any_size_end_at_the_floor(size: float) -> None:
    column = size * random(50, 1)
    x = torch.cat([column, column, column + size * random(50, 1, seed=1)], 1)
    factor = above_floor((x.T @ x / 50).unsqueeze(0), 1e-3)[0]
    assert (factor.diagonal() > 0).all()
    assert torch.equal(factor, factor.tril())
    singular = torch.linalg.svdvals(factor)
    digits = 2e-8 * singular[0].item()  # the root of what float64 can tell from the largest eigenvalue
    assert singular[-1].item() == pytest.approx(1e-3, rel=1e-6, abs=digits)
    torch.testing.assert_close(singular[0].square(), torch.linalg.eigvalsh(x.T @ x / 50)[-1], rtol=1e-9, atol=0)


@kinds
def test_floors_are_counted(kind: str) -> None:
    made, (counts, scatter) = covariance_of_kind(kind, K, D, 0.1), drawn_scatter()
    given_to(made, counts, scatter)
    assert made.floored() == 0
    scatter[1] *= 1e-8
    given_to(made, counts, scatter)
    assert made.floored() == (0 if kind == "tied" else 1)


@pytest.mark.parametrize("kind", ["spherical", "diagonal"])
def test_a_scale_of_which_nothing_was_observed_stays(kind: str) -> None:
    made = covariance(kind)
    before = made.variances().detach().clone()
    counts = torch.ones(K, D, dtype=torch.float64)
    counts[0] = 0
    made.maximize(counts, 4 * counts)
    torch.testing.assert_close(made.variances()[0], before[0])
    torch.testing.assert_close(made.variances()[1:], torch.full((K - 1, D), 4.0, dtype=torch.float64))


@kinds
def test_a_restarted_component_takes_the_covariance_of_the_heaviest(kind: str) -> None:
    made = covariance(kind)
    before = mixture_oracles.covariances(made).copy()
    with torch.no_grad():
        made.restart(torch.tensor([True, False, False]), torch.tensor(2))
    after = mixture_oracles.covariances(made)
    np.testing.assert_array_equal(after[0], before[2])
    np.testing.assert_array_equal(after[1:], before[1:])


# What else is asked of a covariance


@kinds
def test_penalty_variances_and_stretch_are_those_of_the_matrices(kind: str) -> None:
    made, spread, steps = covariance(kind), random(D, seed=2).exp(), random(K, D, seed=3)
    matrices = mixture_oracles.covariances(made)
    penalty = sum(np.linalg.slogdet(matrix)[1] + np.trace(np.linalg.inv(matrix) * spread.numpy()) for matrix in matrices)
    assert made.penalty(spread).item() == pytest.approx(penalty, abs=1e-9)
    np.testing.assert_allclose(made.variances().detach().numpy(), np.diagonal(matrices, axis1=1, axis2=2), rtol=0, atol=ALGEBRA)
    stretched = made.stretched(steps).detach().numpy()
    lengths = [step @ np.linalg.solve(matrix, step) for step, matrix in zip(stretched, matrices, strict=True)]
    np.testing.assert_allclose(lengths, steps.square().sum(1).numpy(), rtol=1e-9)


@kinds
def test_given_what_was_observed_the_rest_is_regressed(kind: str) -> None:
    made, mean, x = covariance(kind), random(K, D), with_holes(random(9, D, seed=1))
    found, known = made.conditional(x, mean), oracle(made, mean)
    for n, row in enumerate(x.numpy()):
        hidden = np.isnan(row)
        for k in range(K):
            filled, left = known.regressed(row, k)
            np.testing.assert_allclose(found.mean[n, k].detach().numpy()[hidden], filled[hidden], rtol=0, atol=1e-9)
            np.testing.assert_allclose(found.variance[n, k].detach().numpy()[hidden], np.diag(left)[hidden], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", DENSE)
def test_missing_entries_are_refused_where_they_cost_too_much(kind: str) -> None:
    covariance_of_kind(kind, 1, MAX_PATTERN_DIM).check_missing()
    covariance_of_kind("diagonal", 1, MAX_PATTERN_DIM + 1).check_missing()
    with pytest.raises(ValueError, match=f"inverse of a {MAX_PATTERN_DIM + 1} x {MAX_PATTERN_DIM + 1} matrix"):
        covariance_of_kind(kind, 1, MAX_PATTERN_DIM + 1).check_missing()


def test_sizes_and_floors_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim=4 must be below"):
        LowRank(2, 4, 4)
    with pytest.raises(ValueError, match=r"covariance\.min_scale"):
        Full(2, 4, min_scale=0.0)
    with pytest.raises(ValueError, match="num_components"):
        Diagonal(0, 4)


# Dense normals


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_a_dense_normal_marginalises_missing_entries(seed: int, dim: int) -> None:
    factor = random(dim, dim, seed=seed).tril(-1) + random(dim, seed=seed + 1).exp().diag()
    loc, x = random(dim, seed=seed + 2), with_holes(random(6, dim, seed=seed + 3), seed)
    covariance = (factor @ factor.T).numpy()
    found = DenseNormal(loc, scale_tril=factor).observed_log_prob(x).numpy()
    for value, row in zip(found, x.numpy(), strict=True):
        seen = ~np.isnan(row)
        expected = stats.multivariate_normal(loc.numpy()[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen]) if seen.any() else 0.0
        assert value == pytest.approx(expected, abs=1e-8, rel=1e-8)
    complete, plain = random(6, dim, seed=seed), MultivariateNormal(loc, scale_tril=factor)
    assert torch.equal(DenseNormal(loc, scale_tril=factor).observed_log_prob(complete), plain.log_prob(complete))


def test_the_inverse_of_an_observed_block_is_zero_elsewhere() -> None:
    root = random(D, 2 * D)
    matrix, missing = root @ root.T, torch.tensor([False, True, False, True])
    precision, log_det = observed_precision(matrix, missing)
    block = matrix[~missing][:, ~missing]
    torch.testing.assert_close(precision[~missing][:, ~missing], block.inverse(), atol=ALGEBRA, rtol=0)
    assert (precision[missing] == 0).all()
    assert (precision[:, missing] == 0).all()
    assert log_det.item() == pytest.approx(torch.logdet(block).item(), abs=ALGEBRA)


def test_a_small_responsibility_counts_where_most_are_none() -> None:
    """Of 12 components a datum belongs to one, and by 1e-9 to another that nearly nothing else belongs to."""
    x, count = random(40, 6), 12
    r = torch.zeros(40, count, dtype=torch.float64)
    r[torch.arange(40), torch.arange(40) % 10] = 1.0
    r[:, 11] = 1e-9
    second = Full(count, 6).statistics(x, torch.zeros(count, 6).double(), r)["second"]
    torch.testing.assert_close(second, torch.einsum("nk,nd,ne->kde", r, x, x), rtol=1e-12, atol=1e-20)
