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

import numpy as np
import torch
from torch import Tensor, nn

Statistics = dict[str, Tensor]  # the sums of an E-step, by name
Sum = Callable[[Tensor], Tensor]  # over ranks


def added(one: Statistics, other: Statistics) -> Statistics:
    """The sums over both sets of data."""
    return {name: one[name] + other[name] for name in one}


def mixed(old: Statistics, new: Statistics, step_size: float) -> Statistics:
    """(1 - step_size) old + step_size new (Cappe & Moulines 2009, eq. 13)."""
    return {name: torch.lerp(old[name], new[name], step_size) for name in old}


BLOCK = 8192  # rows of which the products are taken at once


def _sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A point near the mean of rows ``[N, D]``, and the sums of what is left of x, ``[D]``, and of its products, ``[D, D]``; float64.

    On a processor all of it is numpy's, whose syrk is half the work of torch's product: the threads of the two would wait for each other.
    """
    if x.device.type != "cpu":
        shifted = x - (offset := x.mean(0))
        return offset.double(), shifted.sum(0, dtype=torch.float64), (shifted.T @ shifted).double()
    rows, dim = x.detach().numpy(), x.shape[1]
    offset, products = rows[:BLOCK].mean(0, dtype=np.float64), np.zeros((dim, dim))
    rests, shifts = [], []  # of each block, about its own mean and of that mean
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        shifted = block - (mean := block.mean(0))
        products += shifted.T @ shifted
        rests.append(shifted.sum(0, dtype=np.float64))
        shifts.append(mean - offset)
    rest, shift = np.stack(rests), np.stack(shifts)  # [blocks, D]
    counts = np.diff([*range(0, len(rows), BLOCK), len(rows)])[:, None]
    total = rest + counts * shift
    products += rest.T @ shift + shift.T @ total
    return torch.from_numpy(offset), torch.from_numpy(total.sum(0)), torch.from_numpy(products)


@dataclass(frozen=True)
class Moments:
    """The count ``[]``, mean ``[D]`` and scatter ``[D, D]`` of data, float64."""

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Those of rows ``[N, D]``, none of them missing."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        offset, total, products = _sums(x)
        count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        return cls(count, offset + total / count, products.addr_(total, total / -count))

    def merged(self, other: Moments) -> Moments:
        """Those of both sets of data."""
        count, shift = self.count + other.count, other.mean - self.mean
        scatter = (self.scatter + other.scatter).addr_(shift, shift * (self.count * other.count / count))  # and between the two
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    def summed(self, over_ranks: Sum) -> Moments:
        """Those of the data of all ranks."""
        count = over_ranks(self.count)
        mean = over_ranks(self.count * self.mean) / count
        shift = self.mean - mean
        return Moments(count, mean, over_ranks(self.scatter + self.count * torch.outer(shift, shift)))

    @property
    def squares(self) -> Tensor:
        """The diagonal of the scatter, ``[D]``."""
        return self.scatter.diagonal()

    def times(self, matrix: Tensor) -> Tensor:
        """The scatter times ``[D, L]``."""
        return self.scatter @ matrix

    def spectrum(self) -> Spectrum:
        """All D eigenvalues of the covariance."""
        values, vectors = eigenvectors(self.scatter / self.count)
        return Spectrum(self.count, self.mean, values.clamp(min=0), signed(vectors))


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues ``[D]``, falling, and their eigenvectors ``[D, D]``."""
    if symmetric.device.type != "cpu":
        values, vectors = torch.linalg.eigh(symmetric)
    else:  # by numpy, whose threads took the products
        values, vectors = map(torch.from_numpy, np.linalg.eigh(symmetric.detach().numpy()))
    return values.flip(-1), vectors.flip(-1)


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
        x = x.double()
        offset = x.mean(0)
        return cls(offset, _triangular(torch.cat([torch.ones_like(x[:, :1]), x - offset], 1)))

    def merged(self, other: Triangle) -> Triangle:
        """That of both sets of data."""
        shift = torch.zeros_like(other.factor)
        shift[:, 1:] = other.factor[:, :1] * (other.offset - self.offset)
        return Triangle(self.offset, _triangular(torch.cat([self.factor, other.factor + shift])))

    def padded(self, rows: int) -> Triangle:
        """The same with a factor of so many rows, filled up with zeros, which change nothing."""
        return Triangle(self.offset, nn.functional.pad(self.factor, (0, 0, 0, rows - len(self.factor))))

    @property
    def count(self) -> Tensor:
        """n ``[]``."""
        return self.factor[0, 0].square().round()

    @property
    def mean(self) -> Tensor:
        """The mean ``[D]``."""
        return self.offset + self.factor[0, 1:] / self.factor[0, 0]

    @property
    def centred(self) -> Tensor:
        """R ``[min(N - 1, D), D]``."""
        return self.factor[1:, 1:]

    @property
    def squares(self) -> Tensor:
        """The diagonal of R'R, ``[D]``."""
        return self.centred.square().sum(0)

    def times(self, matrix: Tensor) -> Tensor:
        """R'R times ``[D, L]``."""
        return self.centred.T @ (self.centred @ matrix)

    def spectrum(self) -> Spectrum:
        """The squared singular values of R over n, min(N - 1, D) of them."""
        _, singular, axes = torch.linalg.svd(self.centred, full_matrices=False)
        return Spectrum(self.count, self.mean, singular.square() / self.count, signed(axes.T))


def _triangular(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows, mode="r").R


@dataclass(frozen=True)
class Spectrum:
    """Principal variances, falling, ``[r]`` and axes ``[D, r]`` of data, with their mean ``[D]``; those not named have variance 0."""

    count: Tensor
    mean: Tensor
    variances: Tensor
    axes: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance ``[D, D]``."""
        return (self.axes * self.variances) @ self.axes.T

    @property
    def explained_ratio(self) -> Tensor:
        """The share of the total variance along each axis, ``[r]``."""
        return self.variances / self.variances.sum()

    def residual(self, latent_dim: int) -> Tensor:
        """The mean variance of the D - L directions beyond the first L: T&B 1999, eq. 8; Bishop 2006, eq. 12.46."""
        return self.variances[latent_dim:].sum() / (len(self.mean) - latent_dim)


def moments_of(chunks: Iterable[Tensor]) -> Moments:
    """The moments of all chunks ``[n, D]``."""
    return reduce(Moments.merged, map(Moments.of, chunks))


def triangle_of(chunks: Iterable[Tensor]) -> Triangle:
    """The triangular factor of all chunks ``[n, D]``."""
    return reduce(Triangle.merged, map(Triangle.of, chunks))
