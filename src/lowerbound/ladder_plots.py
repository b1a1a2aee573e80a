"""The picture of the ladder, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from lowerbound.plots import BLACK, BLUE, COLLAPSED, GREY, ORANGE, PALETTE, RESOLUTION, VERMILLION

if TYPE_CHECKING:
    from lowerbound.identities import Collapse
    from lowerbound.ladder import Ladder
    from lowerbound.ladder_linear_vae import Seen
    from lowerbound.ladder_rows import Row

GREEN = PALETTE[2]
MARKERS: dict[str, dict[str, Any]] = {
    "exact": {"marker": "o", "color": BLUE},
    "IWAE": {"marker": ">", "color": VERMILLION},
    "ELBO": {"marker": ">", "color": ORANGE, "markerfacecolor": "white"},
}
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": False, "handletextpad": 0.4}
NOTE: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "fontsize": 7, "va": "center", "color": "0.35"}


def ladder(found: Ladder) -> Figure:
    """The rungs of both tables, the collapse of linear VAEs, and the terms of the identity on the way of one."""
    figure = Figure(figsize=(11.4, 6.6), dpi=RESOLUTION, layout="constrained")
    left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(1.15, 1)))
    tables = {"(a) Real numbers: log-density of test data": found.densities, "(b) Bits: log-probability of test data": found.probabilities}
    tables = {title: rows for title, rows in tables.items() if rows}
    heights = [len(fits(rows)) + 1.6 for rows in tables.values()]  # the title and the axis of a panel are as high as 1.6 rungs
    panels = left.subplots(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        _rungs(axes, rows, title)
    marks = [Line2D([], [], linestyle="none", **mark) for mark in MARKERS.values()]
    left.legend(marks, ["exact log p(x)", "importance-weighted bound on it", "ELBO"], **LEGEND, loc="outside lower center", ncols=3)
    upper, lower = right.subplots(2, 1)
    _collapse(upper, found.collapses, found.eigenvalues)
    _identity(lower, found.seen, found.densities)
    for axes in (*panels, upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    return figure


def fits(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was fitted and how, in order."""
    return list(dict.fromkeys((row.rung, row.way) for row in rows))


def _rungs(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """A line for each fit, the first at the bottom: exact values, and bounds as arrows to where log p(x) is."""
    for height, fit in enumerate(fits(rows)):
        own = [row for row in rows if (row.rung, row.way) == fit]
        for row in reversed(own):
            if row.test is not None:
                mark: dict[str, Any] = MARKERS[row.quantity.partition("-")[0]] | ({"color": GREY} if row.floored else {})
                axes.plot(row.test, height, markersize=6, linestyle="none", **mark)
        known = [row.test for row in own if row.test is not None]
        if known:
            axes.annotate(_note(own), (max(known), height), **NOTE)
        else:
            note = f"no density; squared error {own[0].squared_error:.3f}"
            axes.annotate(note, (0, height), xycoords=("axes fraction", "data"), **NOTE)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(fits(rows))), [f"{rung}, {way}" for rung, way in fits(rows)])
    axes.set_ylim(-0.6, len(fits(rows)) - 0.4)
    axes.margins(x=0.12)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("nats per datum")


def _note(rows: Sequence[Row]) -> str:
    """The gaps of a fit to its exact answer."""
    if rows[0].floored:
        return "at its variance floor"
    gaps = [f"{row.quantity} {row.gap:.0e}" if row.quantity != "exact" else f"{row.gap:.0e}" for row in rows if row.gap is not None]
    return f"gap {', '.join(gaps)} nats" if gaps else ""


def _collapse(axes: Axes, collapses: Sequence[Collapse], eigenvalues: Sequence[float]) -> None:
    """beta s^2 of each linear VAE against its dimensions, filled where they are active: under the eigenvalues, as they should."""
    axes.set_title("(c) Linear VAEs: dimension i collapses iff $\\lambda_i \\leq \\beta s^2$", loc="left", fontsize=10)
    count = len(collapses[0].kl) if collapses else len(eigenvalues)
    order = np.arange(1, count + 1)
    axes.step(order, eigenvalues[:count], where="mid", color=BLACK, linewidth=1.2, label="eigenvalue $\\lambda_i$")
    for one in collapses:
        active = one.kl.numpy() > COLLAPSED
        for chosen, color, face in ((active, BLUE, BLUE), (~active, VERMILLION, "white")):
            axes.plot(order[chosen], np.full(chosen.sum(), one.threshold), "o", color=color, markerfacecolor=face, markersize=5)
        axes.annotate(f"$\\beta$ = {one.beta:g}", (count, one.threshold), **NOTE)
    axes.plot([], [], "o", color=BLUE, markersize=5, label=f"active: KL > {COLLAPSED} nats")
    axes.plot([], [], "o", color=VERMILLION, markerfacecolor="white", markersize=5, label="collapsed")
    axes.set(yscale="log", xlabel="latent dimension i, in order of explained variance", ylabel="$\\lambda_i$ and $\\beta s^2$, variance")
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** 0.25, high)  # room for the legend
    axes.set_yticks([one.threshold for one in collapses], [f"{one.threshold:.3g}" for one in collapses])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(**LEGEND, loc="lower left", ncols=3, columnspacing=1.2)


def _identity(axes: Axes, seen: Sequence[Seen], rows: Sequence[Row]) -> None:
    """How far log p(x) and the ELBO are below the maximum of log p(x), and the KL between them, as the linear VAE learns."""
    axes.set_title("(d) A linear VAE learns: log p(x) = ELBO + KL(q, posterior)", loc="left", fontsize=10)
    best = next(row.train for row in rows if (row.rung, row.way) == ("PPCA", "closed form")) or 0.0
    steps, evidence, elbo, kl, residual = (np.array(column) for column in zip(*seen, strict=True))
    lines = {"PPCA's log p(x) $-$ ELBO": (best - elbo, ORANGE, "o-"), "PPCA's log p(x) $-$ log p(x)": (best - evidence, BLUE, "o-")}
    for label, (values, color, style) in (lines | {"KL(q, posterior)": (kl, GREEN, "s--")}).items():
        axes.plot(steps, values, style, color=color, markersize=4, linewidth=1.2, label=label)
    error = f"|log p(x) $-$ ELBO $-$ KL| < {residual.max():.0e} nats\nfor every training datum, at every point"
    axes.annotate(error, (0.02, 0.05), xycoords="axes fraction", fontsize=8)
    axes.set_xscale("symlog", linthresh=5, linscale=0.4)  # which has a 0
    axes.set(yscale="log", xlabel="optimizer steps", ylabel="nats per training datum")
    axes.legend(**LEGEND, loc="upper right")
