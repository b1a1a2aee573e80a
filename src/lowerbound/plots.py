"""Pictures of a model and of its run: tensors and columns in, matplotlib figures out.

Figures are objects, made without pyplot: nothing is registered anywhere and no window opens. Colours are those of Okabe and
Ito (2008), which readers with any colour vision can tell apart, and viridis where the order of the values matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from lowerbound.metrics import COLLAPSED

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000", "#999999", "#6B4C1E")
BLUE, VERMILLION, GREEN, ORANGE, *_, BLACK, GREY, _ = PALETTE
_CURVES = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL"}
DOTS: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0, "alpha": 0.7, "rasterized": True}
RESOLUTION = 150  # dots per inch of the files


def reconstructions(inputs: Tensor, outputs: Tensor, shape: Sequence[int] | None = None) -> Figure:
    """Inputs ``[N, D]`` beside their reconstructions ``[N, D]``.

    Images of `shape` ``[C, H, W]`` stand in two rows, the input above; tables (shape None) are one cloud of all entries, the
    reconstruction against the input. Missing entries (NaN) are orange in images and left out of tables.
    """
    inputs, outputs = _ready(inputs), _ready(outputs)
    if shape is None:
        return _cloud_of_entries(inputs, outputs, ("input", "reconstruction"), f"Entries of {len(inputs):,} data and their reconstructions")
    figure, (axes,) = make_figure(0.62 * len(inputs) + 0.9, 1.2 * shape[1] / shape[2] + 0.4, "Inputs and their reconstructions")
    show_grid(axes, torch.cat([inputs, outputs]), shape, columns=len(inputs), limits_from=inputs)
    axes.set_yticks([0.5 * (shape[1] + 1), 1.5 * (shape[1] + 1)], ["input", "reconstruction"])
    return figure


def filled_in(inputs: Tensor, filled: Tensor, truth: Tensor, shape: Sequence[int] | None = None) -> Figure:
    """Inputs ``[N, D]`` with holes (NaN), what the model fills them with, and the truth.

    Images of `shape` ``[C, H, W]`` stand in three rows, the holes orange; tables (shape None) are one cloud of the hidden entries,
    the filled-in value against the truth.
    """
    inputs, filled, truth = _ready(inputs), _ready(filled), _ready(truth)
    if shape is None:
        hidden = truth.where(inputs.isnan(), torch.nan)
        return _cloud_of_entries(hidden, filled, ("truth", "filled in"), f"Hidden entries of {len(inputs):,} data")
    figure, (axes,) = make_figure(0.62 * len(inputs) + 0.9, 1.8 * shape[1] / shape[2] + 0.4, "Hidden entries (orange), filled in")
    show_grid(axes, torch.cat([inputs, filled, truth]), shape, columns=len(inputs), limits_from=truth)
    axes.set_yticks([(i + 0.5) * (shape[1] + 1) for i in range(3)], ["input", "filled in", "truth"])
    return figure


def samples(draws: Tensor, shape: Sequence[int] | None = None, data: Tensor | None = None) -> Figure:
    """Draws of the model ``[N, D]``: the means of p(x | z) at z drawn from the prior.

    Images of `shape` ``[C, H, W]`` fill a grid, in the grey levels of `data` ``[M, D]``. Tables (shape None) are shown over the data
    in the data's first two principal components. Without data the draws take their place.
    """
    draws, data = _ready(draws), _ready(draws if data is None else data)
    title, columns = "Means of p(x | z), z drawn from the prior", math.ceil(math.sqrt(len(draws)))
    if shape is None:
        return _draws_over_data(draws, data, title)
    figure, (axes,) = make_figure(0.5 * columns + 0.2, 0.5 * math.ceil(len(draws) / columns) * shape[1] / shape[2] + 0.4, title)
    show_grid(axes, draws, shape, columns, limits_from=data)
    return figure


def latent_plane(codes: Tensor, labels: Tensor | None = None) -> Figure:
    """Codes ``[N, L]`` (posterior means), coloured by `labels` ``[N]`` where there are any.

    One dimension: histograms. Two: the plane. More: the first two principal components, with their shares of the variance.
    """
    labels = None if labels is None else labels.detach().cpu()
    points, names = plane(_ready(codes), "z")
    figure, (axes,) = make_figure(5.2, 4.2, f"Posterior means of {len(codes):,} data" + ("" if labels is None else ", by label"))
    axes.set(xlabel=names[0], ylabel=names[1] if len(names) > 1 else "number of data")
    if len(names) > 1:
        _scatter(axes, points, labels)
    else:
        _histograms(axes, points[:, 0], labels)
    return figure


def learning_curves(columns: Mapping[str, Sequence[float]]) -> Figure:
    """ELBO, reconstruction and KL of training and validation against optimizer steps, in nats per datum.

    `columns` are those of metrics.csv by name; a quantity that the model does not have gets no panel. The vertical axis is
    chosen for the last nine tenths of the run: the climb of the first steps would flatten the rest.
    """
    present = {name: title for name, title in _CURVES.items() if f"val/{name}" in columns}
    figure, panels = make_figure(3.0 * len(present) + 0.4, 2.7, *present.values())
    for axes, name in zip(panels, present, strict=True):
        _draw_curves(axes, columns, name)
        axes.set_xlabel("optimizer steps")
    panels[0].set_ylabel("nats per datum")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def kl_spectrum(kl: Tensor) -> Figure:
    """KL of each latent dimension ``[L]`` (or of each datum too, ``[N, L]``, then averaged) in nats, sorted, on a logarithmic axis.

    The line marks 0.01 nats, under which a dimension counts as collapsed: its posterior is the prior for every datum.
    """
    figure, (axes,) = make_figure(5.2, 3.2, "")
    draw_kl_spectrum(axes, kl)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image ``[H, W, 3]`` of bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file, of the kind that the path's ending names; what had the name, a pipe or a link too, is not written to."""
    path.unlink(missing_ok=True)
    Image.fromarray(pixels(figure)).save(path)


def _ready(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def make_figure(width: float, height: float, *titles: str) -> tuple[Figure, list[Axes]]:
    """A figure of some inches with a row of panels, one for each title, open above and to the right."""
    figure = Figure(figsize=(width, height), dpi=RESOLUTION, layout="constrained")
    panels = [figure.add_subplot(1, len(titles), i + 1) for i in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, panels


def show_grid(axes: Axes, x: Tensor, shape: Sequence[int], columns: int, limits_from: Tensor) -> None:
    """Images ``[N, D]`` in rows of `columns`, black to white over [0, 1] or, where the data leave it, over their range.

    Missing entries (NaN) are orange.
    """
    low, high = torch.cat([limits_from[~limits_from.isnan()], torch.tensor([0.0, 1.0])]).aminmax()
    images = ((x - low) / (high - low)).clamp(0, 1).unflatten(1, tuple(shape)).expand(-1, 3, -1, -1)  # [N, 3, H, W]
    images = images.where(~images.isnan(), torch.tensor(to_rgb(ORANGE), dtype=x.dtype).view(3, 1, 1))
    grid = make_grid(images, nrow=columns, padding=1, pad_value=1.0)  # [3, rows (H + 1) + 1, columns (W + 1) + 1]
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_kl_spectrum(axes: Axes, kl: Tensor) -> None:
    """The dots of `kl_spectrum` with their threshold and their title, in a panel."""
    kl = _ready(kl).mean(0) if kl.dim() == 2 else _ready(kl)
    values = kl.sort(descending=True).values.clamp(min=1e-6)  # a logarithmic axis has no zero
    used = int((values > COLLAPSED).sum())
    title = f"{used} of {len(values)} latent dimensions above {COLLAPSED} nats; {kl.sum().item():.2f} nats in all"
    axes.set_title(title, fontsize=10, loc="left")
    ranks = torch.arange(1, len(values) + 1)
    axes.plot(ranks[:used], values[:used], "o", color=BLUE, markersize=5)
    axes.plot(ranks[used:], values[used:], "o", color=ORANGE, markersize=5)
    axes.axhline(COLLAPSED, color=BLACK, linewidth=0.8, linestyle="--", label=f"collapsed: below {COLLAPSED} nats")
    axes.legend(frameon=False, fontsize=8)
    axes.set_ylim(min(COLLAPSED, values.min().item()) / 3, 2 * max(COLLAPSED, values.max().item()))
    axes.set(yscale="log", xlabel="latent dimension, in order of KL", ylabel="KL(q(z | x), p(z)), nats per datum")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _cloud_of_entries(inputs: Tensor, outputs: Tensor, names: tuple[str, str], title: str, most: int = 5000) -> Figure:
    """Every entry of a table that is not NaN: what became of it against itself, coloured by dimension."""
    row, dimension = (~inputs.isnan()).nonzero(as_tuple=True)
    x, y = inputs[row, dimension], outputs[row, dimension]
    total = (x - inputs.nanmean(0)[dimension]).square().sum()
    title = f"{title}, $R^2$ = {1 - ((x - y).square().sum() / total).item():.3f}"
    figure, (axes,) = make_figure(4.8, 3.8, title)
    shown = torch.linspace(0, len(x) - 1, min(len(x), most)).round().long()  # evenly over the rows
    cloud = axes.scatter(x[shown], y[shown], c=dimension[shown] + 1, s=8, alpha=0.6, linewidths=0, cmap="viridis", rasterized=True)
    axes.axline((x.mean().item(), x.mean().item()), slope=1, color=BLACK, linewidth=0.8, linestyle="--")
    axes.set(xlabel=names[0], ylabel=names[1])
    if inputs.shape[1] > 1:
        figure.colorbar(ScalarMappable(cloud.norm, cloud.cmap), ax=axes, label="dimension", ticks=MaxNLocator(integer=True))
    return figure


def _draws_over_data(draws: Tensor, data: Tensor, title: str) -> Figure:
    """Draws of a model of tables over the data, as histograms (D = 1) or in a plane."""
    complete = data[~data.isnan().any(1)]
    complete = complete if len(complete) > 1 else draws
    points, names = plane(torch.cat([complete, draws]), "x", len(complete))
    figure, (axes,) = make_figure(4.8, 3.8, title)
    axes.set(xlabel=names[0], ylabel=names[1] if len(names) > 1 else "density")
    for cloud, color, label in zip(points.split([len(complete), len(draws)]), (GREY, VERMILLION), ("data", "samples"), strict=True):
        if len(names) > 1:
            axes.plot(*cloud.T, "o", color=color, label=label, **DOTS)
        else:
            axes.hist(cloud[:, 0].tolist(), bins=30, density=True, color=color, alpha=0.6, label=label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plane(x: Tensor, symbol: str, count: int | None = None) -> tuple[Tensor, list[str]]:
    """x ``[N, D]`` in at most two coordinates, and their names; the principal components are those of the first `count` rows."""
    if x.shape[1] <= 2 or len(x[:count]) < 2:  # one row has no principal components
        return x[:, :2], [f"${symbol}_{i + 1}$" for i in range(min(x.shape[1], 2))]
    mean = x[:count].mean(0)
    _, singular, directions = torch.linalg.svd(x[:count] - mean, full_matrices=False)
    shares = 100 * singular.square() / singular.square().sum()
    names = [f"{order} principal component ({shares[i]:.0f}% of the variance)" for i, order in enumerate(("first", "second"))]
    return (x - mean) @ directions[:2].T, names


def _scatter(axes: Axes, points: Tensor, labels: Tensor | None) -> None:
    """Points ``[N, 2]``; up to ten labels are named at the medians of their points, more are values on a colour bar."""
    axes.set_aspect("equal", adjustable="datalim")
    dots: dict[str, Any] = DOTS | {"markersize": 3 if len(points) > 500 else 5}
    if labels is None:
        axes.plot(*points.T, "o", color=BLUE, **dots)
    elif len(labels.unique()) > len(PALETTE):
        cloud = axes.scatter(*points.T, c=labels, s=dots["markersize"] ** 2, linewidths=0, alpha=0.7, cmap="viridis", rasterized=True)
        axes.figure.colorbar(ScalarMappable(cloud.norm, cloud.cmap), ax=axes, label="label")
    else:
        for color, label in zip(PALETTE, labels.unique().tolist(), strict=False):
            own = points[labels == label]
            axes.plot(*own.T, "o", color=color, label=f"{label:g}", **dots)
            x, y = own.median(0).values.tolist()
            outline = [withStroke(linewidth=2.5, foreground="white")]
            axes.text(x, y, f"{label:g}", ha="center", va="center", weight="bold", path_effects=outline)
        axes.legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))


def _histograms(axes: Axes, values: Tensor, labels: Tensor | None) -> None:
    """Values ``[N]`` in forty bins, stacked by label if there are at most ten."""
    if labels is None or len(labels.unique()) > len(PALETTE):
        axes.hist(values.tolist(), bins=40, color=BLUE)
        return
    own = {f"{label:g}": values[labels == label].tolist() for label in labels.unique().tolist()}
    axes.hist(list(own.values()), bins=40, stacked=True, color=PALETTE[: len(own)], label=list(own))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_curves(axes: Axes, columns: Mapping[str, Sequence[float]], name: str) -> None:
    """One quantity of training and validation, the vertical axis fitted to the last nine tenths of the rows."""
    late: list[float] = []
    for part, label, color, width in (("train", "training", BLUE, 1.0), ("val", "validation", VERMILLION, 1.4)):
        values = columns.get(f"{part}/{name}")
        if values is not None:
            axes.plot(columns["step"], values, color=color, linewidth=width, label=label)
            late += [value for value in values[len(values) // 10 :] if math.isfinite(value)]
    if late and min(late) < max(late):
        margin = 0.05 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)
