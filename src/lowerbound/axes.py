"""Principal axes of linear models: from any trained one to the same model with the axes as its columns, and how far off they are.

    encoder z = V x + c,  decoder x = W z + b        W V x is all that squared error sees, so W A and A^-1 V do as well
    under N(0, I)                                    p(x) = N(b, W W' + Psi) leaves W R, R'R = I

`canonical` takes the A that is meant: columns in the order of the variance they explain, with the sign of `statistics.signed`.
Angles are in degrees, between directions, so at most 90.
"""

from __future__ import annotations

from copy import deepcopy
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.networks import Linear
from lowerbound.parts import LinearPosterior
from lowerbound.posteriors import Delta, DiagonalGaussian, Tied
from lowerbound.statistics import Moments, eigenvectors, signed


class Maps(NamedTuple):
    """Decoder x = W z + b and encoder z = V x + c."""

    weight: Tensor  # [D, L]
    bias: Tensor  # [D]
    gain: Tensor  # [L, D]
    shift: Tensor  # [L]


def encoder_of(model: LatentVariableModel) -> nn.Linear | None:
    """The affine map that is the mean of q(z | x) and no more than that, if the model has one with parameters of its own."""
    rule = model.posterior_rule
    is_mean = isinstance(rule, Delta) or (isinstance(rule, DiagonalGaussian) and rule.log_scale is not None)
    return rule.network.linear if is_mean and isinstance(rule.network, Linear) else None


def maps_of(model: LatentVariableModel) -> Maps:
    """The model's decoder and the mean of its posterior, both affine.

    Raises:
        ValueError: one of them is not.
    """
    p, rule = model.likelihood, model.posterior_rule
    if not isinstance(p, LinearGaussian):
        raise ValueError(f"the decoder is no matrix, but a {type(p).__name__}: choose likelihood=linear_gaussian")
    if (encoder := encoder_of(model)) is not None:
        return Maps(p.weight, p.bias, encoder.weight, encoder.bias)
    if isinstance(rule, LinearPosterior):
        gain = rule.affine(model).gain
        return Maps(p.weight, p.bias, gain, -gain @ p.bias)
    raise ValueError(
        f"the posterior {type(rule).__name__} is not linear with one covariance for all x: choose network=linear, "
        "with posterior.shared_scale=true under posterior=diagonal_gaussian"
    )


@torch.no_grad()
def canonical(model: LatentVariableModel, x: Tensor | None = None) -> LatentVariableModel:
    """An equivalent copy of a linear model whose columns of W are principal axes, ordered by the variance they explain.

    Under a flat prior they are the principal axes, of length 1, of the data x ``[N, D]`` within the plane of W, and
    reconstructions stay as they are. With tied weights they cannot be stretched, only rotated: the codes of x become uncorrelated.
    Under N(0, I) they are those of the model's own covariance W W', of length standard deviation, x is not used, and p(x) stays as
    it is. So does the mean of q; its covariance, if q is diagonal, becomes the diagonal of the rotated one, which lowers no ELBO.

    Raises:
        ValueError: the model is not linear, or its prior is flat and x is None or has missing entries.
    """
    model = deepcopy(model)
    weight, _, gain, shift = maps_of(model)
    columns, inverse = _stretched_axes(weight) if model.prior.is_proper else _axes_of_data(model, x)
    encoder = encoder_of(model)
    if encoder is not None:
        gain, shift = inverse @ gain, inverse @ shift
        encoder.weight.copy_(gain)
        encoder.bias.copy_(shift)
    if isinstance(rule := model.posterior_rule, DiagonalGaussian) and rule.log_scale is not None:
        rule.log_scale.copy_((inverse.square() @ (2 * rule.log_scale).exp()).log() / 2)
    weight.copy_(columns)
    return model


def _stretched_axes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W R with orthogonal columns of falling length, and R'."""
    left, lengths, rotation = torch.linalg.svd(weight, full_matrices=False)
    signs = _signs(left)
    return left * (lengths * signs), rotation * signs.unsqueeze(1)


def _axes_of_data(model: LatentVariableModel, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """W A and A^-1; of tied weights, which have no map V to be given A^-1, W R only."""
    weight = maps_of(model).weight
    if x is None:
        raise ValueError("canonical: under a flat prior the order of the axes is that of data: give rows x")
    if x.isnan().any():
        raise ValueError("canonical: the rows x have missing entries (NaN), and the order of the axes is that of complete data")
    tied = isinstance(model.posterior_rule, Tied)
    basis = weight if tied else torch.linalg.qr(weight).Q  # [D, L]
    _, rotation = eigenvectors(basis.T @ (Moments.of(x.to(weight)).scatter @ basis))
    axes = basis @ rotation
    axes = axes * _signs(axes)
    return axes, axes.T @ weight


def _signs(axes: Tensor) -> Tensor:
    """1 or -1 ``[L]``: what `signed` makes of each axis."""
    return torch.where((signed(axes) * axes).sum(0) < 0, -1.0, 1.0).to(axes)


def largest_angle(weight: Tensor, axes: Tensor) -> float:
    """The largest principal angle, in degrees, between the spans of W ``[D, L]`` and of axes ``[D, L]`` (Bjorck & Golub 1973)."""
    one, other = (torch.linalg.qr(columns.detach().double()).Q for columns in (weight, axes))
    inner = one.T @ other  # [L, L]
    sine, cosine = torch.linalg.matrix_norm(other - one @ inner, 2), torch.linalg.svdvals(inner)[-1]
    return (torch.atan2(sine, cosine) * 180 / pi).item()  # of the two, the sine knows small angles, the cosine large ones


def axis_angles(weight: Tensor, axes: Tensor) -> Tensor:
    """The angle, in degrees, of each column of W ``[D, L]`` to the axis of the same index ``[D, L]``, up to sign: ``[L]``."""
    one, other = (nn.functional.normalize(columns.detach().double(), dim=0) for columns in (weight, axes))
    inner = (one * other).sum(0)
    return torch.atan2((one - other * inner).norm(dim=0), inner.abs()) * 180 / pi
