"""The aggregate posterior q(z) = 1/N sum_n q(z | x_n), and what the KL to the prior consists of.

    E_n KL(q(z | x_n), p(z)) = I(x, z) + KL(q(z), p(z))                        Hoffman & Johnson 2016
    KL(q(z), p(z))           = KL(q(z), prod_j q(z_j)) + sum_j KL(q(z_j), p(z_j))      Chen et al. 2018, eq. 2

mutual information, total correlation and dimension-wise KL. With z_n ~ q(z | x_n) for every datum, each is a mean over data:

    I(x, z)              log q(z_n | x_n) - log q(z_n),  at most log N
    total correlation    log q(z_n) - sum_j log q_j(z_nj)
    dimension-wise KL    sum_j log q_j(z_nj) - log p(z_n)

q(z) is taken over all the given data, not over a minibatch: of B data it would be a mixture of B components, and the terms would depend
on B. The cost is N^2 L.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from lowerbound.model import LatentVariableModel

CELLS = 2**24  # at a time: a block of samples against all data and dimensions


class Decomposition(NamedTuple):
    """The three terms, means over data ``[]``, and the KL of which they are the parts, at the same samples: nats per datum, float64."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor
    kl: Tensor


@torch.no_grad()
def decomposed_kl(model: LatentVariableModel, x: Tensor, num_samples: int = 1) -> Decomposition:
    """The KL of q(z | x) for data x ``[N, D]``, taken apart by `num_samples` samples of z for each.

    Raises:
        ValueError: the posterior is a point, or its z is not continuous.
    """
    q = model.posterior(x)
    if not model.is_bounded or not q.has_rsample:
        raise ValueError(f"the KL of {type(model.posterior_rule).__name__} has no such terms: they are those of a density of real z")
    z = q.sample(torch.Size([num_samples]))  # [S, N, L]
    own, prior = q.log_prob(z).double().flatten(), model.prior().log_prob(z).double().flatten()  # [S N]
    joint, marginals = aggregate_log_densities(q, z.flatten(0, 1))
    parts = (own - joint, joint - marginals.sum(-1), marginals.sum(-1) - prior, own - prior)
    return Decomposition(*(part.mean() for part in parts))


def aggregate_log_densities(q: Distribution, z: Tensor) -> tuple[Tensor, Tensor]:
    """log q(z) ``[M]`` and log q_j(z_j) ``[M, L]`` of the mixture of all q(z | x_n) at z ``[M, L]``, float64."""
    of_dimension = Normal(q.mean, q.stddev)  # [N, L]: also where q correlates the dimensions, their marginals are Gaussian
    joint, marginals = [], []
    for block in z.unsqueeze(1).split(max(1, CELLS // q.mean.numel())):  # [m, 1, L]
        joint.append(q.log_prob(block).double().logsumexp(1))  # [m]
        marginals.append(of_dimension.log_prob(block).double().logsumexp(1))  # [m, L]
    count = log(len(q.mean))
    return torch.cat(joint) - count, torch.cat(marginals) - count
