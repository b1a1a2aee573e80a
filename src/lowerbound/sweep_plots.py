"""Pictures of many runs at once: numbers in, matplotlib figures out, in the manner of `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowerbound.plots import GREY, PALETTE, VERMILLION, make_figure


class Point(NamedTuple):
    """A weight beta, and rate and distortion of the runs that were trained with it, in nats per datum."""

    beta: float
    rate: Sequence[float]
    distortion: Sequence[float]


class Curve(NamedTuple):
    """A quantity of a run against optimizer steps."""

    steps: Sequence[float]
    values: Sequence[float]


def rate_distortion(curves: Mapping[str, Sequence[Point]]) -> Figure:
    """Distortion -E_q log p(x | z) against rate KL, in nats per datum, along beta: a curve for each name, through means over runs.

    Of a single curve, the line through beta = 1 joins all pairs with its ELBO, -(rate + distortion); what lies above has a lower one.
    """
    figure, (axes,) = make_figure(5.4, 4.1, "Rate and distortion")
    for (name, points), color in zip(curves.items(), colors(len(curves)), strict=True):
        means = [(point.beta, fmean(point.rate), fmean(point.distortion)) for point in sorted(points)]
        way = [r for _, r, _ in means], [d for *_, d in means]
        axes.plot(*way, "-o", color=color, markersize=5, linewidth=1.2, label=_plain(name) or None)
        for point in points:
            if len(point.rate) > 1:
                axes.plot(point.rate, point.distortion, ".", color=color, markersize=4, alpha=0.5)
        for beta, r, d in means:
            axes.annotate(rf"$\beta$ = {beta:g}", (r, d), xytext=(7, 5), textcoords="offset points", fontsize=8)
    for point in [point for points in curves.values() for point in points if point.beta == 1 and len(curves) == 1]:
        _mark(axes, fmean(point.rate), fmean(point.distortion))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    axes.margins(x=0.14)
    axes.set(xlabel="rate: KL, nats per datum", ylabel="distortion: negative reconstruction, nats per datum")
    return figure


def _mark(axes: Axes, rate: float, distortion: float) -> None:
    axes.plot(rate, distortion, "o", color=VERMILLION, markersize=8, zorder=3)
    label = f"ELBO = {-rate - distortion:.2f} nats"
    axes.axline((rate, distortion), slope=-1, color=GREY, linewidth=0.9, linestyle="--", label=label)


def learning_curves(curves: Mapping[str, Sequence[Curve]], quantity: str) -> Figure:
    """A quantity of validation data against optimizer steps: a colour for each name, a line for each of its runs.

    The vertical axis is chosen for the later nine tenths of the runs: the climb of the first steps would flatten the rest.
    """
    figure, (axes,) = make_figure(6.2, 4.1, f"{quantity} of validation data")
    late: list[float] = []
    for (name, runs), color in zip(curves.items(), colors(len(curves)), strict=True):
        for i, run in enumerate(runs):
            axes.plot(run.steps, run.values, color=color, linewidth=1.1, alpha=0.8, label=_plain(name) if i == 0 else None)
            late += [value for value in run.values[len(run.values) // 10 :] if math.isfinite(value)]
    if late and min(late) < max(late):
        margin = 0.05 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set(xlabel="optimizer steps", ylabel="nats per datum")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plain(name: str) -> str:
    """A name in which a dollar is no beginning of a formula."""
    return name.replace("$", r"\$")


def colors(count: int) -> list[str] | list[tuple[float, float, float, float]]:
    """As many colours: those that anyone can tell apart, or, of more than there are, shades in an order."""
    return list(PALETTE[:count]) if count <= len(PALETTE) else [colormaps["viridis"](i / (count - 1)) for i in range(count)]
