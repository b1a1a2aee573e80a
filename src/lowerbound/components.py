"""Principal components: how many there are, and whether the columns of a trained W are they.

    share      the fewest L whose variances sum to a share of the total
    evidence   log p(X | L): axes, their variances and the noise of probabilistic PCA integrated out by Laplace's method
               (Minka 2001), up to a constant that is the same for every L
    held out   log p(x | L) of other data, by probabilistic PCA at its maximum (Tipping & Bishop 1999, eq. 7 and 8)

Each is computed for all L from one eigendecomposition of the covariance of the data.
"""

from __future__ import annotations

from math import log, pi
from typing import final

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lowerbound import component_plots
from lowerbound.axes import axis_angles, largest_angle, maps_of
from lowerbound.data.module import TensorDataModule
from lowerbound.data.source import as_table
from lowerbound.errors import real, whole
from lowerbound.fit import Fit
from lowerbound.model import LatentVariableModel
from lowerbound.statistics import Moments, Spectrum, moments_of
from lowerbound.studies import Answer, Study, copied, rows_of

ROUNDING = 1e-13  # a variance below this share of the largest is none


def by_share(spectrum: Spectrum, share: float) -> int:
    """The fewest components whose variances sum to at least `share` of the total."""
    enough = spectrum.explained_ratio.cumsum(0) >= real(share, "share", above=0, below=1)
    return min(int((~enough).sum()), len(enough) - 1) + 1  # all of them, where rounding leaves the sum below 1


def log_evidences(spectrum: Spectrum) -> Tensor:
    """log p(X | L) for L = 1, 2, ..., in nats for all data, up to one constant, ``[r - 1]`` for r variances above zero (Minka 2001).

    With d dimensions, variances l_1 > l_2 > ..., their mean v beyond the first L, and l'_j = l_j for j <= L, else v:

        log p(U) = -L log 2 + sum_{i <= L} log Gamma((d - i + 1) / 2) - (d - i + 1) / 2 log pi
        log |A| = sum_{i <= L} sum_{i < j <= d} log (1 / l'_j - 1 / l'_i) (l_i - l_j) N
        log p(X | L) = log p(U) - N/2 (sum_{i <= L} log l_i + (d - L) log v) + (m + L)/2 log 2 pi - 1/2 log |A| - L/2 log N

    where m = d L - L (L + 1) / 2. Where there are more rows than dimensions, directions without any variance are left out of d: of
    them it is known that they hold nothing, and they would make v a mean of noise and of zeros.
    """
    count, found = spectrum.count, spectrum.variances[spectrum.variances > ROUNDING * spectrum.variances[0]]
    rank = len(found)
    if rank < 2:
        return found.new_empty(0)
    dims = rank if count > len(spectrum.mean) else len(spectrum.mean)
    levels = torch.arange(1, rank).to(found)  # [r - 1], L
    beyond = dims - levels
    first = found[:-1]
    rest = (found.sum() - first.cumsum(0)) / beyond  # [r - 1], v
    frames = (torch.lgamma((dims - levels + 1) / 2) - (dims - levels + 1) / 2 * log(pi) - log(2)).cumsum(0)
    fit = first.log().cumsum(0) + beyond * rest.log()
    pairs = dims * levels - levels * (levels + 1) / 2  # m, also the number of pairs i < j
    curvature = _log_gaps(found, dims)[:-1].cumsum(0) + _log_inverse_gaps(first, rest, beyond) + pairs * count.log()
    return frames - count / 2 * fit + (pairs + levels) / 2 * log(2 * pi) - curvature / 2 - levels / 2 * count.log()


def _log_gaps(found: Tensor, dims: int) -> Tensor:
    """sum_{j > i} log (l_i - l_j) ``[r]``, zeros among the l_j included."""
    gaps = (found.unsqueeze(1) - found).clamp(min=ROUNDING * found[0]).log().triu(1)
    return gaps.sum(1) + (dims - len(found)) * found.log()


def _log_inverse_gaps(first: Tensor, rest: Tensor, beyond: Tensor) -> Tensor:
    """sum_{i <= L} sum_{j > i} log (1 / l'_j - 1 / l'_i) for L = 1, 2, ..., ``[r - 1]``."""
    smallest = ROUNDING / first[0]
    kept = (1 / first - 1 / first.unsqueeze(1)).clamp(min=smallest).log().triu(1)  # [r - 1, r - 1], of i < j
    among = kept.cumsum(0).cumsum(1).diagonal()
    to_rest = (1 / rest.unsqueeze(1) - 1 / first).clamp(min=smallest).log().tril()  # [r - 1, r - 1], of L and i <= L
    return among + beyond * to_rest.sum(1)


def held_out_log_probs(spectrum: Spectrum, x: Tensor, min_scale: float = 1e-3) -> Tensor:
    """The mean of log p(x | L) over other rows ``[M, D]``, nats per datum, for L = 1, 2, ... below D and up to all variances.

    W, b and s^2 are those of greatest likelihood for the data of the spectrum, s at least `min_scale`.
    """
    dims, floor = len(spectrum.mean), min_scale**2
    levels = torch.arange(1, min(len(spectrum.variances), dims - 1) + 1).to(spectrum.mean)
    kept = len(levels)
    error = x.to(spectrum.mean) - spectrum.mean
    squares = (error @ spectrum.axes[:, :kept]).square().mean(0)  # [L], along each axis
    variances = spectrum.variances[:kept]
    noise = ((spectrum.variances.sum() - variances.cumsum(0)) / (dims - levels)).clamp(min=floor)
    known = variances.clamp(min=floor)
    along = (known.log() + squares / known).cumsum(0)
    across = (dims - levels) * noise.log() + (error.square().sum(1).mean() - squares.cumsum(0)) / noise
    return -(along + across + dims * log(2 * pi)) / 2


def number_of_components(x: ArrayLike | Tensor, by: str = "evidence", share: float = 0.9, folds: int = 5, seed: int = 0) -> int:
    """How many principal components rows x ``[N, D]`` have.

    `by` is ``evidence``; ``share``: as many as make up that share of the variance; or ``held_out``: as many as give rows that were left
    out, a fold of `folds` at a time, in an order drawn by `seed`, the highest log-likelihood under probabilistic PCA.

    Raises:
        ValueError: an option is out of its range, or x has missing entries, too few rows or dimensions, or no variance.
    """
    rows = as_table(x).double()
    if by not in ("evidence", "share", "held_out"):
        raise ValueError(f"by={by!r} is unknown: evidence, share or held_out")
    if not rows.isfinite().all():
        raise ValueError("number_of_components needs rows without missing (NaN) or infinite entries")
    if len(rows) < 3 or rows.shape[1] < 2 or not (rows != rows[0]).any():
        raise ValueError(f"{tuple(rows.shape)} is too little: give at least three rows of at least two numbers, and not all of them equal")
    if by == "held_out":
        return _by_folds(rows, whole(folds, "folds", least=2), seed)
    spectrum = Moments.of(rows).spectrum()
    return by_share(spectrum, share) if by == "share" else best(log_evidences(spectrum))


def best(scores: Tensor) -> int:
    """The L of the highest score, scores ``[L]`` beginning at L = 1; 1 where there is no choice."""
    return int(scores.argmax()) + 1 if len(scores) else 1


def _by_folds(rows: Tensor, folds: int, seed: int) -> int:
    """The L that leaves the rows of each fold most likely, in the mean over folds, given those of the others."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    parts = [rows[part] for part in order.tensor_split(folds) if len(part)]
    found = [held_out_log_probs(moments_of([*parts[:i], *parts[i + 1 :]]).spectrum(), part) * len(part) for i, part in enumerate(parts)]
    return best(torch.stack(found).sum(0))


@final
class NumberOfComponents(Study):
    """The number of components of the training data by share, evidence and held-out likelihood, with the spectrum and the axes.

    Held out is the validation part. ``noise_variance`` is the mean variance beyond the number that the evidence chooses.
    """

    name, needs_all_entries = "number_of_components", True

    def __init__(self, share: float = 0.9, num_axes: int = 10) -> None:
        self.share = real(share, "share", above=0, below=1)
        self.num_axes = whole(num_axes, "num_axes")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Ask all three; the model itself is not asked."""
        spectrum = moments_of(x.double() for x in data.chunks("train")).spectrum()
        evidences = log_evidences(spectrum)
        held_out = held_out_log_probs(spectrum, data.part("val").x)
        choices = {"share": by_share(spectrum, self.share), "evidence": best(evidences), "held_out": best(held_out)}
        noise = spectrum.residual(choices["evidence"]).item()
        numbers = {f"{name}_components": float(choice) for name, choice in choices.items()} | {"noise_variance": noise}
        curves = {"evidence": evidences / spectrum.count, "held_out": held_out}
        axes = spectrum.axes[:, : self.num_axes]
        return Answer(numbers, component_plots.spectrum(spectrum.variances, noise, choices, curves, axes, data.shape))


@final
class RecoveredAxes(Study):
    """How near the columns of W have come to the principal axes of the training data, and reconstructions to those of PCA.

    Angles are in degrees: the largest principal angle between the span of W and that of the axes, the largest angle of a column of W to
    the axis of its index, and the largest of a left singular vector of W to the axis of its index. Squared errors are
    summed over x, means over the training data.
    """

    name, needs_all_entries = "recovered_axes", True

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if decoder or encoder is not linear."""
        maps_of(model)

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Compare."""
        model = copied(fit)
        x, weight = rows_of(data, "train", model), maps_of(model).weight
        spectrum = Moments.of(x).spectrum()
        axes, least = spectrum.axes[:, : model.latent_dim], spectrum.variances[model.latent_dim :].sum().item()
        angles = axis_angles(weight, axes)
        error = (x - model.reconstruct(x)).square().sum(1).mean().item()
        numbers = {
            "span_degrees": largest_angle(weight, axes),
            "columns_degrees": angles.max().item(),
            "singular_vectors_degrees": axis_angles(torch.linalg.svd(weight, full_matrices=False).U, axes).max().item(),
            "squared_error": error,
            "squared_error_of_pca_ratio": error / least,
        }
        return Answer(numbers, component_plots.recovered_axes(weight, axes, angles, data.shape))
