"""Pictures of what linear models show: tensors and numbers in, matplotlib figures out, in the manner of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from lowerbound.plots import BLACK, BLUE, COLLAPSED, DOTS, GREY, ORANGE, RESOLUTION, VERMILLION, make_figure, show_grid
from lowerbound.study_plots import ON_WHITE

DIVERGING = "RdBu_r"
TINY = 1e-16  # the rounding of a number of size 1, in float64
WAYS = {"eigenvectors": "eigenvectors", "singular_vectors": "singular vectors", "em": "EM", "autoencoder": "linear autoencoder"}


def _ready(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def imputation(fractions: Sequence[float], numbers: Mapping[str, float], rows: Mapping[str, Tensor], shape: Sequence[int] | None) -> Figure:
    """Errors of what is filled in, and what is learnt from holes, against the fraction hidden; and rows ``[n, D]`` with holes and without.

    `numbers` are those of the study `Imputation`, `rows` by name: with holes (NaN), filled in by means, by the model, and the truth.
    """
    figure, (errors, learning, images) = make_figure(
        12.4, 3.7, "Hidden entries, filled in", "What is learnt from rows with holes", "Rows with holes"
    )
    percent = [100 * fraction for fraction in fractions]

    def curve(name: str) -> list[float]:
        return [numbers[f"hidden_{share:.0f}_percent_{name}"] for share in percent]

    errors.plot(percent, curve("mean_rmse"), "s--", color=VERMILLION, markersize=5, label="mean of the dimension")
    errors.plot(percent, curve("model_rmse"), "o-", color=BLUE, markersize=5, label="E[missing | observed]")
    errors.set(ylabel="root mean square error, in the unit of x")
    errors.set_ylim(bottom=0)
    complete = numbers["complete_log_evidence"]
    learning.axhline(complete, color=GREY, linewidth=1.2, label="nothing hidden")
    learning.plot(percent, curve("marginalised_log_evidence"), "o-", color=BLUE, markersize=5, label="missing marginalised out")
    learning.plot(percent, curve("mean_filled_log_evidence"), "s--", color=VERMILLION, markersize=5, label="filled in with means")
    learning.set(ylabel="log p(x) of complete test rows, nats")
    for axes, place in ((errors, "lower right"), (learning, "lower left")):
        axes.set(xlabel="entries hidden, per cent")
        axes.set_xticks(percent)
        axes.legend(**ON_WHITE | {"loc": place})
    holes, _, filled, truth = map(_ready, rows.values())
    if shape is None:
        hidden = holes.isnan()
        images.plot(truth[hidden], filled[hidden], "o", color=BLUE, markersize=3)
        images.axline((truth.mean().item(), truth.mean().item()), slope=1, color=BLACK, linewidth=0.8, linestyle="--")
        images.set(xlabel="truth", ylabel="E[missing | observed]")
        return figure
    show_grid(images, torch.cat([_ready(row) for row in rows.values()]), shape, columns=len(truth), limits_from=truth)
    images.set_yticks([(i + 0.5) * (shape[1] + 1) for i in range(len(rows))], list(rows))
    return figure


def images_of(axes: Axes, columns: Tensor, shape: Sequence[int] | None) -> None:
    """Columns ``[D, L]``, each from -1 (blue) over 0 (white) to 1 (red) of its largest entry: as images, or, of tables, as columns."""
    columns = _ready(columns) / _ready(columns).abs().amax(0, keepdim=True).clamp(min=1e-300)
    if shape is None:
        axes.imshow(columns.T.numpy(), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    else:
        images = columns.T.unflatten(1, tuple(shape)).mean(1)  # [L, H, W]
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=torch.nan)
        axes.imshow(torch.cat(list(padded), 1).numpy(), cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])


def logarithmic_dots(axes: Axes, values: Mapping[str, float]) -> None:
    """A dot and its number for each name, from top to bottom, on a logarithmic axis; what is below `TINY` stands at it."""
    values = {name: max(value, TINY) for name, value in values.items()}
    axes.plot(list(values.values()), range(len(values)), "o", color=BLUE, markersize=6)
    for row, value in enumerate(values.values()):
        spelt = f"{value:.2g}" if value > TINY else f"at most {TINY:g}"
        axes.annotate(spelt, (value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xscale="log", ylim=(len(values) - 0.5, -0.6))
    axes.set_yticks(range(len(values)), [WAYS[name] for name in values])
    low, high = min(values.values()), max(values.values())
    room = (high / low) ** 0.25 if high > low else 10.0  # for the numbers
    axes.set_xlim(low / room, high * room)


def four_ways(
    ways: Mapping[str, Mapping[str, Any]], angles: Mapping[str, float], exponents: Sequence[int], errors: Mapping[str, Sequence[float]]
) -> Figure:
    """Angles to the first way's plane, squared errors above the least, seconds; and errors of the smallest variance by condition number.

    `ways` have a `squared_error` and `seconds`, `errors` are by route, at condition numbers 10^exponent.
    """
    titles = ("Angle to the eigenvectors' plane", "Squared error above the least", "Time", "The smallest variance, float64")
    figure, (angle, error, seconds, routes) = make_figure(13.2, 3.3, *titles)
    least = min(way["squared_error"] for way in ways.values())
    logarithmic_dots(angle, angles)
    logarithmic_dots(error, {name: way["squared_error"] / least - 1 for name, way in ways.items()})
    logarithmic_dots(seconds, {name: way["seconds"] for name, way in ways.items()})
    angle.set_xlabel("degrees")
    error.set_xlabel(f"(error - least) / least, least = {least:.4f}")
    seconds.set_xlabel("seconds")
    conditions = [10.0**exponent for exponent in exponents]
    style = {"eigen": ("s--", VERMILLION, "eigenvectors of X'X"), "svd": ("o-", BLUE, "singular vectors of X")}
    for route, values in errors.items():
        marker, color, label = style[route]
        routes.plot(conditions, [max(value, TINY) for value in values], marker, color=color, markersize=4, label=label)
    routes.axhline(1, color=BLACK, linewidth=0.8, linestyle=":", label="no digit is right")
    routes.set(xscale="log", yscale="log", xlabel="condition number of X", ylabel="relative error", ylim=(TINY / 10, 1e7))
    routes.legend(**ON_WHITE, loc="upper left")
    return figure


def rotation(versions: Mapping[str, Mapping[str, Any]], shape: Sequence[int] | None, num_axes: int) -> Figure:
    """Columns of W and the covariance of the codes of equivalent models, one above the other, with losses and angles."""
    names = {
        "trained": "as trained: W",
        "stretched": "W A, $A^{-1}$ z, A random",
        "white": "white codes",
        "rotated": "white codes, rotated",
        "ordered": "ordered by variance",
    }
    figure = Figure(figsize=(10.4, 1.3 * len(versions) + 0.3), dpi=RESOLUTION, layout="constrained")
    grid = figure.add_gridspec(len(versions), 2, width_ratios=[6, 1.2])
    for row, (name, version) in enumerate(versions.items()):
        columns, codes = figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])
        images_of(columns, version["weight"][:, :num_axes], shape)
        text = (
            f"{names[name]}: loss {version['losses'].mean().item():.6f} nats, largest angle to the principal axes {version['degrees']:.2g}°"
        )
        columns.set_title(text, fontsize=10, loc="left")
        spread = _ready(version["covariance"])
        limit = spread.abs().max().item()
        codes.imshow(spread.numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        codes.set(xticks=[], yticks=[])
        codes.set_title("cov[z]" if row == 0 else "", fontsize=10, loc="left")
    figure.supxlabel("red above 0, blue below, each picture up to its own largest entry", fontsize=9)
    return figure


def noise_stories(seen: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, float], names: tuple[str, str]) -> Figure:
    """Draws of each story in one plane: the step ``[n, 2]``, where the noise carries it ``[n, 2]``, and W's columns ``[2, L, 2]``.

    `numbers` are those of the study `NoiseStories`, `names` the two directions of the plane.
    """
    titles = {
        "truth": "The truth",
        "pca": "PCA: orthogonal noise",
        "ppca": "Probabilistic PCA: isotropic noise",
        "factor_analysis": "Factor analysis: diagonal noise",
    }
    lines = [f"{titles[name]}\nlog p(x) = {numbers[f'{name}_log_evidence']:.3f} nats" for name in seen]
    figure, panels = make_figure(13.2, 3.9, *lines)
    wide, high = (1.08 * torch.cat([_ready(parts["x"]).abs() for parts in seen.values()]).amax(0)).tolist()
    for axes, parts in zip(panels, seen.values(), strict=True):
        step, x, columns = (_ready(parts[key]) for key in ("step", "x", "columns"))
        axes.add_collection(LineCollection(list(torch.stack([step, x], 1).numpy()), colors=GREY, linewidths=0.7, label="noise"))
        axes.plot(*x.T, "o", color=BLUE, markersize=3, label="x")
        axes.plot(*step.T, "o", color=VERMILLION, markersize=2.5, label="step b + W z")
        for line in columns.unbind(1):
            axes.plot(*line.T, color=BLACK, linewidth=1.4, label="W, two standard deviations long")
        axes.set(xlim=(-wide, wide), ylim=(-high, high), xlabel=names[0])
        axes.set_aspect("equal")
    panels[0].set_ylabel(names[1])
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return figure


def evidence_identity(pairs: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """The bound against log p(x) before and after training, and KL(q, p(z | x)) against their difference, a dot for each datum.

    `pairs` are log p(x), ELBO and KL to the posterior ``[N]``, by time.
    """
    names, colors, marks = (
        {"start": "Before training", "trained": "After training"},
        {"start": VERMILLION, "trained": BLUE},
        {"start": "s", "trained": "o"},
    )
    titles = [f"{names[when]}: KL to the posterior {kl.mean().item():.3g} nats" for when, (_, _, kl) in pairs.items()]
    figure, (*bounds, gaps) = make_figure(12.4, 3.7, *titles, "Two computations of one difference")
    for axes, (when, (evidence, elbo, kl)) in zip(bounds, pairs.items(), strict=True):
        axes.plot(_ready(evidence), _ready(elbo), marks[when], color=colors[when], **DOTS)
        axes.axline(
            (evidence.mean().item(), evidence.mean().item()), slope=1, color=BLACK, linewidth=0.8, linestyle="--", label="ELBO = log p(x)"
        )
        axes.set(xlabel="log p(x), nats", ylabel="ELBO, nats")
        axes.legend(**ON_WHITE, loc="upper left")
        gaps.plot(_ready(evidence - elbo), _ready(kl), marks[when], color=colors[when], label=names[when].lower(), **DOTS)
    gaps.axline((1, 1), (10, 10), color=BLACK, linewidth=0.8, linestyle="--", label="equal")
    gaps.set(xscale="log", yscale="log", xlabel="log p(x) - ELBO, nats", ylabel="KL(q(z | x), p(z | x)), nats")
    gaps.legend(**ON_WHITE, loc="upper left", markerscale=2)
    return figure


def collapse(found: Sequence[Mapping[str, Any]], variances: Tensor, evidence: tuple[Tensor, Tensor]) -> Figure:
    """log p(x) of a linear VAE against that of probabilistic PCA; KL of each dimension against its eigenvalue; how many dimensions stay.

    `found` have `beta`, `threshold` = beta s^2 and `kl` ``[L]``, falling; `variances` are the first L + 1 eigenvalues, `evidence` the
    log p(x) ``[N]`` of the VAE and of probabilistic PCA.
    """
    gap = (evidence[1] - evidence[0]).mean().item()
    titles = (f"Learnt noise: {gap:.3f} nats below the optimum", "Fixed noise: KL of each dimension", "Fixed noise: dimensions that stay")
    figure, (reached, spectrum, count) = make_figure(13.2, 3.8, *titles)
    reached.plot(_ready(evidence[1]), _ready(evidence[0]), "o", color=BLUE, **DOTS)
    centre = evidence[1].mean().item()
    reached.axline((centre, centre), slope=1, color=BLACK, linewidth=0.8, linestyle="--", label="equal")
    reached.set(xlabel="log p(x), probabilistic PCA, nats", ylabel="log p(x), linear VAE, nats")
    variances = _ready(variances)
    ratios = torch.cat([variances[:-1] / one["threshold"] for one in found])
    low, high = 0.9 * ratios.min().item(), 1.1 * ratios.max().item()
    line = torch.linspace(low, high, 400)
    spectrum.plot(line, (line.log() / 2).clamp(min=0), color=BLACK, linewidth=1, label="max(0, log(λ / βs²) / 2)")
    steps = torch.linspace(0.8 * variances[-1].item(), 1.6 * variances[0].item(), 800)
    count.plot(steps, (variances[:-1, None] > steps).sum(0), color=BLACK, linewidth=1, label="eigenvalues λ above βs²")
    betas = sorted({one["beta"] for one in found})
    for beta, (marker, color, size) in zip(betas, (("o", BLUE, 8), ("s", VERMILLION, 4), ("^", ORANGE, 3)), strict=False):
        own = [one for one in found if one["beta"] == beta]
        style: dict[str, Any] = {"marker": marker, "color": color, "markersize": size, "linestyle": "", "label": f"trained, β = {beta:g}"}
        spectrum.plot(torch.cat([variances[:-1] / one["threshold"] for one in own]), torch.cat([_ready(one["kl"]) for one in own]), **style)
        count.plot([one["threshold"] for one in own], [int((one["kl"] > COLLAPSED).sum()) for one in own], **style)
    spectrum.set(xscale="log", xlabel="λ / βs², λ eigenvalue of the data's covariance", ylabel="KL, nats per datum")
    count.set(xscale="log", xlabel="βs², in the unit of x²", ylabel=f"dimensions with KL above {COLLAPSED} nats")
    for axes, place in ((reached, "upper left"), (spectrum, "upper left"), (count, "upper right")):
        axes.legend(**ON_WHITE | {"loc": place})
    for axes in (spectrum, count):
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    return figure
