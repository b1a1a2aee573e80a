"""Sums over data that models learn from, added over batches and ranks.

    Moments     n, the mean and the scatter sum_n (x_n - mean)(x_n - mean)'      merged as in Chan, Golub & LeVeque 1983
    Triangle    the triangular factor R of the centred data, R'R = scatter       the condition number is not squared
    Spectrum    eigenvalues and eigenvectors of the covariance scatter / n       Bishop 2006, eq. 12.3 and 12.5

The memory of each is that of the dimension, whatever the number of data. Products are taken in the data's own precision within a
block whose mean was removed; sums over blocks are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

Statistics = dict[str, Tensor]  # the sums of an E-step, by name
Sum = Callable[[Tensor], Tensor]  # over ranks


def added(one: Statistics, other: Statistics) -> Statistics:
    """The sums over both sets of data."""
    return {name: one[name] + other[name] for name in one}


def mixed(old: Statistics, new: Statistics, step_size: float) -> Statistics:
    """(1 - step_size) old + step_size new (Cappe & Moulines 2009, eq. 13)."""
    return {name: torch.lerp(old[name], new[name], step_size) for name in old}


def gram(x: Tensor) -> Tensor:
    """x' x ``[D, D]`` of rows x ``[N, D]``, float64."""
    if x.device.type == "cpu":  # numpy calls syrk, which is half the work of torch's product
        rows = x.detach().numpy()
        return torch.from_numpy(rows.T @ rows).double()
    return (x.T @ x).double()


@dataclass(frozen=True)
class Moments:
    """The count ``[]``, mean ``[D]`` and scatter ``[D, D]`` of data, float64."""

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Those of rows ``[N, D]``, none of them missing."""
        offset = x.mean(0)
        shifted = x - offset
        rest = shifted.sum(0, dtype=torch.float64) / len(x)  # what rounding left of the mean
        count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        return cls(count, offset.double() + rest, gram(shifted) - count * torch.outer(rest, rest))

    def merged(self, other: Moments) -> Moments:
        """Those of both sets of data."""
        count, shift = self.count + other.count, other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)

    def summed(self, over_ranks: Sum) -> Moments:
        """Those of the data of all ranks."""
        count = over_ranks(self.count)
        mean = over_ranks(self.count * self.mean) / count
        shift = self.mean - mean
        return Moments(count, mean, over_ranks(self.scatter + self.count * torch.outer(shift, shift)))

    def spectrum(self, num: int | None = None) -> Spectrum:
        """The largest eigenvalues of the covariance; all of them if `num` is None."""
        covariance = self.scatter / self.count
        total = covariance.diagonal().sum()
        values, vectors = eigenvectors(covariance, num)
        return Spectrum(self.count, self.mean, values.clamp(min=0), signed(vectors), total)


def eigenvectors(symmetric: Tensor, num: int | None = None) -> tuple[Tensor, Tensor]:
    """The `num` largest eigenvalues ``[num]``, falling, and their eigenvectors ``[D, num]``."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(-1)[..., :num], vectors.flip(-1)[..., :num]


def signed(axes: Tensor) -> Tensor:
    """The axes ``[D, L]``, each with the sign that makes its entry of largest magnitude positive."""
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Triangle:
    """R of the QR decomposition of [1, x - offset], whose lower right part is the factor of the centred data, float64.

    It grows by one block at a time: R of R stacked on the next rows is R of all of them (Golub & Van Loan 2013, section 5.2).
    """

    offset: Tensor  # [D]
    factor: Tensor  # [min(N, D + 1), D + 1]

    @classmethod
    def of(cls, x: Tensor) -> Triangle:
        """That of rows ``[N, D]``, none of them missing."""
        offset = x.double().mean(0)
        return cls(offset, _triangular(torch.cat([torch.ones_like(x[:, :1]), x - offset], 1).double()))

    def merged(self, other: Triangle) -> Triangle:
        """That of both sets of data."""
        shift = torch.zeros_like(other.factor)
        shift[:, 1:] = other.factor[:, :1] * (other.offset - self.offset)
        return Triangle(self.offset, _triangular(torch.cat([self.factor, other.factor + shift])))

    def square(self) -> Triangle:
        """The same with a factor ``[D + 1, D + 1]``, filled up with rows of zeros, which change nothing."""
        size = self.factor.shape[1]
        return Triangle(self.offset, torch.cat([self.factor, self.factor.new_zeros(size - len(self.factor), size)]))

    def spectrum(self, num: int | None = None) -> Spectrum:
        """The squared singular values of the centred data over n; min(N - 1, D) of them at most."""
        root = self.factor[0, 0]  # of n, up to its sign
        count = root.square()
        _, singular, axes = torch.linalg.svd(self.factor[1:, 1:], full_matrices=False)
        variances = singular.square() / count
        mean = self.offset + self.factor[0, 1:] / root
        return Spectrum(count.round(), mean, variances[:num], signed(axes.T[:, :num]), variances.sum())


def _triangular(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows, mode="r").R


@dataclass(frozen=True)
class Spectrum:
    """Principal variances, falling, ``[r]`` and axes ``[D, r]`` of data, with their mean ``[D]``; `total` is the variance of all D."""

    count: Tensor
    mean: Tensor
    variances: Tensor
    axes: Tensor
    total: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance ``[D, D]``, of a whole spectrum."""
        return (self.axes * self.variances) @ self.axes.T

    @property
    def explained_ratio(self) -> Tensor:
        """The share of the total variance along each axis, ``[r]``."""
        return self.variances / self.total

    def residual(self, latent_dim: int) -> Tensor:
        """The mean variance of the D - L directions beyond the first L: T&B 1999, eq. 8; Bishop 2006, eq. 12.46."""
        beyond = len(self.mean) - latent_dim
        return (self.total - self.variances[:latent_dim].sum()).clamp(min=0) / beyond


def moments_of(chunks: Iterable[Tensor]) -> Moments:
    """The moments of all chunks ``[n, D]``."""
    return reduce(Moments.merged, map(Moments.of, chunks))


def triangle_of(chunks: Iterable[Tensor]) -> Triangle:
    """The triangular factor of all chunks ``[n, D]``."""
    return reduce(Triangle.merged, map(Triangle.of, chunks))
