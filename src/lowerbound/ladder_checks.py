"""What must hold of a rung: numbers that should be 0, and how far from it they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lowerbound.answers import dense_log_prob
from lowerbound.identities import Collapse
from lowerbound.ladder_linear_vae import Seen, active
from lowerbound.ladder_rows import EXACT, Row
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.plots import COLLAPSED

SIX = 6.0  # standard errors
IDENTITY = 1e-9  # nats, of a sum of three
DENSE = 1e-8  # nats, between two ways of computing one log-density in float64


class Check(NamedTuple):
    """A number that should be 0, and how far from it it may be."""

    what: str
    value: float
    tolerance: float
    unit: str = "nats"

    @property
    def holds(self) -> bool:
        """Whether it is near enough; one that is not finite is not."""
        return abs(self.value) <= self.tolerance


def checks_of(
    rows: Sequence[Row], model: LatentVariableModel, x: Tensor, known: Mapping[str, Tensor], degrees: float | None
) -> list[Check]:
    """Those of a rung, given its rows, and the `log_probs` of x ``[N, D]``; `degrees` is how far its plane may be off that of PCA."""
    name = f"{rows[0].rung}, {rows[0].way}"
    found = [
        Check(f"{name}: {row.quantity}, from its exact answer", row.gap, row.tolerance, row.unit)
        for row in rows
        if row.gap is not None and row.tolerance is not None
    ]
    if degrees is not None and rows[0].angle_degrees is not None:
        found.append(Check(f"{name}: largest angle to the plane of PCA", rows[0].angle_degrees, degrees, "degrees"))
    if EXACT in known and isinstance(p := model.likelihood, LinearGaussian):
        with torch.no_grad():
            dense = dense_log_prob(x.to(p.bias), p.weight, p.bias, p.scale).cpu()
        found.append(Check(f"{name}: log p(x) from that of a dense Gaussian, any datum", (known[EXACT] - dense).abs().max().item(), DENSE))
        if "ELBO" in known:  # without samples of z it is below for every datum
            excess = (known["ELBO"] - known[EXACT]).max().clamp(min=0).item()
            found.append(Check(f"{name}: ELBO above log p(x), any datum", excess, DENSE))
    return found + [_order(name, *pair, known) for pair in pairwise(known)]


def _order(name: str, upper: str, lower: str, known: Mapping[str, Tensor]) -> Check:
    """A bound lies below what is tighter, in expectation over samples of z."""
    excess = known[lower] - known[upper]
    errors = excess.mean() / (excess.std() / len(excess) ** 0.5).clamp(min=1e-12)
    return Check(f"{name}: {lower} above {upper}", errors.clamp(min=0).item(), SIX, "standard errors")


def linear_vae_checks(seen: Sequence[Seen], collapses: Sequence[Collapse]) -> list[Check]:
    """The identity all along, and the dimensions that are active at fixed noise."""
    residual = max(one.residual for one in seen)
    found = [Check("linear VAE: log p(x) = ELBO + KL(q, posterior), any datum, at any step", residual, IDENTITY)]
    if collapses:
        wrong = sum(abs(active(one.kl) - active(one.predicted)) for one in collapses)
        off = max((one.kl - one.predicted).abs().max().item() for one in collapses)
        name = f"linear VAEs with {len(collapses)} fixed noises"
        found.append(Check(f"{name}: active dimensions, from those predicted", wrong, 0, ""))
        found.append(Check(f"{name}: KL of any dimension, from that predicted", off, COLLAPSED))
    return found
