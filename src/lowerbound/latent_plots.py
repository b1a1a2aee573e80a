"""Pictures of what the latent dimensions of a model carry: tensors in, matplotlib figures out, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import exp

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lowerbound.component_plots import DECADES
from lowerbound.metrics import ACTIVE
from lowerbound.plots import BLACK, BLUE, COLLAPSED, DOTS, GREEN, GREY, ORANGE, VERMILLION, draw_kl_spectrum, make_figure, plane, show_grid
from lowerbound.study_plots import ON_WHITE

CARRIES = exp(2 * COLLAPSED)  # times the noise: a direction of that variance carries log(ratio) / 2 nats
DELTAS = ((0.01, BLUE, "-"), (0.1, VERMILLION, "--"))  # the share of the data that may still use a collapsed dimension
MOST = 10_000_000  # entries of which quantiles are taken; torch takes 16 million at most


def _ready(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _shares(count: int, like: Tensor) -> Tensor:
    """0 to 1 in equal steps, ``[T, 1]``."""
    return torch.linspace(0, 1, count, dtype=like.dtype, device=like.device).unsqueeze(1)


def straight(a: Tensor, b: Tensor, count: int) -> Tensor:
    """`count` points ``[P, T, L]`` at equal distances on the straight lines from a to b ``[P, L]``, the ends among them."""
    return torch.lerp(a.unsqueeze(1), b.unsqueeze(1), _shares(count, a))


def spherical(a: Tensor, b: Tensor, count: int) -> Tensor:
    """`count` points ``[P, T, L]`` from a to b ``[P, L]`` at equal angles on the great circle of their directions, the ends among them.

    The norm goes from that of a to that of b in equal steps. Codes on one line through 0 have no great circle of their own: the way
    between them is the straight one.
    """
    t = _shares(count, a)  # [T, 1]
    of_a, of_b = (code.norm(dim=-1)[:, None, None] for code in (a, b))  # [P, 1, 1]
    u, v = a.unsqueeze(1) / of_a, b.unsqueeze(1) / of_b  # [P, 1, L], NaN for a code of 0
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))  # [P, 1, 1]
    directions = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()  # [P, T, L]
    has_circle = angle.sin() > torch.finfo(a.dtype).eps ** 0.5  # not so for NaN
    return torch.where(has_circle, torch.lerp(of_a, of_b, t) * directions, straight(a, b, count))


def interpolation(lines: Tensor, arcs: Tensor, shape: Sequence[int] | None, data: Tensor) -> Figure:
    """Decoded means ``[P, T, D]`` on the straight lines and on the arcs between the codes of P pairs of data.

    Images of `shape` ``[C, H, W]`` stand in rows, for each pair the straight line above the arc, in the grey levels of `data`
    ``[N, D]``. Tables (shape None) are paths over the data in their first two principal components; of one dimension, over the
    share of the way.
    """
    lines, arcs, data = _ready(lines), _ready(arcs), _ready(data)
    title = "Means of p(x | z) on the way between the codes of two data"
    if shape is None:
        return _paths_over_data(lines, arcs, data, title)
    pairs, count, _ = lines.shape
    height = 2 * pairs * 0.62 * shape[1] / shape[2] + 0.6
    figure, (axes,) = make_figure(max(0.62 * count + 0.9, 4.6), height, title)
    show_grid(axes, torch.stack([lines, arcs], 1).flatten(0, 2), shape, columns=count, limits_from=data)
    _name_rows(axes, ["straight", "spherical"] * pairs, shape)
    _name_columns(axes, ["one datum", *[""] * (count - 2), "the other"], shape)
    for pair in range(1, pairs):
        axes.axhline(2 * pair * (shape[1] + 1), color=BLACK, linewidth=0.8)
    return figure


def _paths_over_data(lines: Tensor, arcs: Tensor, data: Tensor, title: str) -> Figure:
    """Paths ``[P, T, D]`` over the complete rows of a table; a table of one dimension stands below the paths."""
    ways = torch.stack([lines, arcs])  # [2, P, T, D]
    data = data[~data.isnan().any(1)]
    data = data if len(data) > 1 else ways.flatten(0, 2)
    points, names = plane(torch.cat([data, ways.flatten(0, 2)]), "x", len(data))
    if len(names) == 1:
        shares = _shares(lines.shape[1], data).repeat(2 * len(lines), 1)  # [2 P T, 1]
        points = torch.cat([points, torch.cat([torch.full_like(data, -0.1), shares])], 1)
        names.append("share of the way")
    cloud, paths = points[: len(data)], points[len(data) :].unflatten(0, ways.shape[:3])
    figure, (axes,) = make_figure(5.2, 4.2, title)
    axes.plot(*cloud.T, "o", color=GREY, label="data", **DOTS)
    for way, color, style, name in zip(paths, (BLUE, VERMILLION), ("o-", "s--"), ("straight", "spherical"), strict=True):
        for i, path in enumerate(way):
            axes.plot(*path.T, style, color=color, markersize=3, linewidth=1.2, label=name if i == 0 else None)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(**ON_WHITE)
    return figure


def traversal(decoded: Tensor, names: Sequence[str], values: Tensor, unit: str, shape: Sequence[int] | None, data: Tensor) -> Figure:
    """Decoded means ``[K, V, D]`` along K dimensions of z, which take the `values` ``[V]``, in `unit`, one dimension at a time.

    Images of `shape` ``[C, H, W]`` stand in a row for each dimension, in the grey levels of `data` ``[N, D]``. Tables (shape None)
    have a panel for each: the mean over the dimensions of x, a line for each value, over the middle nine tenths of the data.
    """
    decoded, values, data = _ready(decoded), _ready(values), _ready(data)
    if shape is None:
        return _traversed_tables(decoded, names, values, unit, data)
    count = len(values)
    height = len(names) * 0.62 * shape[1] / shape[2] + 0.8
    figure, (axes,) = make_figure(0.62 * count + 1.3, height, "Means of p(x | z) along one dimension of z, the others at their means")
    show_grid(axes, decoded.flatten(0, 1), shape, columns=count, limits_from=data)
    _name_rows(axes, names, shape)
    _name_columns(axes, [f"{value:g}" for value in values.tolist()], shape)
    axes.set_xlabel(unit)
    return figure


def _traversed_tables(decoded: Tensor, names: Sequence[str], values: Tensor, unit: str, data: Tensor) -> Figure:
    """A panel for each row of decoded means ``[K, V, D]``, the values of z as colours."""
    figure, panels = make_figure(2.9 * len(names) + 1.0, 3.6, *names)
    colors = ScalarMappable(Normalize(values.min().item(), values.max().item()), "viridis")
    dimensions = range(1, decoded.shape[2] + 1)
    some = data[: MOST // data.shape[1] + 1]  # rows
    low, high = some.nanquantile(torch.tensor([0.05, 0.95]).to(data), 0)  # [D] each
    for axes, curves in zip(panels, decoded, strict=True):
        axes.bar(dimensions, high - low, bottom=low, width=0.9, color=GREY, alpha=0.3)
        for curve, value in zip(curves, values.tolist(), strict=True):
            axes.plot(dimensions, curve, "o-", color=colors.to_rgba(value), markersize=2.5, linewidth=1)
        axes.set_xlabel("dimension of x")
        axes.sharey(panels[0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panels[0].set_ylabel("mean of p(x | z); grey: 90% of the data")
    figure.colorbar(colors, ax=panels, pad=0.01).set_label(unit, fontsize=8)
    return figure


def _name_rows(axes: Axes, names: Sequence[str], shape: Sequence[int]) -> None:
    axes.set_yticks([(row + 0.5) * (shape[1] + 1) for row in range(len(names))], names)


def _name_columns(axes: Axes, names: Sequence[str], shape: Sequence[int]) -> None:
    axes.set_xticks([(column + 0.5) * (shape[2] + 1) for column in range(len(names))], names)


def eigenvalue_spectrum(variances: Tensor, weight: Tensor, noise: float) -> Figure:
    """Eigenvalues of the data's covariance ``[r]``, those of W W' + s^2 I, W ``[D, L]``, and the noise variance s^2, on a logarithmic axis.

    A direction of the model counts as above the noise if it carries more than 0.01 nats: log(eigenvalue / s^2) / 2, its KL to the prior
    at the optimum of probabilistic PCA.
    """
    variances, weight = _ready(variances), _ready(weight)
    dim, latent_dim = weight.shape
    model = torch.full((dim,), noise, dtype=torch.float64)
    model[:latent_dim] += torch.linalg.svdvals(weight).square()
    above = int((model > CARRIES * noise).sum())
    figure, (axes,) = make_figure(5.2, 3.6, f"{above} of the model's {latent_dim} directions lie above the noise")
    shown = variances.clamp(min=DECADES * variances.max().item())
    axes.plot(range(1, len(shown) + 1), shown, "o-", color=ORANGE, markersize=4, linewidth=0.8, label="covariance of the data")
    axes.plot(range(1, dim + 1), model, "s-", color=BLUE, markersize=2.5, linewidth=0.8, label="covariance of the model, $WW' + s^2I$")
    axes.axhline(noise, color=BLACK, linewidth=0.9, linestyle="--", label=f"noise variance, $s^2$ = {noise:.3g}")
    axes.set(yscale="log", xlabel="direction, in order of variance", ylabel="eigenvalue, in the unit of x²")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(**ON_WHITE)
    return figure


def importance_weighted_curve(
    num_samples: Sequence[int], means: Sequence[float], errors: Sequence[float], others: Mapping[str, tuple[float, float]]
) -> Figure:
    """The importance-weighted bound, in nats per datum, against its number of samples, with its standard errors over data.

    `others` is what else is known of log p(x), by name: its mean and its standard error over data, a line in a band.
    """
    figure, (axes,) = make_figure(5.6, 3.8, "Importance-weighted bound on log p(x)")
    styles = cycle(zip((VERMILLION, GREEN, ORANGE, BLACK), ("--", "-.", ":", "-"), strict=True))
    for (name, (mean, error)), (color, style) in zip(others.items(), styles, strict=False):
        axes.axhspan(mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        axes.axhline(mean, color=color, linestyle=style, linewidth=1.2, label=f"{name}: {mean:.2f} ± {error:.2f}")
    label = f"bound of k samples: {means[-1]:.2f} ± {errors[-1]:.2f} at the last"
    axes.errorbar(num_samples, means, errors, fmt="o-", color=BLUE, markersize=4, linewidth=1.2, capsize=3, label=label)
    axes.set(xscale="log", xlabel="samples k of q(z | x) for each datum (1: the ELBO)", ylabel="nats per datum")
    axes.set_xticks(list(num_samples), [f"{count:,}" for count in num_samples])
    axes.minorticks_off()
    axes.legend(**ON_WHITE, loc="lower right", title="mean ± standard error over data", title_fontsize=8, alignment="left")
    return figure


def collapsed_share(kl: Tensor, epsilon: Tensor, delta: float) -> Tensor:
    """The share of dimensions that are (epsilon, delta)-collapsed, ``[E]``: P_x[KL_j(x) < epsilon] >= 1 - delta (Lucas et al. 2019).

    `kl` ``[N, L]`` and `epsilon` ``[E]`` are nats.
    """
    spared = int(delta * len(kl) + 1e-9)  # data that may use a collapsed dimension; 0.29 * 100 is 28.999...
    largest = kl.sort(0).values[len(kl) - 1 - min(spared, len(kl) - 1)]  # [L], of all other data
    return (largest < epsilon.unsqueeze(1)).double().mean(1)


def collapse_panel(kl: Tensor, mean_variance: Tensor, posterior_variance: Tensor) -> Figure:
    """What collapses, in three panels: the KL of each dimension, active dimensions, and the share that is (epsilon, delta)-collapsed.

    `kl` ``[N, L]`` is in nats, of each datum; `mean_variance` ``[L]`` is the variance over data of the posterior mean, and
    `posterior_variance` ``[L]`` the mean over data of the posterior's variance, both in the unit of z².
    """
    kl, mean_variance, posterior_variance = _ready(kl), _ready(mean_variance), _ready(posterior_variance)
    active = mean_variance > ACTIVE
    titles = ("", f"{int(active.sum())} of {len(active)} dimensions active: variance above {ACTIVE}", "Collapsed dimensions")
    figure, (spectrum, activity, share) = make_figure(14.4, 3.7, *titles)
    draw_kl_spectrum(spectrum, kl)
    _draw_activity(activity, mean_variance, posterior_variance)
    epsilon = torch.logspace(-3, max(0.0, kl.max().log10().item() + 0.1), 400, dtype=torch.float64)
    for delta, color, style in DELTAS:
        name = f"δ = {delta:g}: for {100 * (1 - delta):g}% of the data"
        share.plot(epsilon, 100 * collapsed_share(kl, epsilon, delta), style, color=color, linewidth=1.4, label=name)
    share.axvline(COLLAPSED, color=BLACK, linewidth=0.8, linestyle=":", label=f"ε = {COLLAPSED} nats")
    share.set(xscale="log", xlabel="ε, nats", ylabel="dimensions with KL below ε, per cent", ylim=(-3, 103))
    share.legend(**ON_WHITE, loc="lower right")
    return figure


def _draw_activity(axes: Axes, mean_variance: Tensor, posterior_variance: Tensor) -> None:
    """A dot for each dimension; a linear axis up to the threshold lets the prior's corner, a variance of 0, be seen."""
    for chosen, color, name in ((mean_variance > ACTIVE, BLUE, "active"), (mean_variance <= ACTIVE, ORANGE, "not active")):
        axes.plot(posterior_variance[chosen], mean_variance[chosen], "o", color=color, markersize=5, label=name)
    axes.axhline(ACTIVE, color=BLACK, linewidth=0.8, linestyle="--", label=f"active: above {ACTIVE}")
    axes.plot(1, 0, "*", color=VERMILLION, markersize=12, zorder=1, label="prior: mean 0, variance 1")
    axes.set_yscale("symlog", linthresh=ACTIVE)
    axes.set_ylim(-ACTIVE / 3, 2 * max(1.0, mean_variance.max().item()))
    axes.set_xlim(-0.05, 1.1 * max(1.0, posterior_variance.max().item()))
    axes.set(xlabel="mean over data of the variance of q(z | x)", ylabel="variance over data of its mean")
    axes.legend(**ON_WHITE, loc="best")
