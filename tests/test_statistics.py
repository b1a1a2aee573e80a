"""Sums over data: whatever the partition, the moments, factors and spectra are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from lowerbound.statistics import Moments, Spectrum, Triangle, added, mixed, moments_of, triangle_of

D = 7
SIZES = [[60], [1] * 60, [5, 55], [20, 1, 39], [8] * 7 + [4]]


def rows(count: int = 60, dim: int = D, mean: float = 3.0, seed: int = 0) -> Tensor:
    """Correlated rows of unequal variances."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dim, dim)) * np.geomspace(1, 0.05, dim)
    return torch.from_numpy(generator.normal(size=(count, dim)) @ mixing.T + mean)


def spectrum_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the covariance over n, falling, and eigenvectors."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return values[::-1], vectors[:, ::-1]


def orthogonal(rows: int, columns: int, seed: int) -> np.ndarray:
    """Orthonormal columns that are orthogonal to the constant vector."""
    raw = np.random.default_rng(seed).normal(size=(rows, columns))
    return np.linalg.qr(raw - raw.mean(0))[0]


# Law 6


@pytest.mark.parametrize("sizes", SIZES)
def test_moments_do_not_depend_on_the_partition(sizes: list[int]) -> None:
    x = rows()
    found = moments_of(x.split(sizes))
    assert found.count == 60
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-12)
    scatter = 60 * np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-12, atol=1e-12 * np.abs(scatter).max())


@pytest.mark.parametrize("sizes", SIZES)
def test_the_triangular_factor_does_not_depend_on_the_partition(sizes: list[int]) -> None:
    """R'R is the scatter, and R has no more rows than columns."""
    x = rows()
    found = triangle_of(x.split(sizes))
    assert found.factor.shape == (D + 1, D + 1)
    centred = found.factor[1:, 1:]
    scatter = 60 * np.cov(x.numpy().T, bias=True)
    np.testing.assert_allclose(centred.T @ centred, scatter, rtol=0, atol=1e-12 * np.abs(scatter).max())
    spectrum = found.spectrum()
    assert spectrum.count == 60
    np.testing.assert_allclose(spectrum.mean, x.numpy().mean(0), rtol=1e-12)


def test_a_factor_filled_up_with_zeros_is_the_same() -> None:
    """Ranks exchange factors of one size; a rank may have fewer rows than dimensions."""
    few, many = rows(3), rows(50, seed=1)
    filled = Triangle.of(few).padded(D + 1)
    assert filled.factor.shape == (D + 1, D + 1)
    one, other = filled.merged(Triangle.of(many)).spectrum(), triangle_of([few, many]).spectrum()
    for name in ("count", "mean", "variances", "axes"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)


# Precision


@pytest.mark.parametrize("summary", [moments_of, triangle_of])
def test_a_large_mean_costs_no_digits(summary) -> None:
    """Whole numbers, so that the same data about 0 and about 2^23 are both exact. A mean of 2^23 is known to 2e-9, its square to 0.02."""
    x = (10 * rows(mean=0.0)).round()
    near, far = (summary((x + shift).split(9)).spectrum() for shift in (0.0, 2.0**23))
    torch.testing.assert_close(far.variances, near.variances, rtol=0, atol=1e-7)
    torch.testing.assert_close(far.mean - 2.0**23, near.mean, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.bfloat16])
def test_small_types_are_summed_exactly(dtype: torch.dtype) -> None:
    x = torch.randint(0, 200, (60, D), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = moments_of(x.split(25))
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.scatter, 60 * np.cov(x.double().numpy().T, bias=True), rtol=1e-12)


def test_what_float32_rounds_off_a_mean_is_made_good() -> None:
    """Of a mean of 2^23 + 1/4 float32 keeps 2^23: the quarter would be in every square."""
    x = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(15).unsqueeze(1) + 2.0**23
    found = Moments.of(x)
    assert found.mean.item() == 2.0**23 + 0.25
    assert found.scatter.item() == 60 * 3 / 16


def test_blocks_of_float32_are_added_in_float64() -> None:
    """A block of two rows of whole numbers is exact in float32, and 3000 of them would not be: their sum passes 2^24."""
    x = torch.randint(-100, 100, (6000, D), generator=torch.Generator().manual_seed(0)).float()
    found = moments_of(x.split(2))
    np.testing.assert_allclose(found.scatter, 6000 * np.cov(x.double().numpy().T, bias=True), rtol=1e-12, atol=1e-3)


def test_where_squaring_the_condition_number_hurts_the_factor_keeps_the_digits() -> None:
    """Singular values from 1 to 1e-9: the square of the last is below the rounding of the covariance, not of the data."""
    singular = np.geomspace(1, 1e-9, D)
    x = torch.from_numpy(orthogonal(60, D, 0) * singular @ orthogonal(D + 1, D, 1)[:D].T)
    truth = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False) ** 2 / 60
    blocks = x.split(20)
    by_factor, by_moments = triangle_of(blocks).spectrum().variances.numpy(), moments_of(blocks).spectrum().variances.numpy()
    np.testing.assert_allclose(by_factor, truth, rtol=1e-5)  # 2 eps / 1e-9 = 4e-7, for the last
    assert abs(by_moments[-1] / truth[-1] - 1) > 0.5
    assert (np.abs(by_factor - truth) <= np.abs(by_moments - truth))[-2:].all()


# Spectra


@pytest.mark.parametrize("summary", [moments_of, triangle_of])
def test_the_spectrum_is_that_of_the_covariance(summary) -> None:
    x = rows()
    found = summary(x.split(25)).spectrum()
    values, vectors = spectrum_of(x.numpy())
    np.testing.assert_allclose(found.variances, values, rtol=1e-10)
    np.testing.assert_allclose(np.abs((found.axes.numpy() * vectors).sum(0)), 1, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy().T, bias=True), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.explained_ratio, PCA().fit(x.numpy()).explained_variance_ratio_, rtol=1e-10)
    assert (found.variances.diff() <= 0).all(), "falling"


def test_the_routes_agree_also_in_the_signs() -> None:
    x = rows()
    one, other = moments_of(x.split(25)).spectrum(), triangle_of(x.split(25)).spectrum()
    torch.testing.assert_close(one.axes, other.axes, rtol=1e-9, atol=1e-9)
    assert (one.axes.gather(0, one.axes.abs().argmax(0, keepdim=True)) > 0).all(), "the largest entry of an axis is positive"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_rows_than_dimensions(count: int) -> None:
    """They span count - 1 directions; the rest of the variance is 0."""
    x = rows(count)
    values, _ = spectrum_of(np.concatenate([x.numpy(), x.numpy()]))  # NumPy, too, has no covariance of one row
    one, other = Moments.of(x).spectrum(), Triangle.of(x).spectrum()
    assert other.axes.shape == (D, count - 1)
    assert one.count == other.count == count
    np.testing.assert_allclose(one.variances, values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(other.variances, values[: count - 1], rtol=1e-10)
    for latent_dim in range(min(count, D)):
        assert one.residual(latent_dim).item() == pytest.approx(values[latent_dim:].sum() / (D - latent_dim), abs=1e-12)
        assert other.residual(latent_dim).item() == pytest.approx(values[latent_dim:].sum() / (D - latent_dim), abs=1e-12)


def test_the_residual_keeps_the_digits_of_small_variances() -> None:
    """Total minus the first would leave rounding alone."""
    spectrum = Spectrum(torch.tensor(9.0), torch.zeros(4), torch.tensor([1.0, 3e-20, 1e-20], dtype=torch.float64), torch.eye(4)[:, :3])
    assert spectrum.residual(1).item() == pytest.approx(4e-20 / 3, rel=1e-10, abs=0)


# Sums by name


def test_statistics_add_and_mix() -> None:
    """Cappe & Moulines 2009, eq. 13."""
    one, other = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}, {"a": torch.tensor([5.0, 4.0]), "b": torch.tensor(7.0)}
    assert torch.equal(added(one, other)["a"], torch.tensor([6.0, 6.0]))
    both = mixed(one, other, 0.25)
    torch.testing.assert_close(both["a"], torch.tensor([2.0, 2.5]))
    torch.testing.assert_close(both["b"], torch.tensor(4.0))


def test_blocks_far_from_the_first_lose_no_digits_in_float32() -> None:
    """Two regimes of 8192 rows, 1000 apart along every dimension, about which the noise is 0.1."""
    x = 0.1 * torch.randn(2 * 8192, 8, generator=torch.Generator().manual_seed(0))
    x[8192:] += 1000
    exact, found = (Moments.of(rows).spectrum().variances for rows in (x.double(), x))
    torch.testing.assert_close(found[1:], exact[1:], rtol=1e-2, atol=0)
