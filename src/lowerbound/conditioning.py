"""Gaussians N(mu_k, Sigma_k) of which some entries were observed and others, m, are missing (Bishop 2006, section 2.3.1).

    Lambda = Sigma^-1
    p(x_m | x_o) = N(mu_m - Lambda_mm^-1 Lambda_mo (x_o - mu_o), Lambda_mm^-1)     eq. 2.73, 2.75
    |Sigma_oo| = |Sigma| |Lambda_mm|
    (x_o - mu_o)' Sigma_oo^-1 (x_o - mu_o) = min over x_m of (x - mu)' Sigma^-1 (x - mu)

The last is taken at the minimum, where an error in what is filled in counts only as its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CELLS = 2**22  # at a time, where a row with missing entries takes K D D of them


class Filled(NamedTuple):
    """Rows ``[n]`` of a table, with the expectation of what is missing given what was observed; `which` ``[n]`` of U patterns is theirs."""

    rows: Tensor
    which: Tensor
    error: Tensor  # E[x | x_observed, k] - mu_k, [n, K, D]
    entries: Tensor  # the M that are missing in a pattern, and others where there are fewer, [U, M]
    places: Tensor  # the same for each row and component, [n, K, M]
    covariance: Tensor  # of those entries given the observed ones, 0 for others, [U, K, M, M]
    num_observed: Tensor  # [U]
    log_det: Tensor  # of the observed block of Sigma_k, [U, K]


def filled(x: Tensor, mean: Tensor, factors: Tensor) -> Iterator[Filled]:
    """The rows of x ``[N, D]`` by their patterns of missing entries, some at a time; means ``[K, D]``, Cholesky factors ``[K, D, D]``."""
    precision = torch.cholesky_inverse(factors)  # [K, D, D]
    missing, pattern = x.isnan().unique(dim=0, return_inverse=True)
    for rows in pattern.argsort().split(max(1, CELLS // factors.numel())):
        first, last = pattern[rows[0]], pattern[rows[-1]]
        here, which = missing[first : last + 1], pattern[rows] - first
        is_missing, entries = (part[:, : int(here.sum(1).max())] for part in here.to(mean).sort(dim=1, descending=True))  # [U, M]
        both = (is_missing.unsqueeze(2) * is_missing.unsqueeze(1)).unsqueeze(1)  # [U, 1, M, M]
        block = precision[:, entries.unsqueeze(2), entries.unsqueeze(1)].transpose(0, 1) * both  # [U, K, M, M]
        root = torch.linalg.cholesky(block + torch.diag_embed(1 - is_missing).unsqueeze(1))
        covariance = torch.cholesky_inverse(root) * both
        error = (x[rows].unsqueeze(1) - mean).masked_fill(here[which].unsqueeze(1), 0.0)  # [n, K, D]
        places = entries[which].unsqueeze(1).expand(-1, len(mean), -1)  # [n, K, M]
        pull = (error.transpose(0, 1) @ precision).transpose(0, 1).gather(2, places)  # [n, K, M]
        shift = (covariance[which] @ pull.unsqueeze(-1)).squeeze(-1)
        log_det = 2 * (log_diagonal(factors) + log_diagonal(root))
        yield Filled(rows, which, error.scatter_add(2, places, -shift), entries, places, covariance, (~here).sum(1), log_det)


def log_diagonal(factors: Tensor) -> Tensor:
    """Half the log-determinants ``[...]`` of what has the Cholesky factors ``[..., D, D]``."""
    return factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
