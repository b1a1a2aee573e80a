"""What a source reads: tables of flat rows, and their labels."""

from __future__ import annotations

import warnings
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
        raise ValueError(f"the data are {tuple(table.shape)} of {table.dtype}, and not rows [N, D] of real numbers")
    for size, what in ((len(table), "rows"), (table[:1].numel(), "columns")):
        if not size:
            raise ValueError(f"the data are {tuple(table.shape)}: there are no {what}")
    return table.reshape(len(table), -1)


def as_labels(values: ArrayLike | Tensor) -> Tensor:
    """Class labels ``[N]`` as integers; names are numbered in alphabetical order.

    Raises:
        ValueError: a label is missing or infinite, or they are neither numbers nor names.
    """
    labels = np.asarray(values).reshape(-1)
    labels = labels.astype(str) if labels.dtype.kind == "O" else labels
    if labels.dtype.kind not in "buifUS":
        raise ValueError(f"the labels are of type {labels.dtype}, and neither numbers nor names")
    if labels.dtype.kind == "f" and (lost := int((~np.isfinite(labels)).sum())):
        raise ValueError(f"{lost} of {len(labels)} labels are NaN or infinite: every row has a class, or none has")
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
    if array.dtype.itemsize > 8:
        raise ValueError(f"the data are of type {array.dtype}, which torch does not have: convert them to float64")
    array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if any(step < 0 or step % array.itemsize for step in array.strides):  # which torch cannot look through
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        return torch.from_numpy(array)
