"""Images with labels, as flat rows of integers: each pixel one of `levels` grey values, in the order channel, row, column."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from lowerbound.data.module import TensorDataModule
from lowerbound.data.prepare import Preparation
from lowerbound.data.source import Source, as_labels, as_table
from lowerbound.errors import STUMBLES, flag


@dataclass(kw_only=True, eq=False, repr=False)
class Digits(TensorDataModule):
    """1,797 handwritten digits, 8 x 8 in 17 levels, which come with scikit-learn."""

    dim: int = 64
    shape: Sequence[int] | None = (1, 8, 8)
    prepare: Preparation = field(default_factory=lambda: Preparation(levels=17, dequantize=True))

    def read(self) -> Source:
        """Read scikit-learn's copy."""
        from sklearn.datasets import load_digits  # half a second, for this source only

        digits: Any = load_digits()
        return Source(torch.from_numpy(digits.data).to(torch.uint8), as_labels(digits.target), levels=17)


@dataclass(kw_only=True, eq=False, repr=False)
class TorchvisionImages(TensorDataModule):
    """MNIST, FashionMNIST, KMNIST or CIFAR10 as torchvision keeps them, with their own test part.

    They lie in `root`, else in the folder that the environment variable LOWERBOUND_DATA names, else in ``data``;
    `download` fetches them there where they are absent.
    """

    dataset: str
    root: str | None = None
    download: bool = True
    prepare: Preparation = field(default_factory=lambda: Preparation(levels=256, dequantize=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10"):
            raise ValueError(f"data.dataset={self.dataset} is none of MNIST, FashionMNIST, KMNIST, CIFAR10")
        flag(self.download, "data.download")

    @property
    def folder(self) -> Path:
        """Where the files are, or will be."""
        return Path(self.root or os.environ.get("LOWERBOUND_DATA") or "data")

    def prepare_data(self) -> None:
        """Download, on one process, what is absent."""
        self._load(train=True)
        self._load(train=False)

    def read(self) -> Source:
        """Read both parts."""
        return Source(*self._load(train=True), *self._load(train=False), levels=256)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            images = getattr(datasets, self.dataset)(self.folder, train=train, download=self.download)
        except (*STUMBLES, ValueError, OSError) as error:  # torchvision asserts what its files hold
            raise ValueError(
                f"{self.dataset} is not in {self.folder.absolute()} ({(str(error) or type(error).__name__).splitlines()[0]}).\n"
                f"Set data.root, or LOWERBOUND_DATA, to the folder that holds {self.dataset}/, "
                f"or train with data.download=true (now {self.download})."
            ) from error
        pixels = torch.as_tensor(images.data)
        if pixels.ndim == 4:
            pixels = pixels.permute(0, 3, 1, 2)  # [N, H, W, C] to [N, C, H, W]
        return as_table(pixels), as_labels(images.targets)
