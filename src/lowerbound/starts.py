"""Starts: parameters set from training rows before the first step of learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor

from lowerbound.model import LatentVariableModel


class Start(ABC):
    """Where learning begins. Implement `__call__`."""

    @abstractmethod
    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Set the model's parameters from training rows x ``[n, D]``, a part of all `num_data`."""


@final
class FromRows(Start):
    """What each part makes of the rows: their mean, their variance, k-means++ seeds. Networks stay as they are."""

    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Ask the parts."""
        model.initialize(x, num_data)
