"""The composition of three distributions, and the one quantity that everything else is made of.

    log_weight(x, S) = log p(x, z) - log q(z | x),  z ~ q(z | x),  at S samples

Its mean over S estimates the ELBO, its log-mean-exp the importance-weighted bound (Burda et al. 2016, eq. 8), and where q
is the exact posterior it equals log p(x) for every z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.distributions import Factorized, full_precision
from lowerbound.parts import Likelihood, Posterior, Prior


class Draw(NamedTuple):
    """S samples of q(z | x) and the log-likelihood at each."""

    q: Distribution
    z: Tensor  # [S, N, L]
    log_likelihood: Tensor  # [S, N]


class LatentVariableModel(nn.Module):
    """p(z), p(x | z) and q(z | x) as one model. All log-densities are nats per datum, ``[N]`` or ``[S, N]``.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __init__(self, prior: Prior, likelihood: Likelihood, posterior: Posterior) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood
        self.posterior_rule = posterior
        self._check()

    def _check(self) -> None:
        """Refuse parts of different latent dimensions, and a density compared with a point."""
        dims = {name: getattr(part, "latent_dim", self.latent_dim) for name, part in self.named_children()}
        if len(set(dims.values())) > 1:
            raise ValueError(f"latent_dim differs between the parts: {dims}")
        prior, posterior = type(self.prior).__name__, type(self.posterior_rule).__name__
        if self.prior.is_proper and self.posterior_rule.is_point:
            raise ValueError(
                f"a point posterior ({posterior}) has an infinite KL to the prior {prior}:\n"
                "choose posterior=diagonal_gaussian, or prior=flat for an autoencoder"
            )
        if not self.prior.is_proper and not self.posterior_rule.is_point:
            raise ValueError(
                f"the posterior {posterior} has no KL to the improper prior {prior}:\n"
                "choose prior=standard_normal, or posterior=delta for an autoencoder"
            )
        self.posterior_rule.check_model(self)

    @property
    def latent_dim(self) -> int:
        """L."""
        return self.prior.latent_dim

    @property
    def data_dim(self) -> int:
        """D."""
        return self.likelihood.data_dim

    @property
    def is_bounded(self) -> bool:
        """Whether there is an evidence log p(x) and so a bound on it: not so for autoencoders."""
        return self.prior.is_proper and not self.posterior_rule.is_point

    @property
    def accepts_missing(self) -> bool:
        """Whether x may hold NaN."""
        return self.likelihood.marginalizes_missing and self.posterior_rule.accepts_missing

    @property
    def monitor(self) -> str:
        """The quantity by which fits of this model are compared: the larger the better."""
        if not self.is_bounded:
            return "reconstruction"
        return "log_evidence" if self.posterior_rule.is_exact else "elbo"

    def check_data(self, x: Tensor) -> str | None:
        """Refuse data ``[N, D]`` that the model cannot have produced; a remark on those whose numbers mean something else.

        Raises:
            ValueError: x is not finite, has missing entries that the model does not marginalise, or has no density.
        """
        if x.isinf().any():
            raise ValueError(f"the data hold {int(x.isinf().sum())} infinite values: remove them, or write NaN for what was not observed")
        if x.isnan().any() and not self.accepts_missing:
            count, rule = int(x.isnan().sum()), type(self.posterior_rule).__name__
            raise ValueError(f"the data hold {count} NaN, and a model with the posterior {rule} does not marginalise missing entries")
        return self.likelihood.check_data(x)

    def posterior(self, x: Tensor) -> Distribution:
        """q(z | x) for x ``[N, D]``, event ``[L]``."""
        return self.posterior_rule(x, self)

    def draw(self, x: Tensor, num_samples: int = 1) -> Draw:
        """S samples of q(z | x), differentiable where q is, with log p(x | z) at each."""
        q = self.posterior(x)
        with full_precision(x):
            z = q.rsample(torch.Size([num_samples])) if q.has_rsample else q.sample(torch.Size([num_samples]))  # [S, N, L]
        return Draw(q, z, self.log_likelihood(x, z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) ``[S, N]`` for z ``[S, N, L]``; of the observed entries, where x may have others."""
        p = self.likelihood(z)
        with full_precision(x):
            return p.observed_log_prob(x) if self.accepts_missing and isinstance(p, Factorized) else p.log_prob(x)

    def log_weight(self, x: Tensor, num_samples: int = 1) -> Tensor:
        """log p(x, z) - log q(z | x) at S samples of q, ``[S, N]``.

        Raises:
            ValueError: the model has no evidence to bound.
        """
        if not self.is_bounded:
            raise ValueError("an autoencoder has no p(x): its prior is flat and its posterior a point. A VAE (model=vae) has one.")
        q, z, log_likelihood = self.draw(x, num_samples)
        with full_precision(x):
            return log_likelihood + self.prior().log_prob(z) - q.log_prob(z)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z | x), ``[N, L]``."""
        return self.posterior(x).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the mean of q(z | x), ``[N, D]``."""
        return self.likelihood(self.encode(x)).mean

    def sample(self, num_data: int, noise: bool = False) -> Tensor:
        """Draws from the model ``[N, D]``: z ~ p(z), then the mean of p(x | z), or a draw from it if `noise`.

        Raises:
            ValueError: the prior is flat and cannot be sampled.
        """
        p = self.likelihood(self.prior().sample(torch.Size([num_data])))
        return p.sample() if noise else p.mean
