"""Starts: parameters set from training rows before the first step of learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, Noise, SharedNoise
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian, OrthogonalProjection
from lowerbound.model import LatentVariableModel
from lowerbound.networks import ACTIVATIONS, MLP, Linear, MaskedMLP, MLPDecoder
from lowerbound.posteriors import Delta, DiagonalGaussian, FullGaussian
from lowerbound.priors import Flat, StandardNormal
from lowerbound.statistics import Moments

CERTAIN = 0.01  # a mean of bits is not taken nearer to 0 or 1: its logit would be that of so many data
SMALL = 0.1  # where an activation that is not linear in h(x) - h(-x) is nearly so


class Start(ABC):
    """Where learning begins. Implement `__call__`."""

    @abstractmethod
    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Set the model's parameters from training rows x ``[n, D]``, a part of all `num_data`."""


@final
class FromRows(Start):
    """What each part makes of the rows: their mean, their variance, k-means++ seeds. Networks stay as they are."""

    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Ask the parts."""
        model.initialize(x, num_data)


@final
class AsItIs(Start):
    """The parameters that the model has; sums are counted from the mean of the rows."""

    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Tell the parts that add."""
        for part in model.solvable:
            part.count_from(x)


class Plane(NamedTuple):
    """PCA or probabilistic PCA of some rows: z = gain (x - mean), x = weight z + mean."""

    mean: Tensor  # [D]
    weight: Tensor  # [D, L]
    gain: Tensor  # [L, D]
    scale: Tensor  # [L], the standard deviation of z given x
    rest: Tensor  # [D], the variance of x that W z leaves


@final
class FromPCA(Start):
    """The closed form on the training rows: probabilistic PCA where z has a proper prior, PCA where it has none.

    A linear likelihood takes W and b, a learnt noise the variance that W z leaves, and a linear encoder the mean of p(z | x) with
    its standard deviation. An MLP starts as the same affine map: of the units of each hidden layer two for each latent dimension
    carry it, and the last layer hears no others until it has learnt to. So a VAE starts near the evidence of its linear model. A
    Bernoulli decoder starts with the logits of the mean p and slopes w_d / p_d (1 - p_d), as if z were Gaussian given x_d. Noise that
    depends on z and learnt priors stay as they are. A missing entry counts as the mean of its column.

    Raises:
        ValueError: a part cannot hold an affine map, or the rows are too few; the message says what would fit.
    """

    @torch.no_grad()
    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        """Set the likelihood and the posterior."""
        noise = getattr(model.likelihood, "noise", None)
        plane = plane_of(x, model.latent_dim, model.prior.is_proper, noise)
        self._set_likelihood(model.likelihood, plane)
        self._set_posterior(model.posterior_rule, plane)
        if isinstance(noise, Noise):
            noise.maximize(plane.rest, torch.ones_like(plane.rest))

    @staticmethod
    def _set_likelihood(p: nn.Module, plane: Plane) -> None:
        mean, weight = plane.mean, plane.weight
        if isinstance(p, LinearGaussian):
            p.count_from(mean.unsqueeze(0))
            p.weight.copy_(weight)
            p.bias.copy_(mean)
            return
        if isinstance(p, Bernoulli):
            chance = mean.clamp(CERTAIN, 1 - CERTAIN)
            mean, weight = chance.logit(), weight / (chance * (1 - chance)).unsqueeze(1)
        elif not isinstance(p, Gaussian):
            raise ValueError(f"start=pca: {type(p).__name__} has no affine map of z; choose start=rows, or likelihood=linear_gaussian")
        identity = torch.eye(weight.shape[1]).to(weight)
        become_affine(p.network, identity, torch.zeros_like(identity[0]), weight, mean)

    @staticmethod
    def _set_posterior(rule: nn.Module, plane: Plane) -> None:
        if not any(True for _ in rule.parameters()):
            return
        if not isinstance(rule, Delta | DiagonalGaussian | FullGaussian):
            raise ValueError(f"start=pca: {type(rule).__name__} has no affine map of x; choose start=rows, or posterior=diagonal_gaussian")
        gain, shift, log_scale = plane.gain, -plane.gain @ plane.mean, plane.scale.log()
        if isinstance(rule, DiagonalGaussian) and rule.log_scale is not None:
            rule.log_scale.copy_(log_scale)
        is_network_scale = isinstance(rule, FullGaussian) or (isinstance(rule, DiagonalGaussian) and rule.log_scale is None)
        constants = torch.cat([torch.zeros_like(shift), log_scale if is_network_scale else shift[:0]])
        if isinstance(rule.network, MaskedMLP):  # of [x, m]: a missing entry adds nothing
            gain, shift = torch.cat([gain, -gain * plane.mean], 1), torch.zeros_like(shift)
        become_affine(rule.network, gain, shift, torch.eye(len(gain)).to(gain), constants)


def plane_of(x: Tensor, latent_dim: int, is_proper: bool, noise: Noise | None = None) -> Plane:
    """Probabilistic PCA of rows ``[n, D]``, or PCA if not `is_proper`; with the scale of the noise, if one is stated."""
    x = x.double()
    if x.isnan().any():
        x = torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.0), x)
    moments, dim = Moments.of(x), x.shape[1]
    spectrum = moments.spectrum()
    prior, rule = (StandardNormal(latent_dim), ExactGaussian()) if is_proper else (Flat(latent_dim), OrthogonalProjection())
    stated = noise if isinstance(noise, FixedNoise) else None if is_proper else FixedNoise(dim)  # PCA learns none
    p = LinearGaussian(latent_dim, dim, SharedNoise(dim) if stated is None else FixedNoise(dim, stated.scale))
    model = LatentVariableModel(prior, p, rule).to(x.device)
    p.solve(spectrum, model)
    gain, covariance = rule.affine(model)
    told = (p.weight * (1.0 if is_proper else spectrum.variances[:latent_dim].sqrt())).square().sum(1)
    return Plane(
        p.bias, p.weight, gain, covariance.diagonal().sqrt(), (moments.squares / moments.count - told).clamp(min=0)
    )  # below 0 by rounding only


def become_affine(network: nn.Module, inner: Tensor, inner_shift: Tensor, outer: Tensor, shift: Tensor) -> None:
    """Let an MLP, or a matrix, compute outer (inner x + inner_shift) + shift in its first outputs; all others are constant.

    A hidden layer carries h, the L numbers in between, as a(h) and a(-h), whose difference is h for the activations relu, gelu, silu
    and softplus, and for others nearly so where h is small.

    Raises:
        ValueError: the network is of another kind, or a hidden layer has fewer than 2 L units.
    """
    if not isinstance(network, Linear | MLP | MLPDecoder | MaskedMLP):
        raise ValueError(f"start=pca: {type(network).__name__} cannot start as a matrix; choose network=mlp or linear, or start=null")
    *hidden, last = [module for module in network.modules() if isinstance(module, nn.Linear)]
    carried = 2 * len(inner)
    if (narrow := min((layer.out_features for layer in hidden), default=carried)) < carried:
        raise ValueError(
            f"start=pca: a hidden layer of {narrow} units is too narrow for latent_dim={len(inner)}: "
            f"give network.encoder.sizes of {carried} or more"
        )
    matrix, offset = inner, inner_shift
    for layer in hidden:
        into, out_of = _gains(network)
        layer.weight[:carried] = (torch.cat([matrix, -matrix]) * into).to(layer.weight)
        layer.bias[:carried] = (torch.cat([offset, -offset]) * into).to(layer.bias)
        matrix = inner.new_zeros(len(inner), layer.out_features)
        matrix[:, :carried] = torch.eye(len(inner)).repeat(1, 2).to(inner) / out_of
        matrix[:, carried // 2 : carried] *= -1
        offset = torch.zeros_like(inner_shift)
    last.weight.zero_()
    last.bias.zero_()
    last.weight[: len(outer)] = (outer @ matrix).to(last.weight)
    last.bias[: len(outer)] = (outer @ offset).to(last.bias)
    last.bias[: len(shift)] += shift.to(last.bias)


def _gains(network: nn.Module) -> tuple[float, float]:
    """By what to multiply h before the activation a, and by what to divide a(h) - a(-h) afterwards."""
    activation = next(module for module in network.modules() if isinstance(module, tuple(ACTIVATIONS.values())))

    def odd(h: float) -> float:
        return (activation(torch.tensor(h)) - activation(torch.tensor(-h))).item()

    into = 1.0 if abs(odd(2.0) - 2 * odd(1.0)) < 1e-3 else SMALL
    return into, odd(into)
