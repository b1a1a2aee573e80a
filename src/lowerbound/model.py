"""The composition of three distributions, and the one quantity that everything else is made of.

    log_weight(x, S) = log p(x, z) - log q(z | x),  z ~ q(z | x),  at S samples

Its mean over S estimates the ELBO, its log-mean-exp the importance-weighted bound (Burda et al. 2016, eq. 8), and where q
is the exact posterior it equals log p(x) for every z.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.distributions import full_precision
from lowerbound.parts import Likelihood, Posterior, Predicted, Prior, Solvable
from lowerbound.statistics import Statistics

SUMMANDS = 1e3  # as far as squares of data stay from the greatest number, of which many are added up
TAKES_MISSING = (
    "choose model=vae or autoencoder with network=masked_mlp, whose encoder is told what is missing,\n"
    "or model=pca, ppca, factor_analysis or mixture"
)


@runtime_checkable
class Marginalized(Protocol):
    """A distribution that knows the density of the observed entries of a row."""

    def observed_log_prob(self, value: Tensor) -> Tensor:
        """Nats, NaN marginalised out."""
        ...


class Draw(NamedTuple):
    """S samples of q(z | x) and the log-likelihood at each."""

    q: Distribution
    z: Tensor  # [S, N, L]
    log_likelihood: Tensor  # [S, N]


class LatentVariableModel(nn.Module):
    """p(z), p(x | z) and q(z | x) as one model. All log-densities are nats per datum, ``[N]`` or ``[S, N]``.

    Missing entries of x are NaN, and missing at random is assumed: densities are those of what is observed.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __init__(self, prior: Prior, likelihood: Likelihood, posterior: Posterior) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood
        self.posterior_rule = posterior
        self._check()
        if any(parameter.dtype == torch.float64 for parameter in self.parameters()):
            self.double()  # a part that needs float64 takes the others with it

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
    def is_exact(self) -> bool:
        """Whether q(z | x) is Bayes' posterior, so that log p(x) is known."""
        return self.posterior_rule.is_exact

    @property
    def accepts_missing(self) -> bool:
        """Whether x may hold NaN."""
        return self.likelihood.marginalizes_missing and self.posterior_rule.accepts_missing

    @property
    def monitor(self) -> str:
        """The quantity by which fits of this model are compared: the larger the better."""
        if not self.is_bounded:
            return "reconstruction"
        return "log_evidence" if self.is_exact else "elbo"

    def check_data(self, x: Tensor) -> str | None:
        """Refuse data ``[N, D]`` that the model cannot have produced; a remark on those whose numbers mean something else.

        Raises:
            ValueError: x is not finite, has missing entries that the model does not marginalise, or has no density.
        """
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        limit = torch.finfo(dtype).max ** 0.5 / SUMMANDS
        if (found := x.abs() > limit).any():
            raise ValueError(
                f"the data hold {int(found.sum())} infinite values: remove them, or write NaN for what was not observed\n"
                f"(numbers beyond {limit:.0e} count as such, since {dtype} does not hold their squares: a larger unit makes them smaller)"
            )
        if x.isnan().any() and not self.accepts_missing:
            count, rule = int(x.isnan().sum()), type(self.posterior_rule).__name__
            raise ValueError(
                f"the data hold {count} NaN, and a model with the posterior {rule} does not marginalise missing entries:\n{TAKES_MISSING}"
            )
        return self.likelihood.check_data(x)

    def posterior(self, x: Tensor) -> Distribution:
        """q(z | x) for x ``[N, D]``, event ``[L]``; x is taken in the precision of the parameters.

        Raises:
            ValueError: x holds no rows of D numbers.
        """
        if x.ndim < 2 or x.shape[-1] != self.data_dim:
            raise ValueError(f"x of shape {list(x.shape)} holds no rows [N, {self.data_dim}] of this model's data")
        return self.posterior_rule(x.to(next((p.dtype for p in self.parameters()), x.dtype)), self)

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
            return p.observed_log_prob(x) if self.accepts_missing and isinstance(p, Marginalized) else p.log_prob(x)

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

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of the observed entries, ``[N]``, where the posterior is exact.

        Raises:
            ValueError: it is not, and the message names what bounds log p(x); or x is infinite, or holds no rows of D numbers.
        """
        if x.isinf().any():
            raise ValueError(f"x holds {int(x.isinf().sum())} infinite values, which have no density; what was not observed is NaN")
        return self.posterior_rule.log_evidence(x, self, self.posterior(x))

    def statistics(self, x: Tensor, q: Distribution | None = None) -> Statistics:
        """The sums of an E-step over x ``[N, D]`` under q, the posterior unless another is given."""
        q = self.posterior(x) if q is None else q
        return {name: value for part in self.solvable for name, value in part.statistics(x, q).items()}

    def initialize(self, x: Tensor, num_data: int) -> None:
        """Let the parts take their start from training rows x ``[n, D]``, a part of all `num_data`."""
        self.prior.initialize(x, num_data)
        self.likelihood.initialize(x, num_data)

    def maximize(self, statistics: Statistics) -> None:
        """The M-step: every part takes the parameters that the sums determine."""
        for part in self.solvable:
            part.maximize(statistics)

    def log_prior(self) -> Tensor | float:
        """log p(parameters) / N up to a constant, in nats per training datum; 0 for maximum likelihood."""
        return sum((part.log_prior() for part in self.solvable), 0.0)

    @property
    def solvable(self) -> list[Solvable]:
        """The parts that learn by solving."""
        return [part for part in (self.prior, self.likelihood) if isinstance(part, Solvable)]

    @torch.no_grad()
    def impute(self, x: Tensor) -> Predicted:
        """The missing (NaN) entries of x ``[N, D]`` given the observed ones: E[x_missing | x_observed] and its standard deviation.

        Observed entries are given back as they are, with standard deviation 0.

        Raises:
            ValueError: the model does not accept missing entries.
        """
        if not self.accepts_missing:
            rule = type(self.posterior_rule).__name__
            raise ValueError(f"a model with the posterior {rule} does not marginalise missing entries:\n{TAKES_MISSING}")
        mean, std = self.likelihood.predict(x, self.posterior(x))
        missing = x.isnan()
        return Predicted(torch.where(missing, mean, x), None if std is None else std.masked_fill(~missing, 0.0))

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z | x), ``[N, L]``."""
        return self.posterior(x).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the mean of q(z | x), ``[N, D]``."""
        return self.likelihood(self.encode(x)).mean

    @torch.no_grad()
    def sample(self, num_data: int, noise: bool = False) -> Tensor:
        """Draws from the model ``[N, D]``: z ~ p(z), then the mean of p(x | z), or a draw from it if `noise`.

        Raises:
            ValueError: the prior is flat and cannot be sampled.
        """
        p = self.likelihood(self.prior().sample(torch.Size([num_data])))
        return p.sample() if noise else p.mean
