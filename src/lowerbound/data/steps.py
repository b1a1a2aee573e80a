"""The steps of a preparation, ``[N, D] -> [N, D]``, each with its inverse and log-Jacobian.

    dequantize      v + u, u uniform on (0, 1)          integers v in 0..levels-1 become a density on [0, levels]
    scale           v / divisor
    binarize        v >= 1/2, or a draw of Bernoulli(v)
    standardize     (v - mean) / sd                     statistics of the training part

NaN entries are missing, and stay so.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn


class Step(nn.Module, ABC):
    """One step of a preparation. `is_random` says that every use draws afresh from the generator."""

    is_random: bool = False

    @abstractmethod
    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """The step of x ``[N, D]``, in the floating type of x."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x ``[N, D]`` that the step made y of."""

    def log_jacobian(self, x: Tensor) -> Tensor:
        """log |det d step / d x| ``[N]`` in nats over the observed entries, float64; 0 unless the step stretches."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)


class Dequantize(Step):
    """v + u: integers below `levels` become a density of the same mass on each unit interval (Theis et al. 2016)."""

    is_random = True

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """x plus noise, kept so far inside (0, 1) that no later rounding carries a value into its neighbour's interval."""
        edge = 4 * self.levels * torch.finfo(x.dtype).eps
        return uniform(x, generator).clamp_(edge, 1 - edge).add_(x)

    def inverse(self, y: Tensor) -> Tensor:
        """The integer below y."""
        return y.floor()

    def extra_repr(self) -> str:
        """What it is of."""
        return f"{self.levels} levels"


class Scale(Step):
    """x / divisor."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """x / divisor."""
        return x / self.divisor

    def extra_repr(self) -> str:
        """By what."""
        return f"{self.divisor:g}"

    def inverse(self, y: Tensor) -> Tensor:
        """y * divisor."""
        return y * self.divisor

    def log_jacobian(self, x: Tensor) -> Tensor:
        """-log divisor for every observed entry, ``[N]``."""
        return -(~x.isnan()).sum(-1) * torch.tensor(self.divisor, dtype=torch.float64, device=x.device).log()


class Threshold(Step):
    """1 where x in [0, 1] is at least 1/2, else 0. Discrete: its inverse is the bit itself."""

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """The bits of x."""
        return torch.where(x.isnan(), x, (x >= 0.5).to(x.dtype))

    def inverse(self, y: Tensor) -> Tensor:
        """y."""
        return y


class BernoulliDraw(Step):
    """A draw of Bernoulli(x), x in [0, 1] (dynamic binarization). Discrete: its inverse is the bit itself."""

    is_random = True

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Bits with probabilities x, up to 2^-17."""
        return uniform(x, generator).sub_(x).floor_().abs_()  # u < x as arithmetic: a comparison would make 0 of NaN

    def inverse(self, y: Tensor) -> Tensor:
        """y."""
        return y


class Standardize(Step):
    """(x - mean) / scale, column by column; `mean` and `scale` ``[D]`` are learnt by `fit` and kept in float64.

    The scale of a constant column is 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("scale", torch.empty(0, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_resize)

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics are there."""
        return self.mean.numel() > 0

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Learn mean and scale of the observed entries of all chunks ``[N, D]``, and warn of constant columns."""
        mean, variance, is_constant = _moments(chunks)
        if is_constant.any():
            constant = int(is_constant.sum())
            warnings.warn(f"standardize: {constant} columns of the training data are constant; their scale is 1", stacklevel=2)
        self.mean, self.scale = mean, torch.where(is_constant, 1.0, variance.sqrt())

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """x, standardized."""
        mean, scale = self._statistics(x)
        return ((x - mean) / scale).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """y in the units it had."""
        mean, scale = self._statistics(y)
        return (y * scale + mean).to(y.dtype)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """Minus the sum of log scale over the observed entries, ``[N]``."""
        return -(~x.isnan()).double() @ self._statistics(x)[1].log()

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_fitted:
            raise ValueError("standardize has no statistics yet: call Preparation.fit(x_train), or the data module's setup(), first")
        return self.mean.to(x.device), self.scale.to(x.device)


def _resize(step: Standardize, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for the statistics of a checkpoint: their size is not known before."""
    step.mean, step.scale = (torch.empty_like(state_dict.get(prefix + name, step.mean)) for name in ("mean", "scale"))


def _moments(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (divided by n) and whether it is constant, of each column's observed entries; ``[D]``, float64.

    Chunks are merged as in Chan, Golub & LeVeque 1983, so that a large mean costs no digits of the variance.
    """
    count, mean, squares = torch.zeros(3, 1, dtype=torch.float64)
    low, high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for x in (chunk.double() for chunk in chunks):
        seen = ~x.isnan()
        n = seen.sum(0)
        m = x.nansum(0) / n.clamp(min=1)
        total = (count + n).clamp(min=1)
        squares = squares + (x - m).square().nansum(0) + (m - mean).square() * count * n / total
        mean, count = mean + (m - mean) * n / total, count + n
        low = torch.minimum(low, x.where(seen, torch.inf).amin(0))
        high = torch.maximum(high, x.where(seen, -torch.inf).amax(0))
    return mean, squares / count.clamp(min=1), low >= high


def run(steps: Iterable[Step], x: Tensor, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
    """x ``[N, D]`` through the steps, in `dtype`, or in that of x where it is finer."""
    x = x.to(torch.promote_types(x.dtype, dtype))
    for step in steps:
        x = step(x, generator)
    return x


def uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform draws in the shape of `like`: the midpoints of 2^16 cells of (0, 1).

    That is as fine as float32 resolves a value of 8 bits, and one word of the generator serves four entries, which costs
    half of `torch.rand`: on a CPU the noise of a batch is a tenth of the step of a small VAE.
    """
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    cells = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
    return cells.view(like.shape).to(like.dtype).add_(2**15 + 0.5).mul_(2.0**-16)
