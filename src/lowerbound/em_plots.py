"""Pictures of ways to a maximum: closed form, gradient ascent and expectation maximization, step by step, in nats per datum."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lowerbound.plots import BLACK, BLUE, DOTS, GREY, ORANGE, VERMILLION, make_figure, plane
from lowerbound.study_plots import ON_WHITE

RESOLVED = 1e-13  # nats: what float64 leaves of a difference between two means
SHADES = ("#B8D7EC", "#56B4E9", "#0072B2", "#003F63")  # of blue, the later the darker
COLORS = (VERMILLION, ORANGE, "#56B4E9", BLUE, "#009E73")


def _shown(gaps: Tensor) -> np.ndarray:
    """Gaps ``[T]`` for a logarithmic axis; what is not resolved is left out."""
    values = gaps.detach().cpu().double().numpy()
    return np.where(values >= RESOLVED, values, np.nan)


def _logarithmic(axes: Axes, ylabel: str, xlabel: str = "steps, each over all training data") -> None:
    axes.set(yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="y", color="0.92", linewidth=0.6)


def arrival(gaps: Tensor, exact: Tensor, stages: Mapping[int, Tensor], tolerance: float) -> Figure:
    """How far gradient ascent is below the closed form at each step, ``[T + 1]``; and log p(x) of each datum under both.

    `exact` ``[N]`` is that of the closed form, `stages` those of gradient ascent after some numbers of steps.
    """
    figure, (left, right) = make_figure(9.4, 3.7, "Gradient ascent on the way to the closed form", "log p(x) of each training datum")
    left.plot(np.arange(len(gaps)), _shown(gaps), color=BLUE, linewidth=1.4, label="closed form - gradient ascent")
    left.axhline(tolerance, color=BLACK, linewidth=0.8, linestyle="--", label=f"{tolerance:g} nats")
    _logarithmic(left, "gap of log p(x), nats per datum", "optimizer steps, each over all training data")
    left.legend(frameon=False, fontsize=8)
    right.axline((exact.mean().item(), exact.mean().item()), slope=1, color=BLACK, linewidth=0.8, zorder=1)
    for (step, values), color in zip(stages.items(), SHADES[-len(stages) :], strict=True):
        label = f"after {step:,} step{'s' * (step != 1)}" if step else "at the start"
        right.plot(exact.cpu(), values.cpu(), "o", color=color, label=label, **DOTS)
    right.set(xlabel="closed form, nats", ylabel="gradient ascent, nats")
    lowest = torch.cat([exact, *list(stages.values())[1:]]).min().item()
    right.set_ylim(lowest - 0.1 * (exact.max().item() - lowest), exact.max().item() + 0.1 * (exact.max().item() - lowest))
    right.legend(frameon=False, fontsize=8, markerscale=2)
    return figure


def two_ways(gaps: Mapping[str, Tensor], paths: Mapping[str, Tensor], x: Tensor) -> Figure:
    """Two ways to one maximum: the gap to it at each step ``[T + 1]``, and the means of the components on their way.

    `paths` are ``[T + 1, K, D]``, drawn over the data x ``[N, D]`` in a plane.
    """
    figure, (left, right) = make_figure(9.4, 4.0, "What is left to the maximum", "The means of the components, over the data")
    for (way, values), color in zip(gaps.items(), (BLUE, VERMILLION), strict=True):
        left.plot(np.arange(len(values)), _shown(values), color=color, linewidth=1.4, label=way)
    _logarithmic(left, "gap of log p(x), nats per datum")
    left.legend(frameon=False, fontsize=8)
    points, names = plane(torch.cat([x, *(path.flatten(0, 1) for path in paths.values())]).cpu().double(), "x", len(x))
    if len(names) == 1:  # the data along an axis
        points, names = torch.cat([points, torch.zeros_like(points)], 1), [names[0], ""]
    cloud, *flat = points.split([len(x), *(path.shape[0] * path.shape[1] for path in paths.values())])
    right.plot(*cloud.T, "o", color="0.8", zorder=1, **DOTS)
    for (way, path), own, color, mark in zip(paths.items(), flat, (BLUE, VERMILLION), "o+", strict=True):
        _draw_paths(right, own.unflatten(0, path.shape[:2]), color, mark, way)
    start = flat[0][: next(iter(paths.values())).shape[1]]  # [K, 2]
    right.plot(*start.T, "s", color=BLACK, markersize=5, label="start", zorder=3)
    right.set(xlabel=names[0], ylabel=names[1])
    right.legend(**ON_WHITE, loc="lower right")
    return figure


def _draw_paths(axes: Axes, paths: Tensor, color: str, mark: str, way: str) -> None:
    """Lines ``[T + 1, K, 2]`` with a mark at their ends."""
    axes.plot(*paths.movedim(-1, 0), color=color, linewidth=1.2)
    ends: dict[str, Any] = {"markersize": 9, "markeredgewidth": 1.8, "fillstyle": "none", "linestyle": "none", "zorder": 4}
    axes.plot(*paths[-1].T, mark, color=color, label=way, **ends)


def zigzag(evidence: Tensor, bound: Tensor, first: int, last: int) -> Figure:
    """log p(X) at the start and after each M-step ``[T + 1]``, and the bound after each M-step ``[T]``, before q follows.

    On the left the bound climbs from after EM step `first` to after step `last`; on the right what each half of a step gains.
    """
    figure, (left, right) = make_figure(9.8, 4.0, f"EM steps {first + 1} to {last}", "What each half of a step gains")
    evidence, bound = evidence.cpu().double(), bound.cpu().double()
    left.plot(range(first, last + 1), evidence[first : last + 1], color=BLACK, linewidth=1.0, label="log p(X)")
    for t in range(first, last):
        names = ("M-step: the bound rises", "E-step: the bound touches again", "KL(q, p(z | x))") if t == first else (None, None, None)
        left.fill([t, t + 1, t + 1], [evidence[t], bound[t], evidence[t + 1]], color=GREY, alpha=0.25, linewidth=0, label=names[2])
        left.plot([t, t + 1], [evidence[t], bound[t]], color=VERMILLION, linewidth=1.8, label=names[0])
        left.plot([t + 1, t + 1], [bound[t], evidence[t + 1]], color=BLUE, linewidth=2.4, label=names[1])
    left.plot(range(first, last + 1), evidence[first : last + 1], "o", color=BLUE, markersize=5, zorder=4)
    left.set(xlabel="EM steps", ylabel="nats per datum")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    ranks = range(1, len(bound) + 1)
    right.plot(ranks, _shown(bound - evidence[:-1]), color=VERMILLION, linewidth=1.6, label="M-step")
    right.plot(ranks, _shown(evidence[1:] - bound), color=BLUE, linewidth=1.6, label="E-step: KL of the old q to the new p(z | x)")
    _logarithmic(right, "gain of the bound, nats per datum", "EM steps")
    right.legend(frameon=False, fontsize=8)
    return figure


class Sampled(NamedTuple):
    """What a number of samples makes of EM."""

    gaps: Tensor  # [T + 1], to the maximum
    descending: float  # the share of the steps that descend
    ascending: int  # the steps before the first of them
    left: float  # the gap at the end


def sampled(runs: Mapping[int, Sampled], exact: Sampled) -> Figure:
    """Monte Carlo EM by number of samples, and exact EM: what is left at each step and at the end, and when it first descends."""
    titles = ("What is left to the maximum", "Steps before the first that descends", "What is left at the end")
    figure, (curves, ascending, left) = make_figure(11.6, 3.8, *titles)
    for (samples, run), color, mark in zip(runs.items(), cycle(COLORS), cycle("osD^v")):
        label = f"{samples:,} sample{'s' * (samples != 1)}: {100 * run.descending:.0f}%"
        curves.plot(np.arange(len(run.gaps)), _shown(run.gaps.abs()), color=color, linewidth=1.0, label=label)
        ascending.plot(samples, run.ascending, mark, color=color, markersize=7)
        left.plot(samples, run.left, mark, color=color, markersize=7)
    label = f"exact E-step: {100 * exact.descending:.0f}%"
    curves.plot(np.arange(len(exact.gaps)), _shown(exact.gaps), color=BLACK, linewidth=1.6, linestyle="--", label=label)
    _logarithmic(curves, "distance of log p(x), nats per datum")
    curves.legend(**ON_WHITE, loc="lower left", title="steps that descend", title_fontsize=8, alignment="left")
    steps = len(exact.gaps) - 1
    ascending.axhline(exact.ascending, color=BLACK, linewidth=1.2, linestyle="--", label=f"exact E-step: {exact.ascending} of {steps}")
    ascending.set(xscale="log", xlabel="samples of z for each datum", ylabel="steps", ylim=(0, 1.15 * steps))
    ascending.legend(frameon=False, fontsize=8, loc="upper right")
    first, counts = next(iter(runs)), np.array(list(runs))
    left.plot(counts, runs[first].left * first / counts, color=GREY, linewidth=1.0, zorder=1, label="1 / samples")
    left.set(xscale="log", xlabel="samples of z for each datum", ylabel="gap of log p(x), nats per datum")
    if all(run.left > 0 for run in runs.values()):
        left.set_yscale("log")
    left.legend(frameon=False, fontsize=8)
    return figure
