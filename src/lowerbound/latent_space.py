"""What the latent space of a fitted model holds: rate and distortion, units, the parts of the KL, and what codes are good for.

Where one Gaussian noise s is shared by all dimensions of x, a linear model trained at beta keeps a dimension iff its eigenvalue of
the data's covariance lies above beta s^2 (Lucas et al. 2019); of a network it is what a linear decoder would keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import kl_divergence

from lowerbound.aggregate import decomposed_kl
from lowerbound.codes import knn_accuracy, probe_accuracy
from lowerbound.data.module import TensorDataModule
from lowerbound.likelihoods import FixedNoise, Gaussian, SharedNoise
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.metrics import COLLAPSED, LatentUnits, Units
from lowerbound.model import LatentVariableModel
from lowerbound.priors import StandardNormal
from lowerbound.randomness import own_generators
from lowerbound.ranks import by_blocks, own_slices
from lowerbound.statistics import moments_of

ROWS = 250  # that are measured at once
SAMPLES = 10  # of z for each datum
NEIGHBORS = 5


@torch.no_grad()
def rate_and_distortion(model: LatentVariableModel, x: Tensor) -> dict[str, dict[str, float]]:
    """KL(q(z | x), p(z)), -E_q log p(x | z) and minus their sum, the ELBO: mean and standard error over x ``[N, D]``.

    The KL is in closed form where there is one; the rest is by samples of z.
    """

    def terms(rows: slice) -> Tensor:
        draw = model.draw(x[rows], SAMPLES)
        try:
            rate = kl_divergence(draw.q, model.prior()).double()
        except NotImplementedError:  # as of a mixture for a prior
            rate = (draw.q.log_prob(draw.z) - model.prior().log_prob(draw.z)).double().mean(0)
        distortion = -draw.log_likelihood.double().mean(0)
        return torch.stack([rate, distortion, -rate - distortion])  # [3, n]

    found = by_blocks(terms, (3, len(x)), ROWS, x.device, "rate and distortion")
    errors = found.std(1) / len(x) ** 0.5
    names = ("rate", "distortion", "elbo")
    return {name: {"mean": m.item(), "standard_error": s.item()} for name, m, s in zip(names, found.mean(1), errors, strict=True)}


@torch.no_grad()
def units_of(model: LatentVariableModel, x: Tensor) -> Units:
    """What each latent dimension is used for, over x ``[N, D]``."""
    units, prior = LatentUnits(model.latent_dim).to(x.device), model.prior()
    for rows in own_slices(len(x), ROWS, "units"):
        units.update(model.posterior(x[rows]), prior)
    return Units(*(value.reshape(model.latent_dim) for value in units.compute()))  # which torchmetrics squeezes


@torch.no_grad()
def parts_of_the_kl(model: LatentVariableModel, x: Tensor, num_codes: int) -> dict[str, float]:
    """The KL taken apart over at most `num_codes` rows of x ``[N, D]``, which are drawn once and for all: nats per datum."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:num_codes]
    with own_generators(0):
        parts = decomposed_kl(model, x[chosen.to(x.device)])
    distance = {"distance_to_prior": (parts.total_correlation + parts.dimension_wise_kl).item()}
    return {"num_data": len(chosen)} | {name: value.item() for name, value in parts._asdict().items()} | distance


def use_of_units(model: LatentVariableModel, units: Units, beta: float | None, data: TensorDataModule) -> dict[str, Any]:
    """How many dimensions are active and collapsed, and how many the eigenvalues predict, where they do."""
    found: dict[str, Any] = {"latent_dim": model.latent_dim, "active": int(units.active.sum()), "collapsed": int(units.collapsed.sum())}
    found |= {"kl": units.kl.tolist()}
    scale = shared_scale(model)
    if scale is None or beta is None or any(x.isnan().any() for x in data.chunks("train")):
        return found
    threshold = beta * scale**2
    variances = moments_of(data.chunks("train")).spectrum().variances[: model.latent_dim]
    return found | {"threshold": threshold, "predicted_active": int((variances > threshold).sum())}


def shared_scale(model: LatentVariableModel) -> float | None:
    """The scale s of a Gaussian likelihood that is one for all dimensions and all z; None: it has no such noise."""
    likelihood = model.likelihood
    if not isinstance(likelihood, Gaussian | LinearGaussian) or not isinstance(likelihood.noise, SharedNoise | FixedNoise):
        return None
    return likelihood.noise(next(model.parameters())).item()


@torch.no_grad()
def labels_from_codes(model: LatentVariableModel, data: TensorDataModule, num_codes: int) -> dict[str, float]:
    """How often neighbours and a linear classifier find test labels from codes, and from as many principal components.

    Both learn from at most `num_codes` training rows; nothing where there are no labels, or entries are missing.
    """
    train, test = data.part("train", num_codes), data.part("test", num_codes)
    if train.labels is None or test.labels is None or train.x.isnan().any() or test.x.isnan().any():
        return {}
    like = next(model.parameters())
    pca = PCA(min(model.latent_dim, train.x.shape[1])).fit(train.x.double().numpy())
    found: dict[str, float] = {}
    for name, encode in {
        "": lambda x: model.encode(x.to(like)).cpu(),
        "pca_": lambda x: torch.from_numpy(pca.transform(x.double().numpy())),
    }.items():
        codes = encode(train.x), train.labels, encode(test.x), test.labels
        found |= {f"{name}knn_accuracy": knn_accuracy(*codes, NEIGHBORS), f"{name}probe_accuracy": probe_accuracy(*codes)}
    return found


def latent_space(
    model: LatentVariableModel, data: TensorDataModule, x: Tensor, units: Units | None, beta: float | None, num_codes: int
) -> dict[str, Any]:
    """All of it for x ``[N, D]``, as far as the model has it."""
    found: dict[str, Any] = rate_and_distortion(model, x) if model.is_bounded else {}
    if units is not None:
        found |= {"units": use_of_units(model, units, beta, data)}
    if model.is_bounded and model.prior().has_rsample:
        found |= {"parts": parts_of_the_kl(model, x, num_codes)}
    return found | {"labels": labels_from_codes(model, data, num_codes)}


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """What was found, in words."""
    if "rate" in found:
        rate, distortion, elbo = (_with_error(found[name]) for name in ("rate", "distortion", "elbo"))
        yield f"Rate {rate} + distortion {distortion} nats per datum: the ELBO, minus their sum, is {elbo}; {SAMPLES} samples of z each"
    if units := found.get("units"):
        used = f"{units['active']} of {units['latent_dim']} latent dimensions active, {units['collapsed']} collapsed"
        used += f" (KL below {COLLAPSED} nats)"
        limit = "; {predicted_active} eigenvalues of the data lie above beta s² = {threshold:.4g}, as many as a linear decoder would keep"
        yield used + (limit.format(**units) if "threshold" in units else "")
    if parts := found.get("parts"):
        whole = (
            "Of {num_data:,} data, nats per datum: KL {kl:.3f} = mutual information {mutual_information:.3f} (at most log N = {limit:.3f})"
        )
        rest = " + {distance_to_prior:.3f}, the distance of q(z) to the prior: total correlation {total_correlation:.3f}"
        rest += " + dimension-wise KL {dimension_wise_kl:.3f}"
        yield (whole + rest).format(**parts, limit=log(parts["num_data"]))
    if labels := found.get("labels"):
        own = "Labels from codes: {knn_accuracy:.1%} right by neighbours, {probe_accuracy:.1%} by a linear classifier; "
        yield (own + "from as many principal components {pca_knn_accuracy:.1%} and {pca_probe_accuracy:.1%}").format(**labels)


def _with_error(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.3f} (standard error {one['standard_error']:.3f})"


def has_units(model: LatentVariableModel) -> bool:
    """Whether the KL of one latent dimension means something."""
    return isinstance(model.prior, StandardNormal)
