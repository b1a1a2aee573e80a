"""A model in equations, as a reader of its report sees it: p(z), p(x | z) and q(z | x), a line each.

A part of the user's own is called by the name of its class, unless it has an attribute `equation`.
"""

from __future__ import annotations

from functools import singledispatch

from torch import nn

from lowerbound.covariances import Covariance, Diagonal, Spherical
from lowerbound.dense_covariances import Full, LowRank, Tied
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, NetworkNoise, Noise, NoisePerDimension, SharedNoise
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian, OrthogonalProjection
from lowerbound.mixture import BernoulliComponents, Enumeration, GaussianComponents
from lowerbound.model import LatentVariableModel
from lowerbound.posteriors import Delta, DiagonalGaussian, FullGaussian
from lowerbound.posteriors import Tied as TiedProjection
from lowerbound.priors import Flat, MixtureOfGaussians, OneHot, StandardNormal

NOISES: dict[type[Noise], str] = {SharedNoise: "s² I", NoisePerDimension: "diag s²", NetworkNoise: "diag s(z)²"}
COVARIANCES: dict[type[Covariance], str] = {
    Full: "Σ_k",
    Tied: "Σ",
    LowRank: "W_k W_k' + s_k² I",
    Diagonal: "diag s_k²",
    Spherical: "s_k² I",
}

PARTS: dict[type[nn.Module], str] = {
    Bernoulli: "x_d | z ~ Bernoulli(sigmoid f_d(z)), independent",
    BernoulliComponents: "x_d | z_k = 1 ~ Bernoulli(μ_kd), independent",
    FullGaussian: "q(z | x) = N(m(x), C(x) C(x)')",
    Delta: "z = g(x), a point",
    TiedProjection: "z = W'(x - b), a point",
    OrthogonalProjection: "z = (W'W)⁻¹ W'(x - b), a point",
    ExactGaussian: "q(z | x) = p(z | x), Bayes' posterior",
    Enumeration: "q(z | x) = p(z | x), Bayes' posterior",
}


def equations(model: LatentVariableModel) -> list[str]:
    """Prior, likelihood and posterior."""
    return [equation(part) for part in (model.prior, model.likelihood, model.posterior_rule)]


@singledispatch
def equation(part: nn.Module) -> str:
    """The equation of a part."""
    return PARTS.get(type(part), str(getattr(part, "equation", type(part).__name__)))


@equation.register
def _standard_normal(part: StandardNormal) -> str:
    return f"z ~ N(0, I), {part.latent_dim} dimensions"


@equation.register
def _mixture_of_gaussians(part: MixtureOfGaussians) -> str:
    return f"z ~ Σ_k π_k N(m_k, diag s_k²), {len(part.logits)} components, {part.latent_dim} dimensions"


@equation.register
def _one_hot(part: OneHot) -> str:
    return f"z ~ Cat(π), {part.latent_dim} components" if part.latent_dim > 1 else "one z"


@equation.register
def _flat(part: Flat) -> str:
    return f"p(z) = 1, which is no distribution, {part.latent_dim} dimensions"


@equation.register
def _gaussian(part: Gaussian) -> str:
    return f"x | z ~ N(f(z), {_noise(part.noise)})"


@equation.register
def _linear_gaussian(part: LinearGaussian) -> str:
    return f"x | z ~ N(W z + b, {_noise(part.noise)})"


@equation.register
def _gaussian_components(part: GaussianComponents) -> str:
    return f"x | z_k = 1 ~ N(μ_k, {COVARIANCES.get(type(part.covariance), 'Σ_k')})"


@equation.register
def _diagonal_gaussian(part: DiagonalGaussian) -> str:
    return f"q(z | x) = N(m(x), {'diag s(x)²' if part.log_scale is None else 'diag s²'})"


def _noise(noise: Noise) -> str:
    if isinstance(noise, FixedNoise):
        return f"{noise.scale:.4g}² I"
    return NOISES.get(type(noise), type(noise).__name__)
