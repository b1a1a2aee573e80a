"""Which pictures a model has: what they show is computed here, from the model and rows of data, and drawn by `plots` and its like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution

from lowerbound import component_plots, latent_plots, plots
from lowerbound.distributions import kl_per_dimension
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.priors import OneHot

Named = Iterator[tuple[str, Figure]]
PAIRS, WAY = 3, 10  # of interpolations: pairs of data, and points on the way between their codes
REACH, VALUES = 3.0, 13  # of traversals: standard deviations to either side, and values of z
IMAGE_ROWS, TABLE_PANELS = 8, 4  # of traversals: the most dimensions


def of_model(
    model: LatentVariableModel, x: Tensor, labels: Tensor | None, shape: Sequence[int] | None, truth: Tensor | None, num_images: int
) -> Named:
    """The pictures of a model and data x ``[N, D]`` by name: `labels` ``[N]``, the `shape` of images, and x before entries were hidden."""
    shown = x[:num_images] if shape else x
    yield "reconstructions", plots.reconstructions(shown, model.reconstruct(shown), shape)
    truth = None if truth is None else truth[: len(shown)]
    if truth is not None and (shown.isnan() & ~truth.to(shown).isnan()).any():
        yield "filled_in", plots.filled_in(shown, model.impute(shown).mean, truth, shape)
    if isinstance(model.prior, OneHot):
        means = model.likelihood(torch.eye(model.prior.latent_dim).to(x)).mean  # [K, D]
        yield "components", component_plots.mixture(means, model.prior().mean, shape, x)
        return
    if model.prior.is_proper:
        yield "samples", plots.samples(model.sample(num_images**2), shape, x)
    if isinstance(model.likelihood, LinearGaussian):
        yield from _of_linear(model, model.likelihood, x, shape)
    yield from _of_codes(model, x, labels, shape)


def _of_linear(model: LatentVariableModel, likelihood: LinearGaussian, x: Tensor, shape: Sequence[int] | None) -> Named:
    """W, and the eigenvalues where one noise variance makes a floor of them and enough rows are complete."""
    yield "loadings", component_plots.loadings(likelihood.weight, shape)
    complete, scale = x[~x.isnan().any(1)], likelihood.noise(likelihood.bias.new_empty(0))
    if model.prior.is_proper and not scale.ndim and len(complete) > 1:
        centred = (complete - complete.mean(0)).double()  # [n, D]
        smaller = centred if len(complete) < model.data_dim else centred.T  # the two have the same eigenvalues, but for zeros
        variances = torch.linalg.eigvalsh(smaller @ smaller.T).flip(0) / len(complete)
        yield "eigenvalue_spectrum", latent_plots.eigenvalue_spectrum(variances, likelihood.weight, scale.square().item())


def _of_codes(model: LatentVariableModel, x: Tensor, labels: Tensor | None, shape: Sequence[int] | None) -> Named:
    """Where the codes lie, what each dimension of z carries, and what is decoded between codes and along dimensions."""
    q = model.posterior(x)
    kl = _kl(q, model.prior())
    yield "latent_plane", plots.latent_plane(q.mean, labels)
    if kl is not None:
        yield "kl_per_dimension", plots.kl_spectrum(kl)
    if len(x) > 1:
        yield "interpolation", _interpolation(model, q.mean, shape, x)
    yield "latent_traversal", _traversal(model, q.mean, kl, shape, x)


def _kl(q: Distribution, p: Distribution) -> Tensor | None:
    """The KL of each latent dimension ``[N, L]``; None where q and p do not factorise, or have none."""
    try:
        return kl_per_dimension(q, p)
    except ValueError:
        return None


def _frame(model: LatentVariableModel, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension of z, both ``[L]``: the prior's, and those of the codes ``[N, L]`` where it is flat."""
    if model.prior.is_proper:
        return model.prior().mean, model.prior().stddev
    return codes.mean(0), codes.std(0, correction=0)


def _interpolation(model: LatentVariableModel, codes: Tensor, shape: Sequence[int] | None, x: Tensor) -> Figure:
    """Between codes ``[N, L]`` far apart in the order of the rows, which may lie sorted; great circles are about the mean of z."""
    centre, _ = _frame(model, codes)
    ends = torch.linspace(0, len(codes) - 1, 2 * min(PAIRS, len(codes) // 2)).long()  # evenly over the rows
    a, b = (codes - centre)[ends].chunk(2)  # [P, L] each
    ways = [way(a, b, WAY) + centre for way in (latent_plots.straight, latent_plots.spherical)]  # [P, T, L] each
    lines, arcs = (model.likelihood(way).mean for way in ways)  # [P, T, D]
    return latent_plots.interpolation(lines, arcs, shape, x)


def _traversal(model: LatentVariableModel, codes: Tensor, kl: Tensor | None, shape: Sequence[int] | None, x: Tensor) -> Figure:
    """Along the dimensions of the largest KL, or else of codes ``[N, L]`` of the largest variance; the others stay at their means."""
    centre, spread = _frame(model, codes)
    carried, unit = (codes.var(0, correction=0), "variance {:.2g}") if kl is None else (kl.mean(0), "{:.2g} nats")
    most = carried.argsort(descending=True)[: IMAGE_ROWS if shape else TABLE_PANELS]  # [K]
    steps = torch.linspace(-REACH, REACH, VALUES).to(centre)
    z = centre + steps.unsqueeze(1) * spread.diag()[most].unsqueeze(1)  # [K, V, L]
    names = [f"$z_{{{j + 1}}}$ ({unit.format(carried[j].item())})" for j in most.tolist()]
    owner = "the prior" if model.prior.is_proper else "the codes"
    return latent_plots.traversal(model.likelihood(z).mean, names, steps, f"z, in standard deviations from the mean of {owner}", shape, x)
