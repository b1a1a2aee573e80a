"""Preparation: from the numbers of a source to the x of a model, as a chain of steps.

    integers v in 0..levels-1   v + u                       dequantize, u uniform on (0, 1)
                                v / levels                  scale; v / (levels - 1) where not dequantized
                                v >= 1/2, or Bernoulli(v)   binarize
                                (v - mean) / sd             standardize

Every step has an inverse and a log-Jacobian, so that a log-density of prepared data can be told in the original units:
log p(original) = log p(prepared) + log |det d prepared / d original|.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor, nn

from lowerbound.data.steps import BernoulliDraw, Dequantize, Scale, Standardize, Step, Threshold, run
from lowerbound.errors import flag, whole

CHUNK = 1000  # rows that are prepared at once, which bounds the memory it takes
WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.float64}  # of types that torch cannot compare


class Preparation(nn.Module):
    """The chain of steps that the options describe. It takes x ``[N, D]`` of any type and keeps NaN.

    `levels` says that the data are integers 0..levels-1; None: they are continuous already. `scale` None means: where
    there are levels. `binarize` is ``none``, ``threshold`` or ``dynamic``.

    Raises:
        ValueError: options that exclude each other or need `levels`.
    """

    def __init__(
        self,
        levels: int | None = None,
        dequantize: bool = False,
        binarize: str = "none",
        standardize: bool = False,
        scale: bool | None = None,
    ) -> None:
        super().__init__()
        scale = levels is not None if scale is None else scale
        _check_options(levels, dequantize, binarize, standardize, scale)
        steps: list[Step] = []
        if levels and dequantize:
            steps.append(Dequantize(levels))
        if levels and scale and (dequantize or levels > 2):
            steps.append(Scale(levels if dequantize else levels - 1))
        if binarize != "none":
            steps.append(Threshold() if binarize == "threshold" else BernoulliDraw())
        if standardize:
            steps.append(Standardize())
        self.levels, self.steps = levels, nn.ModuleList(steps)

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Prepare x ``[N, D]``; the result has the default floating type, or that of x where it is finer."""
        return run(self.chain, torch.as_tensor(x), torch.get_default_dtype(), generator)

    def inverse(self, y: Tensor) -> Tensor:
        """The original ``[N, D]`` of prepared y, up to rounding; a binarized y goes back to the ends of the original range."""
        for step in reversed(self.chain):
            y = step.inverse(y)
        return y

    def log_jacobian(self, y: Tensor) -> Tensor:
        """log |det d prepared / d original| ``[N]`` in nats, at prepared y ``[N, D]``, float64.

        Sums over observed entries. Where the prepared data are discrete it is 0: a probability needs no volume.
        """
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        for step in [] if self.is_discrete else reversed(self.chain):
            y = step.inverse(y)
            total = total + step.log_jacobian(y)
        return total

    def check(self, x: Tensor) -> None:
        """Refuse data that the options do not describe.

        Raises:
            ValueError: infinite values, values that are no integers below `levels`, or, to be binarized, outside [0, 1].
        """
        low, high, is_integer = _range(x)
        found = f"the data are {'integers' if is_integer else 'numbers'} in [{low:.6g}, {high:.6g}]"
        if np.isinf([low, high]).any():
            raise ValueError(f"{found}: infinite values cannot be prepared; a missing entry is NaN")
        if self.levels is not None and not (is_integer and low >= 0 and high < self.levels):
            fits = f"data.prepare.levels={high + 1:.0f}" if is_integer and low >= 0 else "data.prepare.levels=null (continuous data)"
            raise ValueError(f"{found}, but data.prepare.levels={self.levels} says integers from 0 to {self.levels - 1}.\nSet {fits}.")
        if self.levels is None and self.is_discrete and not (low >= 0 and high <= 1):
            raise ValueError(f"{found}, but data.prepare.binarize=threshold takes numbers in [0, 1], or integers and data.prepare.levels.")

    def fit(self, x: Tensor, rows: Tensor | None = None) -> None:
        """Learn what is learnt from the training data x ``[N, D]``, or from the given rows of it; a fixed draw of random steps."""
        if not self.chain or not isinstance(last := self.chain[-1], Standardize):
            return
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(len(x)) if rows is None else rows
        last.fit(run(self.chain[:-1], x[chunk], torch.float64, generator) for chunk in rows.split(CHUNK))

    @property
    def chain(self) -> list[Step]:
        """All steps, in order."""
        return list(self.steps)  # pyright: ignore[reportReturnType] a ModuleList does not know what it holds

    @property
    def fixed(self) -> list[Step]:
        """The steps before the first random one: applied once to data in memory."""
        chain = self.chain
        return chain[: next((i for i, step in enumerate(chain) if step.is_random), len(chain))]

    @property
    def random(self) -> list[Step]:
        """The steps from the first random one on: applied at every use."""
        return self.chain[len(self.fixed) :]

    @property
    def is_fitted(self) -> bool:
        """Whether there is nothing (left) to learn from the training data."""
        return all(step.is_fitted for step in self.chain if isinstance(step, Standardize))

    @property
    def is_random(self) -> bool:
        """Whether training takes a fresh draw at every use."""
        return bool(self.random)

    @property
    def is_discrete(self) -> bool:
        """Whether prepared data are bits or integers, so that they have a probability and no density."""
        return isinstance(self.chain[-1], (Threshold, BernoulliDraw)) if self.chain else self.levels is not None


def _range(x: Tensor) -> tuple[float, float, bool]:
    """Least and greatest observed value of x ``[N, D]``, and whether all are integers."""
    low, high, is_integer = float("inf"), float("-inf"), True
    for chunk in x.split(CHUNK):
        chunk = chunk.to(WIDER.get(chunk.dtype, chunk.dtype))
        has_missing = chunk.is_floating_point() and bool(chunk.sum().isnan())  # also of inf - inf: then the costlier way, and as good
        observed = chunk[~chunk.isnan()] if has_missing else chunk
        if observed.numel():
            low, high = min(low, observed.min().item()), max(high, observed.max().item())
            is_integer = is_integer and (not observed.is_floating_point() or bool((observed == observed.floor()).all()))
    if low > high:
        raise ValueError("the data hold no observed value")
    return low, high, is_integer


def _check_options(levels: int | None, dequantize: bool, binarize: str, standardize: bool, scale: bool) -> None:
    if binarize not in ("none", "threshold", "dynamic"):
        raise ValueError(f"data.prepare.binarize={binarize} is none of none, threshold, dynamic")
    if levels is not None:
        whole(levels, "data.prepare.levels, of integers 0..levels-1 (null: continuous data),", least=2)
    for option, value in {"dequantize": dequantize, "standardize": standardize, "scale": scale}.items():
        flag(value, f"data.prepare.{option}")
    needs = {"dequantize=true": dequantize, "scale=true": scale, "binarize=dynamic": binarize == "dynamic"}
    for option in [option for option, is_set in needs.items() if is_set and levels is None]:
        raise ValueError(f"data.prepare.{option} is for integers 0..levels-1: state data.prepare.levels (256 for 8-bit images)")
    for option in [o for o, is_set in {"dequantize": dequantize, "standardize": standardize}.items() if is_set and binarize != "none"]:
        raise ValueError(
            f"data.prepare.binarize={binarize} makes bits, which data.prepare.{option}=true does not apply to.\nUnset one of them."
        )
    if binarize != "none" and levels is not None and not scale:
        raise ValueError(f"data.prepare.binarize={binarize} takes numbers in [0, 1]: set data.prepare.scale=true")
