"""Pictures of studies and of sweeps: tensors and numbers in, matplotlib figures out, in the manner of `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lowerbound.plots import BLACK, BLUE, DOTS, GREY, ORANGE, RESOLUTION, VERMILLION, make_figure, plane, show_grid

DURATIONS = {"a minute": 60.0, "a year": 3.15e7, "the age of the universe": 4.35e17}

ON_WHITE: dict[str, Any] = {"fontsize": 8, "edgecolor": "none", "framealpha": 0.85}  # a legend over what is drawn


def _ready(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def brute_force(
    points: Sequence[int], evidence: Sequence[float], bounds: Mapping[int, float], latent_dim: int, needed: int, per_second: float
) -> Figure:
    """log p(x) by quadrature against the points along each axis, over the bounds; and the cost of the grid against L.

    `bounds` are the importance-weighted bounds by their number of samples (1: the ELBO), `needed` the points that are enough,
    `per_second` the values of p(x | z) computed in a second.
    """
    figure, (left, right) = make_figure(
        9.4, 3.7, f"log p(x) on a grid of z, L = {latent_dim}", f"The cost of {needed} points along each axis"
    )
    left.plot(points, evidence, "o-", color=BLUE, markersize=4, label="grid", zorder=3)
    shades = np.linspace(0.75, 0.25, len(bounds))
    for shade, (samples, value) in zip(shades, bounds.items(), strict=True):
        name = "ELBO" if samples == 1 else f"IWAE, {samples:,} samples"
        left.axhline(value, color=str(shade), linewidth=1.1, linestyle="--" if samples > 1 else "-", label=f"{name}: {value:.2f}")
    exact, lowest = evidence[-1], min(bounds.values())
    left.set_ylim(lowest - 1.3 * (exact - lowest) - 0.1, exact + 0.6 * (exact - lowest) + 0.1)
    left.set_xscale("log", base=2)
    left.set_xticks(list(points), [str(count) for count in points])
    left.set(xlabel="points along each axis", ylabel="nats per datum")
    left.legend(**ON_WHITE, loc="lower right", title=f"log p(x) = {exact:.2f}", title_fontsize=8, alignment="left")
    dims = np.arange(1, 21)
    right.plot(dims, float(needed) ** dims, "o-", color=BLUE, markersize=4, label=f"grid: ${needed}^L$")
    right.axhline(max(bounds), color="0.3", linewidth=1.1, linestyle="--", label=f"a bound by {max(bounds):,} samples")
    for name, seconds in DURATIONS.items():
        right.axhline(seconds * per_second, color=VERMILLION, linewidth=0.8, linestyle=":")
        right.text(1, seconds * per_second, name, color=VERMILLION, fontsize=8, va="bottom")
    right.set(yscale="log", xlabel="latent dimensions L", ylabel="evaluations of p(x | z) per datum")
    right.set_xticks([1, 2, 5, 10, 15, 20])
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def gradient_scales(scales: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Histograms of the standard deviations of single parameters' gradients, pathwise and score-function ``[P]``, by time."""
    titles = []
    for when, (pathwise, score) in scales.items():
        ratio = score.square().sum() / pathwise.square().sum()
        titles.append(f"{'Before' if when == 'start' else 'After'} training: total variance {ratio:,.0f} : 1")
    figure, panels = make_figure(9.4, 3.3, *titles)
    logs = [value[value > 0].log10() for pair in scales.values() for value in map(_ready, pair)]
    low, high = min(value.quantile(0.002).item() for value in logs), max(value.max().item() for value in logs)
    bins = np.logspace(low, high, 60)
    for axes, pair in zip(panels, scales.values(), strict=True):
        for values, name, color in zip(
            map(_ready, pair), ("pathwise (reparameterised)", "score function"), (BLUE, VERMILLION), strict=True
        ):
            axes.hist(values.clamp(min=10**low).numpy(), bins=bins.tolist(), color=color, alpha=0.65, label=name)
        axes.set(xscale="log", xlabel="standard deviation of a parameter's gradient")
    panels[0].set_ylabel("parameters of q(z | x)")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


class Clouds(NamedTuple):
    """Codes of training data and draws from N(0, I), and who is how far from the nearest code."""

    codes: Tensor  # [N, L]
    draws: Tensor  # [M, L]
    usual: Tensor  # [T], of test codes
    distances: Tensor  # [M], of the draws
    radius: float  # what is farther is dead


def dead_areas(clouds: Clouds, decoded: Tensor, shape: Sequence[int] | None, data: Tensor, name: str) -> Figure:
    """Codes and draws in a plane; their distances to the nearest code; draws decoded ``[K, D]``, in the grey levels of the data."""
    dead = (clouds.distances > clouds.radius).cpu()
    share = f"{100 * dead.double().mean().item():.1f}%"
    titles = (f"{name}: codes and draws from N(0, I)", f"{share} of the draws in dead areas", "The first draws, decoded")
    figure, (cloud, distance, images) = make_figure(12.0, 3.9, *titles)
    points, names = plane(torch.cat([_ready(clouds.codes), _ready(clouds.draws)]), "z", len(clouds.codes))
    codes, draws = points[: len(clouds.codes)], points[len(clouds.codes) :]
    for own, color, label in (
        (codes, GREY, "codes of training data"),
        (draws[~dead], BLUE, "draws among codes"),
        (draws[dead], VERMILLION, "dead draws"),
    ):
        cloud.plot(*own.T, "o", color=color, label=label, **DOTS)
    cloud.set_aspect("equal", adjustable="datalim")
    cloud.set(xlabel=names[0], ylabel=names[1])
    cloud.legend(**ON_WHITE, markerscale=2, loc="upper right")
    bins = np.linspace(0, max(clouds.distances.max().item(), clouds.usual.max().item()), 50).tolist()
    for values, color, label in ((clouds.usual, GREY, "test codes"), (clouds.distances, VERMILLION, "draws from N(0, I)")):
        distance.hist(_ready(values).numpy(), bins=bins, density=True, color=color, alpha=0.7, label=label)
    distance.axvline(clouds.radius, color=BLACK, linewidth=0.8, linestyle="--", label="99% of the test codes are nearer")
    distance.set(xlabel="distance to the nearest training code", ylabel="density")
    distance.legend(**ON_WHITE)
    _images_or_lines(images, _ready(decoded), shape, math.ceil(math.sqrt(len(decoded))), _ready(data))
    return figure


def _images_or_lines(axes: Axes, x: Tensor, shape: Sequence[int] | None, columns: int, data: Tensor) -> None:
    """Rows ``[N, D]`` as images in the grey levels of the data, or, of tables, each as a line over the dimensions."""
    if shape is not None:
        show_grid(axes, x, shape, columns, limits_from=data)
        return
    axes.plot(x.T.numpy(), color=BLUE, alpha=0.2)
    axes.set(xlabel="dimension of x", ylabel="x")


def noise_scale(residual: Tensor, scale: Tensor) -> Figure:
    """The root mean square residual of each dimension ``[D]``, sorted, and the scale s that the model gives it ``[D]``."""
    order = _ready(residual).argsort()
    figure, (axes,) = make_figure(5.2, 3.4, "What the model holds for noise, and what is left over")
    ranks = np.arange(1, len(order) + 1)
    axes.plot(ranks, _ready(residual)[order], "o", color=BLUE, markersize=3, label="residual x - f(z), root mean square")
    axes.plot(ranks, _ready(scale)[order], color=VERMILLION, linewidth=1.4, label="scale s of N(f(z), diag s²)")
    axes.set(yscale="log", xlabel="dimension of x, in order of its residual", ylabel="in the unit of x")
    axes.tick_params(which="both", labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    return figure


def decoder(kind: str, numbers: Mapping[str, float], x: Tensor, means: Tensor, draws: Tensor, shape: Sequence[int] | None) -> Figure:
    """Data ``[N, D]``, the means of p(x | z) and draws from it, as rows of images; the numbers in the title."""
    title = f"{kind} decoder: " + ", ".join(f"{name.replace('_', ' ')} ≥ {value:.1f} nats" for name, value in numbers.items())
    rows = {"x": x, "mean of p(x | z)": means, "draw from p(x | z)": draws}
    if shape is None:
        figure, (axes,) = make_figure(6.0, 3.4, title)
        for (name, value), color in zip(rows.items(), (GREY, BLUE, ORANGE), strict=True):
            axes.plot(_ready(value)[0].numpy(), color=color, label=name)
        axes.legend(frameon=False, fontsize=8)
        return figure
    figure, (axes,) = make_figure(0.62 * len(x) + 1.4, 1.86 * shape[1] / shape[2] + 0.4, title)
    show_grid(axes, torch.cat([_ready(value) for value in rows.values()]), shape, columns=len(x), limits_from=_ready(x))
    axes.set_yticks([(i + 0.5) * (shape[1] + 1) for i in range(3)], list(rows))
    return figure


def amortization(approximation: Tensor, amortization: Tensor, curves: Mapping[str, Sequence[float]], steps: int, turn: int) -> Figure:
    """Both gaps of each datum ``[N]``, stacked and sorted; and ELBO curves over `steps` optimizer steps, by the way of training."""
    first, second = _ready(approximation), _ready(amortization)
    order = (first + second).argsort(descending=True)
    first, second = first[order].clamp(min=0).numpy(), second[order].clamp(min=0).numpy()
    figure, (left, right) = make_figure(9.4, 3.6, "log p(x) - ELBO of each test datum", "Encoder and decoder: together and in turn")
    ranks = np.arange(1, len(order) + 1)
    left.bar(ranks, first, width=1.0, color=BLUE, label=f"approximation gap: a Gaussian for each datum, {approximation.mean():.2f} nats")
    left.bar(
        ranks, second, width=1.0, bottom=first, color=ORANGE, label=f"amortization gap: one network for all, {amortization.mean():.2f} nats"
    )
    left.set(xlabel="test datum, in order of its gap", ylabel="nats")
    left.legend(frameon=False, fontsize=8)
    names = {"together": "both at every step", "in turn": f"{turn} steps the encoder, {turn} the decoder"}
    for (way, curve), color in zip(curves.items(), (BLUE, VERMILLION), strict=True):
        right.plot(np.linspace(0, steps, len(curve)), curve, color=color, linewidth=1.4, label=f"{names[way]}: {curve[-1]:.2f} nats")
    halfway = curves["together"][len(curves["together"]) // 2]
    label = f"both, after as many steps of each: {halfway:.2f} nats"
    right.plot(steps / 2, halfway, "o", color=BLUE, markerfacecolor="white", markersize=7, label=label)
    _fit_to_late_values(right, [value for curve in curves.values() for value in curve[len(curve) // 8 :]])
    right.set(xlabel="optimizer steps", ylabel="ELBO of validation data, nats per datum")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _fit_to_late_values(axes: Axes, values: Sequence[float]) -> None:
    margin = 0.05 * (max(values) - min(values))
    axes.set_ylim(min(values) - margin, max(values) + margin)


def bars(names: Sequence[str], columns: Mapping[str, Sequence[float | None]]) -> Figure:
    """A panel of horizontal bars for each column, a bar for each name; what a run does not have is left out."""
    figure, panels = make_figure(2.4 * len(columns) + 1.2, 0.42 * len(names) + 0.8, *columns)
    for axes, values in zip(panels, columns.values(), strict=True):
        known = [(row, value) for row, value in enumerate(values) if value is not None]
        axes.barh([row for row, _ in known], [value for _, value in known], color=BLUE, height=0.6)
        for row, value in known:
            away = {"xytext": (4, 0), "ha": "left"} if value >= 0 else {"xytext": (-4, 0), "ha": "right"}
            axes.annotate(f"{value:.4g}", (value, row), textcoords="offset points", va="center", fontsize=8, **away)
        low, high = min([0.0, *(value for _, value in known)]), max([0.0, *(value for _, value in known)])
        room = 0.45 * (high - low or 1.0)  # for the numbers
        axes.set_xlim(low - room if low < 0 else 0.0, high + room if high > 0 else 0.0)
        axes.set_yticks(range(len(names)), list(names) if axes is panels[0] else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=BLACK, linewidth=0.8)
    return figure


def stacked(pictures: Mapping[str, np.ndarray], across: int = 1) -> Figure:
    """Pictures ``[H, W, 3]`` (bytes) in rows of `across`, one above the other, pixel by pixel, each under its name."""
    strip = int(0.3 * RESOLUTION)
    named = list(pictures.items())
    rows = [named[start : start + across] for start in range(0, len(named), across)]
    widest = max(picture.shape[1] for picture in pictures.values())
    heights = [strip + max(picture.shape[0] for _, picture in row) for row in rows]
    width, height = widest * len(rows[0]), sum(heights)
    figure = Figure(figsize=(width / RESOLUTION, height / RESOLUTION), dpi=RESOLUTION)
    for row, used in zip(rows, np.cumsum(heights), strict=True):
        for column, (name, picture) in enumerate(row):
            top, left = height - used + max(other.shape[0] for _, other in row), column * widest
            figure.text(0.01 + left / width, (top + 0.25 * strip) / height, name, fontsize=11, weight="bold", color=BLACK)
            figure.figimage(picture, left, top - picture.shape[0])
    return figure
