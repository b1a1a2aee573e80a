"""Objectives that make the columns of a linear autoencoder's W the principal axes; `Reconstruction` fixes only their span.

With x_i = b + sum_{j <= i} w_j z_j, the reconstruction from the first i entries of the code z = V x + c, all per datum:

    penalized   |x - x_L|^2 + sum_j lambda_j (|w_j|^2 + |v_j|^2)       Kunin et al. 2019, Bao et al. 2020
                one lambda: the axes are the left singular vectors of W; lambda_1 < ... < lambda_L: the columns of W
    nested      |x - x_i|^2, i ~ p(i), drawn anew for each datum       Rippel et al. 2014
                E_p |x - x_i|^2, the same in expectation               Bao et al. 2020
    ordered     sum_i |x - x_i|^2                                      Oftadeh et al. 2020

What is maximised is the log-density of which these are the squares: at scale s, -square / (2 s^2) and the constants of
log N(x; x_i, s^2 I). `Bound.reconstruction` is log N(x; x_L, s^2 I), whatever is maximised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import log, pi
from typing import final

import torch
from torch import Tensor

from lowerbound.axes import Maps, maps_of
from lowerbound.errors import real
from lowerbound.likelihoods import FixedNoise
from lowerbound.linear_gaussian import LinearGaussian, OrthogonalProjection
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Bound, Objective
from lowerbound.schedules import Step


def linear_autoencoder(model: LatentVariableModel, objective: Objective) -> tuple[Maps, float]:
    """Decoder and encoder of a linear autoencoder, and the scale of its squared error.

    Raises:
        ValueError: the model is none.
    """
    p, name = model.likelihood, type(objective).__name__
    noise = p.noise if isinstance(p, LinearGaussian) else None
    if not isinstance(noise, FixedNoise) or model.prior.is_proper or isinstance(model.posterior_rule, OrthogonalProjection):
        raise ValueError(
            f"objective {name} is for linear autoencoders: choose model=linear_autoencoder, with network=linear and noise=fixed, "
            "or with posterior=tied"
        )
    return maps_of(model), noise.scale


def square_errors(maps: Maps, x: Tensor) -> Tensor:
    """|x - x_i|^2 for i = 1, ..., L and x ``[N, D]``: ``[N, L]``.

    With e = x - b, adding w_i z_i to x_(i-1) changes the square by z_i (2 sum_{j < i} w_i'w_j z_j + w_i'w_i z_i - 2 w_i'e).
    """
    weight, bias, gain, shift = maps
    x = x.to(weight)
    z, error = x @ gain.T + shift, x - bias  # [N, L], [N, D]
    gram = weight.T @ weight  # [L, L]
    change = z * (2 * z @ gram.tril(-1).T + z * gram.diagonal() - 2 * error @ weight)
    return error.square().sum(-1, keepdim=True) + change.cumsum(-1)


class LinearAutoencoderObjective(Objective, ABC):
    """An objective of linear autoencoders. Implement `value`."""

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        """The terms for x ``[N, D]``.

        Raises:
            ValueError: the model is no linear autoencoder.
        """
        maps, scale = linear_autoencoder(model, self)
        log_density = -(square_errors(maps, x) / scale**2 + x.shape[-1] * log(2 * pi * scale**2)) / 2  # [N, L]
        return Bound(self.value(log_density, maps, scale), log_density[:, -1], None)

    @abstractmethod
    def value(self, log_density: Tensor, maps: Maps, scale: float) -> Tensor:
        """What is maximised ``[N]``, given log N(x; x_i, s^2 I) ``[N, L]`` for i = 1, ..., L."""


@final
class PenalizedReconstruction(LinearAutoencoderObjective):
    """The log-density less the L2 penalty of W and V; b and c go free.

    `penalty` is lambda: one number, or L numbers that increase, or the first and the last of L whose squares are equally far apart,
    because two columns on each other's axes, of variances v_i > v_j, cost (lambda_j^2 - lambda_i^2) (1 / v_j - 1 / v_i) more. It counts per
    datum and in the unit of a variance, as in Bao et al. 2020; Kunin et al. 2019 have N lambda beside the sum over data. At the optimum
    the share 1 - lambda / v of a deviation along an axis is reconstructed, and nothing where v <= lambda.
    """

    def __init__(self, penalty: float | Sequence[float] = 0.01) -> None:
        given = penalty if isinstance(penalty, Sequence) else [penalty]
        self.penalty = [real(one, "objective.penalty", above=0) for one in given]
        if not self.penalty or any(not low < high for low, high in pairwise(self.penalty)):
            raise ValueError(
                f"objective.penalty={penalty!r} must be a number, or numbers that increase from one latent dimension to the next"
            )

    def value(self, log_density: Tensor, maps: Maps, scale: float) -> Tensor:
        """That of x_L, less the penalty in the same unit."""
        squares = maps.weight.square().sum(0) + maps.gain.square().sum(1)  # [L]
        return log_density[:, -1] - squares @ self._penalties(squares) / (2 * scale**2)

    def _penalties(self, like: Tensor) -> Tensor:
        """One for each latent dimension, ``[L]``."""
        dims, penalty = len(like), self.penalty
        if len(penalty) not in (1, 2, dims):
            raise ValueError(f"objective.penalty has {len(penalty)} numbers, and latent_dim={dims}: give one, two or {dims}")
        given = like.new_tensor(penalty)
        if len(penalty) == dims:
            return given
        return torch.linspace(penalty[0] ** 2, penalty[-1] ** 2, dims, dtype=like.dtype, device=like.device).sqrt()


@final
class NestedDropout(LinearAutoencoderObjective):
    """The log-density of x_i with i drawn for each datum, so that the first entries of the code come to matter most.

    Each entry after the first is kept with probability `keep` if the one before it is: p(i) = keep^(i - 1) (1 - keep) for i < L, and
    what remains for i = L. Without `sampled` it is the mean over p(i), computed: the same objective without its noise.
    """

    def __init__(self, keep: float = 0.8, sampled: bool = True) -> None:
        self.keep, self.sampled = real(keep, "objective.keep", above=0, below=1), sampled

    def value(self, log_density: Tensor, maps: Maps, scale: float) -> Tensor:
        """That of x_i, i ~ p(i), or its mean."""
        if not self.sampled:
            return log_density @ self.probabilities(log_density)
        uniform = torch.rand(len(log_density), 1, dtype=log_density.dtype, device=log_density.device)
        index = (uniform.log() / log(self.keep)).clamp(max=log_density.shape[1] - 1).long()  # i - 1
        return log_density.gather(1, index).squeeze(1)

    def probabilities(self, like: Tensor) -> Tensor:
        """p(i) ``[L]``."""
        kept = self.keep ** torch.arange(like.shape[1] + 1, dtype=like.dtype, device=like.device)  # P(i > j), j = 0, ..., L
        kept[-1] = 0
        return kept[:-1] - kept[1:]


@final
class OrderedReconstruction(LinearAutoencoderObjective):
    """The sum of the log-densities of x_1, ..., x_L: each has its greatest where w_1, ..., w_i span the first i principal axes."""

    def value(self, log_density: Tensor, maps: Maps, scale: float) -> Tensor:
        """Their sum."""
        return log_density.sum(1)
