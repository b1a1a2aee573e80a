"""Probabilistic PCA, factor analysis and PCA: one linear Gaussian model (Bishop 2006, chapter 12).

    model         p(z) = N(0, I),  p(x | z) = N(W z + b, Psi)                                      eq. 12.31, 12.32, 12.64
                  Psi = s^2 I: probabilistic PCA.  Psi = diag psi: factor analysis.
    evidence      p(x) = N(b, W W' + Psi)                                                          eq. 12.35, 12.36, 12.65
    posterior     p(z | x) = N(G^-1 W' Psi^-1 (x - b), G^-1),  G = I + W' Psi^-1 W                 eq. 12.42, 12.66, 12.68
    E-step        <z_n>,  <z_n z_n'> = G^-1 + <z_n> <z_n>'                                         eq. 12.54, 12.55, 12.67
    M-step        W = [sum (x_n - b) <z_n>'] [sum <z_n z_n'>]^-1                                   eq. 12.56, 12.69
                  psi = diag of 1/N sum (x_n - b)(x_n - b)' - W <z_n> (x_n - b)',  s^2 = mean psi  eq. 12.57, 12.70
    closed form   W = U_L (Lambda_L - s^2 I)^(1/2),  s^2 = mean of the other eigenvalues           eq. 12.45, 12.46 (R = I)
    PCA           the limit s^2 -> 0: z = (W'W)^-1 W' (x - b), W = X Z' (Z Z')^-1                  eq. 12.58, 12.59; Roweis 1998

The eigenvalues Lambda and eigenvectors U are those of the data's covariance. The M-step solves for W and b together, b as the
column of W that belongs to a latent variable of constant 1. A missing entry is an observation of zero precision: 1/psi_d becomes
m_nd / psi_d in G and in the sums, with m_nd = 1 where x_nd is observed, else 0. Everything is float64: in float32 the gradient in
W loses its digits as s^2 -> 0.
"""

from __future__ import annotations

from math import log, pi
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from lowerbound.distributions import Delta, covariance_of, diagonal_normal
from lowerbound.errors import whole
from lowerbound.likelihoods import FixedNoise, Noise, remark_on_bits
from lowerbound.parts import Affine, ClosedForm, Likelihood, LinearPosterior, OnMoments, Predicted
from lowerbound.priors import StandardNormal
from lowerbound.statistics import Moments, Spectrum, Statistics

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


@final
class LinearGaussian(Likelihood, OnMoments, ClosedForm):
    """N(W z + b, diag s^2), W ``[D, L]`` and b ``[D]``, with s from a `Noise` that does not depend on z.

    Raises:
        ValueError: latent_dim is not below data_dim, or the noise depends on z.
    """

    marginalizes_missing = True
    offset: Tensor

    def __init__(self, latent_dim: int, data_dim: int, noise: Noise) -> None:
        super().__init__()
        self.latent_dim, self.data_dim = whole(latent_dim, "latent_dim"), whole(data_dim, "data.dim")
        if latent_dim >= data_dim:
            raise ValueError(
                f"latent_dim={latent_dim} must be below data.dim={data_dim}: with as many latents as dimensions there is nothing to reduce"
            )
        if noise.outputs_per_dim:
            raise ValueError(
                f"a linear Gaussian model has one noise for every z, not {type(noise).__name__}: choose noise=shared or per_dimension"
            )
        self.weight = nn.Parameter(torch.randn(data_dim, latent_dim) / latent_dim**0.5)  # [D, L]
        self.bias = nn.Parameter(torch.zeros(data_dim))  # [D]
        self.noise = noise
        self.register_buffer("offset", torch.zeros(data_dim))  # what x is counted from in sums
        self.double()

    @property
    def scale(self) -> Tensor:
        """s ``[D]``."""
        return self.noise(self.bias.new_empty(0)).expand(self.data_dim)

    @property
    def covariance(self) -> Tensor:
        """W W' + Psi ``[D, D]``, that of p(x) (eq. 12.36)."""
        return self.weight @ self.weight.T + self.scale.square().diag()

    def forward(self, z: Tensor) -> Distribution:
        """N(W z + b, diag s^2) for z ``[..., L]``, event ``[D]``."""
        return diagonal_normal(z @ self.weight.T + self.bias, self.scale)

    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """The sums of eq. 12.54, 12.55 over observed entries, with z extended by a constant 1: E = L + 1."""
        observed = ~x.isnan()  # [N, D]
        x = (x.double() - self.offset).masked_fill(~observed, 0.0)  # [N, D]
        z = extended(q.mean)  # [N, E]
        second = z.unsqueeze(-1) * z.unsqueeze(-2) + nn.functional.pad(covariance_of(q), (0, 1, 0, 1))  # [N, E, E]
        zz = (observed.double().T @ second.flatten(1)).unflatten(1, second.shape[1:])  # [D, E, E]
        return {"zz": zz, "xz": x.T @ z, "xx": x.square().sum(0), "count": observed.sum(0).double()}

    def expected(self, moments: Moments, model: LatentVariableModel) -> Statistics:
        """The same sums from the moments of complete data; `zz` ``[1, E, E]`` is the same for every dimension."""
        gain, covariance = affine_of(model)
        count, shift, x = moments.count, moments.mean - self.bias, moments.mean - self.offset
        z = gain @ shift  # [L], the mean of <z>
        products = moments.scatter @ gain.T  # [D, L]
        xz = torch.cat([products + count * torch.outer(x, z), (count * x).unsqueeze(1)], 1)  # [D, E]
        one = extended(z)
        zz = count * torch.outer(one, one) + nn.functional.pad(gain @ products + count * covariance, (0, 1, 0, 1))  # [E, E]
        xx = moments.scatter.diagonal() + count * x.square()
        return {"zz": zz.unsqueeze(0), "xz": xz, "xx": xx, "count": count.expand(self.data_dim)}

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """Eq. 12.56 and 12.57, or 12.69 and 12.70. A dimension without an observation keeps its row."""
        zz, xz, count = statistics["zz"], statistics["xz"], statistics["count"]
        solution = (torch.linalg.pinv(zz, hermitian=True) @ xz.unsqueeze(-1)).squeeze(-1)  # [D, E]
        seen = (count > 0).unsqueeze(1)
        self.weight.copy_(torch.where(seen, solution[:, :-1], self.weight))
        self.bias.copy_(self.offset + solution[:, -1])
        self.noise.maximize((statistics["xx"] - (solution * xz).sum(1)).clamp(min=0), count)

    def terms(self, moments: Moments, model: LatentVariableModel) -> Tensor:
        """Means over data, by E[(x - b)(x - b)'] in place of (x - b)(x - b)'; without a KL for PCA."""
        gain, covariance = affine_of(model)
        shift = moments.mean - self.bias
        second = moments.scatter / moments.count + torch.outer(shift, shift)  # [D, D]
        zx = gain @ second  # [L, D]
        zz = covariance + zx @ gain.T  # [L, L]
        square = second.diagonal() - 2 * (zx.T * self.weight).sum(1) + ((self.weight @ zz) * self.weight).sum(1)  # [D]
        reconstruction = -(square / self.scale.square() + 2 * self.scale.log() + log(2 * pi)).sum() / 2
        kl = (zz.trace() - self.latent_dim - torch.logdet(covariance)) / 2 if model.is_bounded else torch.zeros_like(reconstruction)
        return torch.stack([reconstruction - kl, reconstruction, kl]).detach()

    @torch.no_grad()
    def solve(self, spectrum: Spectrum, model: LatentVariableModel) -> None:
        """Eq. 12.45 and 12.46; for PCA W = U_L."""
        if not isinstance(self.noise, FixedNoise) and self.noise(self.bias.new_empty(0)).ndim:
            raise ValueError("factor analysis (noise=per_dimension) has no closed form: choose fit=em, or noise=shared")
        if spectrum.count <= self.latent_dim:
            rows = int(spectrum.count)
            raise ValueError(f"{rows} training rows span at most {rows - 1} directions: latent_dim={self.latent_dim} must be lower")
        axes, variances = spectrum.axes[:, : self.latent_dim], spectrum.variances[: self.latent_dim]
        residual = spectrum.residual(self.latent_dim).expand(self.data_dim)
        self.noise.maximize(residual, torch.ones_like(residual))
        stretch = (variances - self.scale[0].square()).clamp(min=0).sqrt() if model.prior.is_proper else torch.ones_like(variances)
        self.weight.copy_(axes * stretch)
        self.bias.copy_(spectrum.mean)

    @torch.no_grad()
    def initialize(self, x: Tensor, num_data: int) -> None:
        """b = the mean, W random with a half of the variance, s^2 the other half."""
        x = x.double()
        self.offset.copy_(x.nanmean(0).nan_to_num(0.0))
        self.bias.copy_(self.offset)
        variance = (x - self.bias).square().nanmean(0).nan_to_num(0.0) / 2  # [D]
        self.weight.copy_(self.weight * variance.mean().sqrt())
        self.noise.maximize(variance, torch.ones_like(variance))

    def predict(self, x: Tensor, q: Distribution, num_samples: int = 0) -> Predicted:
        """W <z> + b, and the diagonal of W cov[z] W' + Psi; none of PCA, which has no density."""
        mean = q.mean @ self.weight.T + self.bias  # [N, D]
        if isinstance(q, Delta):
            return Predicted(mean, None)
        variance = ((self.weight @ covariance_of(q)) * self.weight).sum(-1) + self.scale.square()  # [N, D]
        return Predicted(mean, variance.sqrt())

    def check_data(self, x: Tensor) -> str | None:
        """Remark on bits, which have no density."""
        return remark_on_bits(x) if self.noise.min_scale else None

    def floored(self) -> str | None:
        """A sentence if a learnt scale has come within 5% of its floor."""
        return self.noise.floored()


def extended(z: Tensor) -> Tensor:
    """z ``[..., L]`` with a constant 1 behind it ``[..., L + 1]``."""
    return nn.functional.pad(z, (0, 1), value=1.0)


def linear(model: LatentVariableModel) -> LinearGaussian:
    """The model's likelihood, if it is linear and Gaussian.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(model.likelihood, LinearGaussian):
        raise ValueError(
            f"the posterior {type(model.posterior_rule).__name__} belongs to a linear Gaussian likelihood, not to "
            f"{type(model.likelihood).__name__}: choose likelihood=linear_gaussian, or posterior=diagonal_gaussian"
        )
    return model.likelihood


def affine_of(model: LatentVariableModel) -> Affine:
    """Gain and covariance of the model's posterior."""
    assert isinstance(model.posterior_rule, LinearPosterior)
    return model.posterior_rule.affine(model)


@final
class ExactGaussian(LinearPosterior):
    """p(z | x) of a linear Gaussian likelihood under N(0, I), by Bayes' rule (eq. 12.42, 12.66)."""

    is_exact, accepts_missing = True, True

    def check_model(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the prior is not N(0, I) or the likelihood not linear and Gaussian."""
        linear(model)
        if not isinstance(model.prior, StandardNormal):
            raise ValueError(f"posterior=exact is Bayes' rule under prior=standard_normal, not under {type(model.prior).__name__}")

    def affine(self, model: LatentVariableModel) -> Affine:
        """G^-1 W' Psi^-1 and G^-1."""
        p = linear(model)
        scaled = p.weight / p.scale.square().unsqueeze(1)  # [D, L], Psi^-1 W
        precision = torch.eye(p.latent_dim, dtype=scaled.dtype, device=scaled.device) + p.weight.T @ scaled  # [L, L]
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return Affine(covariance @ scaled.T, covariance)

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """p(z | x_observed) for x ``[N, D]``; one precision for all rows if nothing is missing."""
        p = linear(model)
        missing = x.isnan()
        error = (x - p.bias).masked_fill(missing, 0.0)  # [N, D]
        scaled = p.weight / p.scale.square().unsqueeze(1)  # [D, L]
        identity = torch.eye(p.latent_dim, dtype=scaled.dtype, device=scaled.device)
        if missing.any():
            outer = (p.weight.unsqueeze(2) * scaled.unsqueeze(1)).flatten(1)  # [D, L L]
            precision = identity + ((~missing).to(outer) @ outer).unflatten(1, identity.shape)  # [N, L, L]
        else:
            precision = identity + p.weight.T @ scaled  # [L, L]
        factor = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve((error @ scaled).unsqueeze(-1), factor).squeeze(-1)  # [N, L]
        return MultivariateNormal(mean, precision_matrix=precision, validate_args=False)


@final
class OrthogonalProjection(LinearPosterior):
    """The point z = (W'W)^-1 W'(x - b): of all points of the plane the nearest to x.

    Where entries are missing it is the nearest in the observed ones, and of several the one with the smallest norm.
    """

    is_point, accepts_missing = True, True

    def check_model(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the likelihood is not linear and Gaussian."""
        linear(model)

    def affine(self, model: LatentVariableModel) -> Affine:
        """(W'W)^-1 W' and zero."""
        weight = linear(model).weight
        return Affine(torch.linalg.pinv(weight), weight.new_zeros(weight.shape[1], weight.shape[1]))

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """The point for x ``[N, D]``."""
        p = linear(model)
        missing = x.isnan()
        error = (x - p.bias).masked_fill(missing, 0.0)  # [N, D]
        if not missing.any():
            return Delta(error @ self.affine(model).gain.T)
        outer = (p.weight.unsqueeze(2) * p.weight.unsqueeze(1)).flatten(1)  # [D, L L]
        gram = ((~missing).to(outer) @ outer).unflatten(1, (p.latent_dim, p.latent_dim))  # [N, L, L]
        inverse = torch.linalg.pinv(gram, hermitian=True)
        return Delta((inverse @ (error @ p.weight).unsqueeze(-1)).squeeze(-1))
