"""Covariances of the K components of a Gaussian mixture whose entries go together.

    Full      Sigma_k
    Tied      one Sigma
    LowRank   W_k W_k' + s_k^2 I, probabilistic PCA with z marginalised (Tipping & Bishop 1999b; Bishop 2006, eq. 12.36)

Missing entries are filled in with their expectation given the observed ones, under each component, and their conditional
covariance is added to the sums (Ghahramani & Jordan 1994, section 3). Maxima are those among covariances whose eigenvalues are
at least min_scale^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log, pi
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.conditioning import filled, log_diagonal
from lowerbound.covariances import Conditional, Covariance, has_missing, like, positive
from lowerbound.distributions import DenseNormal
from lowerbound.errors import whole
from lowerbound.likelihoods import log_above
from lowerbound.statistics import Statistics, added, eigenvectors, signed

MAX_PATTERN_DIM = 256  # a pattern of M missing entries costs the inverse of an M x M matrix for each component
ROWS = 512  # at a time: the K D numbers of each stay in the processor's cache
NEGLIGIBLE = 1e-20  # a responsibility that changes no digit of a sum


def _second_moments(x: Tensor, responsibilities: Tensor) -> Tensor:
    """sum_n gamma_nk x_n x_n' ``[K, D, D]`` in one product for all components."""
    second = x.new_zeros(x.shape[1], responsibilities.shape[1] * x.shape[1])
    for rows, r in zip(x.split(ROWS), responsibilities.split(ROWS), strict=True):
        weighted = r.unsqueeze(2) * rows.unsqueeze(1)  # [n, K, D]
        second.addmm_(rows.T, weighted.flatten(1))  # [D, K D]
    return second.unflatten(1, (-1, x.shape[1])).transpose(0, 1)


def _second_moments_of_few(x: Tensor, responsibilities: Tensor) -> Tensor:
    """The same where most data belong to one component: each component's product over the data that are not beyond it."""
    second = []
    for r in responsibilities.T:
        near = (r > NEGLIGIBLE).nonzero().squeeze(1)
        rows = x[near]
        second.append((r[near].unsqueeze(1) * rows).T @ rows)
    return torch.stack(second)


class Dense(Covariance, ABC):
    """Entries go together: everything by the Cholesky factors."""

    @abstractmethod
    def factors(self) -> Tensor:
        """C ``[K, D, D]``, lower triangular, C C' = Sigma."""

    @property
    def matrices(self) -> Tensor:
        """Sigma ``[K, D, D]``."""
        factors = self.factors()
        return factors @ factors.mT

    def distribution(self, z: Tensor, loc: Tensor) -> Distribution:
        """N(loc, Sigma_z)."""
        return DenseNormal(loc, scale_tril=torch.tensordot(z, self.factors(), 1), validate_args=False)

    def log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        """Rows of which all is observed in products for all components; the others pattern by pattern."""
        if not has_missing(x):
            return self._log_densities(x, mean)
        partial = x.isnan().any(1)
        densities = x.new_empty(len(x), len(mean))
        densities[~partial] = self._log_densities(x[~partial], mean)
        densities[partial] = self._observed_log_densities(x[partial], mean)
        return densities

    def _log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        """By |C^-1 (x - mu)|^2."""
        factors = self.factors()
        identity = torch.eye(self.data_dim, dtype=mean.dtype, device=mean.device).expand_as(factors)
        inverse = torch.linalg.solve_triangular(factors, identity, upper=False)  # [K, D, D]
        shift = (inverse @ mean.unsqueeze(-1)).flatten()
        white = (torch.addmm(-shift, rows, inverse.flatten(0, 1).T).unflatten(1, mean.shape) for rows in x.split(ROWS))  # [n, K, D]
        distances = torch.cat([torch.linalg.vector_norm(rows, dim=-1) for rows in white])  # [N, K]
        log_det = 2 * log_diagonal(factors)  # [K]
        return -(distances.square() + log_det + self.data_dim * log(2 * pi)) / 2

    def _observed_log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        """What is filled in minimises |C^-1 (x - mu)|^2, and leaves that of the observed entries."""
        densities, factors = x.new_empty(len(x), len(mean)), self.factors()
        for f in filled(x, mean, factors):
            white = torch.linalg.solve_triangular(factors, f.error.permute(1, 2, 0), upper=False)  # [K, D, n]
            constant = f.log_det + log(2 * pi) * f.num_observed.to(mean).unsqueeze(1)  # [U, K]
            densities[f.rows] = -(white.square().sum(1).T + constant[f.which]) / 2
        return densities

    def statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """Counts ``[K]``, first ``[K, D]`` and second moments ``[K, D, D]``."""
        if not has_missing(x):
            return self._statistics(x, responsibilities)
        partial = x.isnan().any(1)
        complete = self._statistics(x[~partial], responsibilities[~partial])
        return added(complete, self._filled_statistics(x[partial], mean, responsibilities[partial]))

    def _statistics(self, x: Tensor, responsibilities: Tensor) -> Statistics:
        is_clear = (responsibilities > NEGLIGIBLE).sum() < responsibilities.numel() / 4
        second = (_second_moments_of_few if is_clear else _second_moments)(x, responsibilities)  # [K, D, D]
        return {
            "count": responsibilities.sum(0, dtype=torch.float64),
            "first": (responsibilities.T @ x).double(),
            "second": second.double(),
        }

    def _filled_statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """With E[x_missing | x_observed, k] in the place of what is missing, and its covariance added."""
        first, second = torch.zeros_like(mean), mean.new_zeros(len(mean), self.data_dim, self.data_dim)
        for f in filled(x, mean, self.factors()):
            r, rows = responsibilities[f.rows], mean + f.error  # [n, K], [n, K, D]
            first += torch.einsum("nk,nkd->kd", r, rows)
            second += torch.einsum("nkd,nke->kde", r.unsqueeze(-1) * rows, rows)
            weight = r.new_zeros(len(f.entries), len(mean)).index_add(0, f.which, r)  # [U, K]
            cells = f.entries.unsqueeze(2) * self.data_dim + f.entries.unsqueeze(1)  # [U, M, M]
            left = (weight[..., None, None] * f.covariance).transpose(0, 1).flatten(1)  # [K, U M M]
            second.view(len(mean), -1).index_add_(1, cells.flatten(), left)
        return {"count": responsibilities.sum(0, dtype=torch.float64), "first": first.double(), "second": second.double()}

    def conditional(self, x: Tensor, mean: Tensor) -> Conditional:
        """Regression of the missing entries on the observed ones."""
        means, variances = x.new_empty(len(x), *mean.shape), x.new_zeros(len(x), *mean.shape)
        for f in filled(x, mean, self.factors()):
            means[f.rows] = mean + f.error
            left = f.covariance.diagonal(dim1=-2, dim2=-1)  # [U, K, M]
            variances[f.rows] = torch.zeros_like(f.error).scatter_add(2, f.places, left[f.which])
        return Conditional(means, variances)

    def stretched(self, directions: Tensor) -> Tensor:
        """C_k u_k."""
        return (self.factors() @ directions.unsqueeze(-1)).squeeze(-1)

    def shaped(self, count: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix, ``[K, D, D]``."""
        return count.expand(self.num_components), scatter.expand(self.num_components, -1, -1)

    def penalty(self, spread: Tensor) -> Tensor:
        """By tr(Sigma^-1 diag spread) = |C^-1 diag spread^(1/2)|^2."""
        factors = self.factors()
        white = torch.linalg.solve_triangular(factors, spread.sqrt().diag().expand_as(factors), upper=False)
        return 2 * log_diagonal(factors).sum() + white.square().sum()

    def variances(self) -> Tensor:
        """The diagonals of the matrices."""
        return self.factors().square().sum(-1)

    def floored(self) -> int:
        """How many matrices have an eigenvalue within 5% of the floor."""
        return int((torch.linalg.svdvals(self.factors())[:, -1] < 1.05 * self.min_scale).sum())

    def check_missing(self) -> None:
        """Refuse more than `MAX_PATTERN_DIM` dimensions."""
        if self.data_dim > MAX_PATTERN_DIM:
            raise ValueError(
                f"missing entries under a dense covariance cost the inverse of a {self.data_dim} x {self.data_dim} matrix\n"
                f"for each pattern and component: offered for data.dim <= {MAX_PATTERN_DIM}.\n"
                "Choose covariance=diagonal, model=ppca or factor_analysis."
            )


def above_floor(matrices: Tensor, min_scale: float) -> Tensor:
    """The Cholesky factors of symmetric matrices ``[K, D, D]``, eigenvalues below min_scale^2 raised to it."""
    floor = min_scale**2 * torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    is_low = torch.linalg.cholesky_ex(matrices - floor).info > 0  # cheaper than eigenvalues
    factors = torch.linalg.cholesky_ex(matrices).L
    if is_low.any():
        values, vectors = torch.linalg.eigh(matrices[is_low])
        root = values.clamp(min=min_scale**2).sqrt().unsqueeze(-1) * vectors.mT  # Sigma = root' root = R' R, however small some values
        upper = torch.linalg.qr(root).R
        factors[is_low] = (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT
    return factors


class Cholesky(Dense, ABC):
    """Free Cholesky factors, with a floor under their diagonals."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float, num_factors: int) -> None:
        super().__init__(num_components, data_dim, min_scale)
        self.lower = nn.Parameter(torch.zeros(num_factors, data_dim, data_dim, dtype=torch.float64))  # [K or 1, D, D]
        self.log_diagonal = nn.Parameter(torch.zeros(num_factors, data_dim, dtype=torch.float64))  # [K or 1, D]

    def factors(self) -> Tensor:
        """The strictly lower triangle, and min_scale + exp on the diagonal."""
        factors = self.lower.tril(-1) + torch.diag_embed(self.min_scale + self.log_diagonal.exp())
        return factors.expand(self.num_components, -1, -1)

    def _set(self, matrices: Tensor) -> None:
        factors = above_floor(matrices, self.min_scale)
        self.lower.copy_(factors.tril(-1))
        self.log_diagonal.copy_(log_above(factors.diagonal(dim1=-2, dim2=-1), self.min_scale))


@final
class Full(Cholesky):
    """A matrix for each component."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale, num_components)

    @torch.no_grad()
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """scatter / count."""
        self._set(scatter / like(positive(count), scatter))


@final
class Tied(Cholesky):
    """One matrix for all components."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale, 1)

    @torch.no_grad()
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """All scatter / all counts."""
        self._set(scatter.sum(0, keepdim=True) / count.sum())


@final
class LowRank(Dense):
    """W_k W_k' + s_k^2 I with W_k ``[D, L]``."""

    def __init__(self, num_components: int, data_dim: int, latent_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale)
        if not 0 < whole(latent_dim, "latent_dim") < data_dim:
            raise ValueError(f"latent_dim={latent_dim} must be below data.dim={data_dim}")
        self.weight = nn.Parameter(torch.randn(num_components, data_dim, latent_dim).double())  # [K, D, L]
        self.log_scale = nn.Parameter(torch.zeros(num_components, dtype=torch.float64))  # [K]

    @property
    def scale(self) -> Tensor:
        """s ``[K]``."""
        return self.min_scale + self.log_scale.exp()

    def factors(self) -> Tensor:
        """The Cholesky factor of W W' + s^2 I."""
        identity = torch.eye(self.data_dim, dtype=self.weight.dtype, device=self.weight.device)
        return torch.linalg.cholesky(self.weight @ self.weight.mT + self.scale.square()[:, None, None] * identity)

    @torch.no_grad()
    def maximize(self, count: Tensor, scatter: Tensor) -> None:
        """Probabilistic PCA's closed form for each component (Bishop 2006, eq. 12.45 and 12.46)."""
        latent_dim = self.weight.shape[-1]
        for k, matrix in enumerate(scatter / like(positive(count), scatter)):
            values, vectors = eigenvectors(matrix)
            self.log_scale[k] = log_above(values[latent_dim:].mean().clamp(min=0).sqrt(), self.min_scale)
            stretch = (values[:latent_dim] - self.scale[k].square()).clamp(min=0).sqrt()
            self.weight[k] = signed(vectors[:, :latent_dim]) * stretch
