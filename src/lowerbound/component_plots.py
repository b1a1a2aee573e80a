"""Pictures of components, principal ones and those of mixtures: tensors in, matplotlib figures out, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lowerbound.linear_plots import DIVERGING
from lowerbound.plots import BLUE, GREY, ORANGE, VERMILLION, make_figure, show_grid
from lowerbound.statistics import signed
from lowerbound.study_plots import ON_WHITE

CHOICES = {"share": (GREY, "share of variance"), "evidence": (BLUE, "evidence"), "held_out": (VERMILLION, "held-out likelihood")}
DECADES = 1e-6  # of the largest variance: what lies below is rounding, or constant columns


def _ready(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def spectrum(
    variances: Tensor,
    noise: float,
    choices: Mapping[str, int],
    curves: Mapping[str, Tensor],
    axes: Tensor,
    shape: Sequence[int] | None,
) -> Figure:
    """Variances ``[r]`` with the noise variance and the numbers that were chosen; the curves over L that chose; the axes ``[D, K]``."""
    titles = ("Variance along each axis", "How well L components explain", f"The first {axes.shape[1]} axes")
    figure, (left, middle, right) = make_figure(12.4, 3.7, *titles)
    variances = _ready(variances)
    shown = variances.clamp(min=DECADES * variances[0].item())
    left.plot(range(1, len(shown) + 1), shown, "o-", color=ORANGE, markersize=3, linewidth=0.8)
    left.axhline(noise, color=BLUE, linewidth=0.9, linestyle=":", label="noise variance, by evidence")
    left.set(yscale="log", xlabel="component")
    for name, choice in choices.items():
        color, label = CHOICES[name]
        left.axvline(choice, color=color, linewidth=1, linestyle="--", label=f"{label}: {choice}")
    left.legend(**ON_WHITE, loc="lower left", bbox_to_anchor=(0, 0.12))
    for name, curve in curves.items():
        color, label = CHOICES[name]
        curve = _ready(curve)
        middle.plot(range(1, len(curve) + 1), curve - curve.max(), color=color, label=label)
        middle.plot(choices[name], 0.0, "o", color=color, markersize=4)
    middle.set(xlabel="L", ylabel="nats per datum below the best L")
    middle.set_ylim(min(-_ready(c.max() - c.median()).item() for c in curves.values()), None)
    middle.legend(frameon=False, fontsize=8, loc="lower right")
    _columns(right, _ready(axes), shape, 5)
    return figure


def recovered_axes(weight: Tensor, axes: Tensor, angles: Tensor, shape: Sequence[int] | None) -> Figure:
    """Columns of W ``[D, L]`` over the principal axes ``[D, L]``, and the angle, in degrees, of each to its axis ``[L]``."""
    titles = ("Columns of W, normalised", "Principal axes", "Angle of each column to its axis")
    figure, (left, middle, right) = make_figure(12.4, 3.2, *titles)
    columns = signed(torch.nn.functional.normalize(_ready(weight), dim=0))
    _columns(left, columns, shape, 5)
    _columns(middle, _ready(axes), shape, 5)
    right.bar(range(1, len(angles) + 1), _ready(angles).numpy(), color=BLUE)
    right.set(xlabel="component", ylabel="degrees", ylim=(0, 90))
    return figure


def loadings(weight: Tensor, shape: Sequence[int] | None) -> Figure:
    """Columns of W ``[D, L]``: images of `shape` ``[C, H, W]``, or a row of colours each."""
    columns = min(weight.shape[1], 10)
    height = 0.75 * -(-weight.shape[1] // columns) + 0.4 if shape is not None else 3.2
    figure, (axes,) = make_figure(0.7 * columns + 0.4 if shape is not None else 5.2, height, "Columns of W")
    _columns(axes, _ready(weight), shape, columns)
    return figure


def mixture(means: Tensor, weights: Tensor, shape: Sequence[int] | None, data: Tensor) -> Figure:
    """Component means ``[K, D]``, the heaviest first, and their weights ``[K]``.

    Images of `shape` ``[C, H, W]`` are in the grey levels of `data` ``[N, D]``; tables (shape None) are one row of colours each.
    """
    order = weights.argsort(descending=True)
    means, weights = _ready(means[order]), _ready(weights[order])
    columns, titles = min(len(means), 10), ["Component means, the heaviest first", "Weights"] if len(means) > 1 else ["Mean"]
    if shape is None:
        figure, (left, *others) = make_figure(4.2 * len(titles), 0.2 * min(len(means), 30) + 2.2, *titles)
        edges = (0.5, means.shape[1] + 0.5, len(means) + 0.5, 0.5)
        heat = left.imshow(means.numpy(), aspect="auto", cmap="viridis", interpolation="nearest", extent=edges)
        left.set(xlabel="dimension", ylabel="component")
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.colorbar(heat, ax=left)
    else:
        height = 0.62 * -(-len(means) // columns) * shape[1] / shape[2]
        figure, (left, *others) = make_figure(max(0.62 * columns, 3.0) * len(titles), max(height + 0.4, 1.8), *titles)
        show_grid(left, means, shape, columns, limits_from=_ready(data))
    for right in others:
        right.bar(range(1, len(weights) + 1), weights.numpy(), color=BLUE)
        right.set(xlabel="component")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _columns(axes: Axes, columns: Tensor, shape: Sequence[int] | None, width: int) -> None:
    """Directions ``[D, K]``, blue to red over -1 to 1 of the largest entry of each: images in rows of `width`, or a row of colours each."""
    unit = (columns / columns.abs().amax(0).clamp(min=1e-300)).T  # [K, D]
    if shape is None:
        edges = (0.5, len(columns) + 0.5, columns.shape[1] + 0.5, 0.5)
        axes.imshow(unit.numpy(), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest", aspect="auto", extent=edges)
        axes.set(xlabel="dimension", ylabel="column")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return
    images = unit.unflatten(1, tuple(shape)).mean(1)  # [K, H, W]
    missing = images.new_full((-len(images) % width, *images.shape[1:]), torch.nan)
    padded = torch.nn.functional.pad(torch.cat([images, missing]), (1, 1, 1, 1), value=torch.nan)
    grid = torch.cat([torch.cat(list(row), 1) for row in padded.split(width)])
    axes.imshow(grid.numpy(), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
