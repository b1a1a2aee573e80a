"""Probabilistic PCA, factor analysis and PCA: one linear Gaussian model (Bishop 2006, chapter 12).

    model         p(z) = N(0, I),  p(x | z) = N(W z + b, Psi)                                      eq. 12.31, 12.32, 12.64
                  Psi = s^2 I: probabilistic PCA.  Psi = diag psi: factor analysis.
    evidence      p(x) = N(b, W W' + Psi)                                                          eq. 12.35, 12.36, 12.65
    posterior     p(z | x) = N(G W' Psi^-1 (x - b), G),  G = (I + W' Psi^-1 W)^-1                  eq. 12.42, 12.66, 12.68
    E-step        <z_n>,  <z_n z_n'> = G + <z_n> <z_n>'                                            eq. 12.54, 12.55, 12.67
    M-step        W = [sum (x_n - b) <z_n>'] [sum <z_n z_n'>]^-1                                   eq. 12.56, 12.69
                  psi = diag of 1/N sum (x_n - b)(x_n - b)' - W <z_n> (x_n - b)',  s^2 = mean psi  eq. 12.57, 12.70
    closed form   W = U_L (Lambda_L - s^2 I)^(1/2),  s^2 = mean of the other eigenvalues           eq. 12.45, 12.46 (R = I)
    PCA           the limit s^2 -> 0: z = (W'W)^-1 W' (x - b), W = X Z' (Z Z')^-1            eq. 12.50, 12.58, 12.59; Roweis 1998

The eigenvalues Lambda and eigenvectors U are those of the data's covariance. The M-step solves for W and b together, b as the
column of W that belongs to a latent variable of constant 1. A missing entry is an observation of zero precision: 1/psi_d becomes
m_nd / psi_d in G and in the sums, with m_nd = 1 where x_nd is observed, else 0. Everything is float64: in float32 the gradient in
W loses its digits as s^2 -> 0. In the sums x is counted from a fixed point near its mean, `offset`, for the same reason.
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
from lowerbound.statistics import Moments, Spectrum, Statistics, Triangle

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
        self.weight = nn.Parameter(torch.empty(data_dim, latent_dim).uniform_(-1, 1) / latent_dim**0.5)  # [D, L], as nn.Linear starts
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

    def expected_log_prob(self, x: Tensor, q: Distribution) -> Tensor:
        """-1/2 sum_d [(x_d - w_d <z> - b_d)^2 + w_d cov[z] w_d'] / psi_d + log 2 pi psi_d over observed d, for q with a covariance."""
        missing = x.isnan()
        error = x.masked_fill(missing, 0.0) - q.mean @ self.weight.T - self.bias  # [N, D]
        terms = (error.square() + self.spread(q)) / self.scale.square() + 2 * self.scale.log() + log(2 * pi)
        return -terms.masked_fill(missing, 0.0).sum(-1) / 2

    def spread(self, q: Distribution) -> Tensor:
        """The variance ``[N, D]`` of W z, z ~ q."""
        if isinstance(q, MultivariateNormal):
            return ((self.weight @ q.covariance_matrix) * self.weight).sum(-1)
        return q.variance @ self.weight.square().T

    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """The sums of eq. 12.54, 12.55 over observed entries, with z extended by a constant 1: E = L + 1."""
        observed = ~x.isnan()  # [N, D]
        x = (x.double() - self.offset).masked_fill(~observed, 0.0)  # [N, D]
        z = extended(q.mean)  # [N, E]
        second = z.unsqueeze(-1) * z.unsqueeze(-2) + nn.functional.pad(covariance_of(q), (0, 1, 0, 1))  # [N, E, E]
        zz = (observed.double().T @ second.flatten(1)).unflatten(1, second.shape[1:])  # [D, E, E]
        return {"zz": zz, "xz": x.T @ z, "xx": x.square().sum(0), "count": observed.sum(0).double()}

    def expected(self, moments: Moments | Triangle, model: LatentVariableModel) -> Statistics:
        """The same sums from the moments of complete data; `zz` ``[1, E, E]`` is the same for every dimension."""
        gain, covariance = affine_of(model)
        count, shift, x = moments.count, moments.mean - self.bias, moments.mean - self.offset
        z = gain @ shift  # [L], the mean of <z>
        products = moments.times(gain.T)  # [D, L]
        xz = torch.cat([products + count * torch.outer(x, z), (count * x).unsqueeze(1)], 1)  # [D, E]
        one = extended(z)
        zz = count * torch.outer(one, one) + nn.functional.pad(gain @ products + count * covariance, (0, 1, 0, 1))  # [E, E]
        xx = moments.squares + count * x.square()
        return {"zz": zz.unsqueeze(0), "xz": xz, "xx": xx, "count": count.expand(self.data_dim)}

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """Eq. 12.56 and 12.57, or 12.69 and 12.70. A dimension that was never observed keeps what it has."""
        zz, xz, count = statistics["zz"], statistics["xz"], statistics["count"]
        solution = (inverse(zz) @ xz.unsqueeze(-1)).squeeze(-1)  # [D, E]
        seen = count > 0
        self.weight.copy_(torch.where(seen.unsqueeze(1), solution[:, :-1], self.weight))
        self.bias.copy_(torch.where(seen, self.offset + solution[:, -1], self.bias))
        self.noise.maximize((statistics["xx"] - (solution * xz).sum(1)).clamp(min=0), count)

    @torch.no_grad()
    def terms(self, expected: Statistics, model: LatentVariableModel) -> Tensor:
        """(x - W z - b)^2 multiplied out, and the KL of two Gaussians with `zz` in it; no KL for PCA."""
        count = expected["count"][0]
        (zz,), xz, xx = (expected[name] / count for name in ("zz", "xz", "xx"))  # [E, E], [D, E], [D]
        weight = torch.cat([self.weight, (self.bias - self.offset).unsqueeze(1)], 1)  # [D, E]
        square = xx - 2 * (xz * weight).sum(1) + ((weight @ zz) * weight).sum(1)  # [D]
        reconstruction = -(square / self.scale.square() + 2 * self.scale.log() + log(2 * pi)).sum() / 2
        if not model.is_bounded:
            return torch.stack([reconstruction, reconstruction, torch.zeros_like(reconstruction)])
        kl = (zz[:-1, :-1].trace() - self.latent_dim - torch.logdet(affine_of(model).covariance)) / 2
        return torch.stack([reconstruction - kl, reconstruction, kl])

    @torch.no_grad()
    def solve(self, spectrum: Spectrum, model: LatentVariableModel) -> None:
        """Eq. 12.45 and 12.46; for PCA W = U_L, and z costs nothing: s^2, if it is learnt, is the rest over all D."""
        if not isinstance(self.noise, FixedNoise) and self.noise(self.bias.new_empty(0)).ndim:
            raise ValueError("factor analysis (noise=per_dimension) has no closed form: choose fit=em, or noise=shared")
        self._require_rows(int(spectrum.count))
        axes, variances = spectrum.axes[:, : self.latent_dim], spectrum.variances[: self.latent_dim]
        is_proper = model.prior.is_proper
        residual = spectrum.residual(self.latent_dim) * (1.0 if is_proper else 1 - self.latent_dim / self.data_dim)
        self.noise.maximize(residual, torch.ones_like(residual))
        self.weight.copy_(axes * (variances - self.scale[0].square()).clamp(min=0).sqrt() if is_proper else axes)
        self.bias.copy_(spectrum.mean)

    def _require_rows(self, count: int) -> None:
        if count <= self.latent_dim:
            raise ValueError(f"{count} training rows span at most {count - 1} directions: latent_dim={self.latent_dim} must be lower")

    def count_from(self, x: Tensor) -> None:
        """Count from the mean of x ``[n, D]``, and from 0 where a dimension of it is not observed."""
        self.offset.copy_(x.double().nanmean(0).nan_to_num(0.0))

    @torch.no_grad()
    def initialize(self, x: Tensor, num_data: int) -> None:
        """b = the mean, W random with a half of each variance, s^2 the other half; of a dimension not observed, b = 0 and W = 0."""
        self._require_rows(num_data)
        self.count_from(x)
        self.bias.copy_(self.offset)
        half = (x - self.bias).square().nanmean(0) / 2  # [D]
        directions = torch.randn(self.weight.shape, dtype=torch.float64).to(half) / self.latent_dim**0.5  # [D, L]
        self.weight.copy_(directions * half.nan_to_num(0.0).sqrt().unsqueeze(1))
        self.noise.maximize(half.where(~half.isnan(), half.nanmean().nan_to_num(0.0)), torch.ones_like(half))

    def predict(self, x: Tensor, q: Distribution, num_samples: int = 0) -> Predicted:
        """W <z> + b, and the diagonal of W cov[z] W' + Psi; none of PCA, which has no density."""
        mean = q.mean @ self.weight.T + self.bias  # [N, D]
        if isinstance(q, Delta):
            return Predicted(mean, None)
        return Predicted(mean, (self.spread(q) + self.scale.square()).sqrt())

    def check_data(self, x: Tensor) -> str | None:
        """Remark on bits, which have no density."""
        return remark_on_bits(x) if self.noise.min_scale else None

    def floored(self) -> str | None:
        """A sentence if a learnt scale has come within 5% of its floor."""
        return self.noise.floored()


def inverse(symmetric: Tensor) -> Tensor:
    """The inverse of matrices ``[..., E, E]``, first scaled to a diagonal of 1; of singular ones a pseudo-inverse."""
    root = symmetric.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(root > 0, root, 1.0).reciprocal()
    outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return torch.linalg.pinv(symmetric * outer, hermitian=True) * outer


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

    is_point, is_nearest, accepts_missing = True, True, True

    def check_model(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the likelihood is not linear and Gaussian, or its noise is learnt."""
        if not isinstance(noise := linear(model).noise, FixedNoise):
            raise ValueError(
                f"PCA (posterior=projection) is the limit of no noise, and learns none: noise=fixed, not {type(noise).__name__}"
            )

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
        seen, outer = (~missing).to(p.weight), (p.weight.unsqueeze(2) * p.weight.unsqueeze(1)).flatten(1)  # [N, D], [D, L L]
        gram = (seen @ outer).unflatten(1, (p.latent_dim, p.latent_dim))  # [N, L, L]
        rounding = p.data_dim * torch.finfo(gram.dtype).eps  # of a sum over D, below which an eigenvalue is 0
        solve = torch.linalg.pinv(gram, rtol=rounding, hermitian=True)
        z = (solve @ (error @ p.weight).unsqueeze(-1)).squeeze(-1)  # [N, L]
        rest = error - seen * (z @ p.weight.T)  # once more, for the digits that the squared condition number cost
        return Delta(z + (solve @ (rest @ p.weight).unsqueeze(-1)).squeeze(-1))
