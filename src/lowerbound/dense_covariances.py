"""Covariances of the K components of a Gaussian mixture whose entries go together.

    Full      Sigma_k
    Tied      one Sigma
    LowRank   W_k W_k' + s_k^2 I, probabilistic PCA with z marginalised (Tipping & Bishop 1999b, eq. 4)

Missing entries are filled in with their expectation given the observed ones, under each component, and their conditional
covariance is added to the sums (Ghahramani & Jordan 1994, section 3). Maxima are those among covariances whose eigenvalues are
at least min_scale^2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import log, pi
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.covariances import Conditional, Covariance
from lowerbound.distributions import DenseNormal, observed_precision
from lowerbound.errors import whole
from lowerbound.likelihoods import log_above
from lowerbound.statistics import Statistics, eigenvectors, gram, signed

MAX_PATTERN_DIM = 256  # a pattern of missing entries costs the inverse of a D x D matrix for each component
PATTERNS = 128  # inverted at a time


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
        """By |C^-1 (x - mu)|^2, all components in one product; with missing entries, pattern by pattern."""
        if x.isnan().any():
            return self._observed_log_densities(x, mean)
        centre, factors = mean.mean(0), self.factors()
        identity = torch.eye(self.data_dim, dtype=mean.dtype, device=mean.device).expand_as(factors)
        inverse = torch.linalg.solve_triangular(factors, identity, upper=False)  # [K, D, D]
        shift = (inverse @ (mean - centre).unsqueeze(-1)).flatten()  # [K D]
        white = torch.addmm(-shift, x - centre, inverse.flatten(0, 1).T).unflatten(1, mean.shape)  # [N, K, D]
        log_det = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [K]
        return -(white.square().sum(-1) + log_det + self.data_dim * log(2 * pi)) / 2

    def _observed_log_densities(self, x: Tensor, mean: Tensor) -> Tensor:
        densities = x.new_empty(len(x), len(mean))
        columns = []
        for rows, missing, which in patterns(x):
            seen = (~missing).sum(1)  # [U]
            error = (x[rows].unsqueeze(1) - mean).masked_fill(missing[which].unsqueeze(1), 0.0)  # [n, K, D]
            precision, log_det = observed_precision(self.matrices.unsqueeze(0), missing.unsqueeze(1))  # [U, K, D, D], [U, K]
            square = ((precision[which] @ error.unsqueeze(-1)).squeeze(-1) * error).sum(-1)  # [n, K]
            columns.append((rows, -(square + log_det[which] + seen[which].unsqueeze(1) * log(2 * pi)) / 2))
        order = torch.cat([rows for rows, _ in columns]).argsort()
        return torch.cat([values for _, values in columns])[order].to(densities)

    def statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """Counts ``[K]``, first ``[K, D]`` and second moments ``[K, D, D]`` about the means."""
        if x.isnan().any():
            return self._filled_statistics(x, mean, responsibilities)
        first, second = [], []
        for centre, r in zip(mean, responsibilities.T, strict=True):
            error = x - centre  # [N, D]
            first.append((r @ error).double())
            second.append(gram(error * r.sqrt().unsqueeze(1)))
        return {"count": responsibilities.double().sum(0), "first": torch.stack(first), "second": torch.stack(second)}

    def _filled_statistics(self, x: Tensor, mean: Tensor, responsibilities: Tensor) -> Statistics:
        """With E[x_missing | x_observed, k] in the place of what is missing, and its covariance added."""
        matrices = self.matrices
        first, second = torch.zeros_like(mean), torch.zeros_like(matrices)
        for rows, missing, which in patterns(x):
            error = (x[rows].unsqueeze(1) - mean).masked_fill(missing[which].unsqueeze(1), 0.0)  # [n, K, D]
            precision, _ = observed_precision(matrices.unsqueeze(0), missing.unsqueeze(1))  # [U, K, D, D]
            gain = matrices @ precision  # [U, K, D, D]
            filled = (gain[which] @ error.unsqueeze(-1)).squeeze(-1)  # [n, K, D]
            r = responsibilities[rows].unsqueeze(-1)  # [n, K, 1]
            weight = torch.zeros(len(missing), len(mean), dtype=x.dtype, device=x.device).index_add(0, which, r.squeeze(-1))  # [U, K]
            first += (r * filled).sum(0)
            unexplained = matrices - gain @ matrices  # [U, K, D, D]
            second += torch.einsum("nkd,nke->kde", r * filled, filled) + torch.einsum("uk,ukde->kde", weight, unexplained)
        return {"count": responsibilities.double().sum(0), "first": first.double(), "second": second.double()}

    def conditional(self, x: Tensor, mean: Tensor) -> Conditional:
        """Regression of the missing entries on the observed ones."""
        matrices = self.matrices
        means, variances = x.new_empty(len(x), *mean.shape), x.new_empty(len(x), *mean.shape)
        for rows, missing, which in patterns(x):
            error = (x[rows].unsqueeze(1) - mean).masked_fill(missing[which].unsqueeze(1), 0.0)  # [n, K, D]
            precision, _ = observed_precision(matrices.unsqueeze(0), missing.unsqueeze(1))
            gain = matrices @ precision  # [U, K, D, D]
            means[rows] = mean + (gain[which] @ error.unsqueeze(-1)).squeeze(-1)
            left = matrices.diagonal(dim1=-2, dim2=-1) - (gain * matrices).sum(-1)  # [U, K, D]
            variances[rows] = left.clamp(min=0)[which]
        return Conditional(means, variances)

    def shaped(self, count: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix, ``[K, D, D]``."""
        return covariance.expand(self.num_components, -1, -1), count.expand(self.num_components)

    def penalty(self, spread: Tensor) -> Tensor:
        """By tr(Sigma^-1 diag spread) = |C^-1 diag spread^(1/2)|^2."""
        factors = self.factors()
        white = torch.linalg.solve_triangular(factors, spread.sqrt().diag().expand_as(factors), upper=False)
        return 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum() + white.square().sum()

    def variances(self) -> Tensor:
        """The diagonals of the matrices."""
        return self.factors().square().sum(-1)

    def floored(self) -> int:
        """How many matrices have an eigenvalue within 5% of the floor."""
        return int((torch.linalg.eigvalsh(self.matrices)[:, 0] < (1.05 * self.min_scale) ** 2).sum())

    def check_missing(self) -> None:
        """Refuse more than `MAX_PATTERN_DIM` dimensions."""
        if self.data_dim > MAX_PATTERN_DIM:
            raise ValueError(
                f"missing entries under a dense covariance cost the inverse of a {self.data_dim} x {self.data_dim} matrix\n"
                f"for each pattern and component: offered for data.dim <= {MAX_PATTERN_DIM}. Choose covariance=diagonal, or model=ppca or factor_analysis."
            )


def patterns(x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows with the same entries missing, some patterns at a time: rows ``[n]``, patterns ``[U, D]``, the pattern ``[n]`` of each row."""
    missing, pattern = x.isnan().unique(dim=0, return_inverse=True)
    for start in range(0, len(missing), PATTERNS):
        rows = ((pattern >= start) & (pattern < start + PATTERNS)).nonzero().squeeze(1)
        yield rows, missing[start : start + PATTERNS], pattern[rows] - start


def above_floor(matrices: Tensor, min_scale: float) -> Tensor:
    """The Cholesky factors of symmetric matrices ``[..., D, D]`` whose eigenvalues are raised to min_scale^2 where they are lower."""
    values, vectors = torch.linalg.eigh(matrices)
    if (values >= min_scale**2).all():
        return torch.linalg.cholesky(matrices)
    return torch.linalg.cholesky((vectors * values.clamp(min=min_scale**2).unsqueeze(-2)) @ vectors.mT)


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
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """The deviations themselves."""
        self._set(deviation)

    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """As the heaviest."""
        for parameter in (self.lower, self.log_diagonal):
            parameter[empty] = parameter[heaviest]


@final
class Tied(Cholesky):
    """One matrix for all components."""

    def __init__(self, num_components: int, data_dim: int, min_scale: float = 1e-3) -> None:
        super().__init__(num_components, data_dim, min_scale, 1)

    @torch.no_grad()
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """Their weighted mean."""
        self._set((torch.einsum("k,kde->de", weight, deviation) / weight.sum()).unsqueeze(0))

    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """All share it already."""
        return


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
    def maximize(self, deviation: Tensor, weight: Tensor) -> None:
        """Probabilistic PCA's closed form for each component (Bishop 2006, eq. 12.45 and 12.46)."""
        latent_dim = self.weight.shape[-1]
        for k, matrix in enumerate(deviation):
            values, vectors = eigenvectors(matrix)
            self.log_scale[k] = log_above(values[latent_dim:].mean().clamp(min=0).sqrt(), self.min_scale)
            stretch = (values[:latent_dim] - self.scale[k].square()).clamp(min=0).sqrt()
            self.weight[k] = signed(vectors[:, :latent_dim]) * stretch

    def restart(self, empty: Tensor, heaviest: Tensor) -> None:
        """As the heaviest."""
        for parameter in (self.weight, self.log_scale):
            parameter[empty] = parameter[heaviest]
