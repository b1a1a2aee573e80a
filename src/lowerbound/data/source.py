"""What a source reads: tables of flat rows, and their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


class Source(NamedTuple):
    """What was read: tables ``[N, D]`` of any number type, class labels ``[N]``; `levels` where the values are known to be 0..levels-1."""

    train: Tensor
    train_labels: Tensor | None = None
    test: Tensor | None = None
    test_labels: Tensor | None = None
    levels: int | None = None
    is_mapped: bool = False


class Part(NamedTuple):
    """Prepared rows ``[n, D]`` and their labels ``[n]``, in host memory."""

    x: Tensor
    labels: Tensor | None


def as_table(values: ArrayLike | Tensor) -> Tensor:
    """Rows ``[N, D]`` of numbers, flattened from ``[N, ...]``; shares the memory of an array.

    Raises:
        ValueError: the values are no numbers, or fewer than two-dimensional.
    """
    table = values if isinstance(values, Tensor) else _as_tensor(np.asanyarray(values))
    if table.ndim < 2 or table.is_complex():
        raise ValueError(f"the data are {tuple(table.shape)} of {table.dtype}, and not rows of real numbers")
    if not len(table):
        raise ValueError(f"the data are {tuple(table.shape)}: there are no rows")
    return table.reshape(len(table), -1)


def as_labels(values: ArrayLike | Tensor) -> Tensor:
    """Class labels ``[N]`` as integers; names are numbered in alphabetical order."""
    labels = np.asarray(values).reshape(-1)
    try:
        numbers = labels.astype(np.float64)
    except ValueError:
        numbers = None
    if numbers is None or not (numbers == np.floor(numbers)).all():
        return torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    return torch.from_numpy(numbers.astype(np.int64))


def _as_tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "buif":
        raise ValueError(f"the data are of type {array.dtype}, and not numbers")
    return torch.from_numpy(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
