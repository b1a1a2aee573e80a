"""Mixtures: a finite z, so that Bayes' rule is enumeration (Bishop 2006, chapter 9).

    model           p(z) = Cat(pi), z one-hot,  p(x | z_k = 1) = N(mu_k, Sigma_k)               eq. 9.10, 9.11
                                                or prod_d mu_kd^x_d (1 - mu_kd)^(1 - x_d)       eq. 9.44, 9.48
    evidence        p(x) = sum_k pi_k p(x | z_k = 1)                                            eq. 9.12, 9.47
    posterior       gamma(z_k) = pi_k p(x | z_k = 1) / p(x)                                     eq. 9.13, 9.56
    M-step          N_k = sum_n gamma(z_nk),  pi_k = N_k / N                                    eq. 9.26, 9.27
                    mu_k = 1/N_k sum_n gamma(z_nk) x_n                                          eq. 9.24, 9.59
                    Sigma_k = 1/N_k sum_n gamma(z_nk) (x_n - mu_k)(x_n - mu_k)'                 eq. 9.25
    with a prior    pi_k ~ N_k + a,  Sigma_k = (N_k Sigma_k + a diag v) / (N_k + a)
                    mu_kd = (sum_n gamma(z_nk) x_nd + a/2) / (N_k + a)                          Bernoulli

The prior is a pseudo-counts per component: a further a data that deviate from mu_k as the whole data set does from its mean, with
variances v; for Bernoulli components as many with a half of their bits on. EM then ascends log p(X) + log p(parameters), with

    log p(parameters) = a sum_k log pi_k - a/2 sum_k [log |Sigma_k| + tr(Sigma_k^-1 diag v)] + const
                      = a sum_k log pi_k + a/2 sum_kd [log mu_kd + log(1 - mu_kd)]                  Bernoulli

and a = 0 is maximum likelihood. One component is a Gaussian, or independent bits, by maximum likelihood. A component that is
responsible for nothing begins again beside the heaviest, with half of its weight; that step alone may not ascend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, OneHotCategorical, register_kl
from torch.nn.functional import logsigmoid, softplus

from lowerbound.covariances import Covariance, like, positive, squared
from lowerbound.distributions import bernoulli
from lowerbound.errors import real, whole
from lowerbound.likelihoods import remark_on_bits, require_unit_interval
from lowerbound.parts import ClosedForm, Likelihood, Posterior, Predicted, Solvable
from lowerbound.priors import OneHot, emptied
from lowerbound.seeding import centres, directions
from lowerbound.statistics import Spectrum, Statistics

if TYPE_CHECKING:
    from lowerbound.model import LatentVariableModel


@final
class Responsibilities(OneHotCategorical):
    """gamma(z) from log p(x, z) ``[N, K]``, with the log p(x) ``[N]`` that normalises it."""

    def __init__(self, log_joint: Tensor) -> None:
        self._categorical = Categorical(logits=log_joint, validate_args=False)  # which torch's own constructor would validate
        Distribution.__init__(self, log_joint.shape[:-1], log_joint.shape[-1:], validate_args=False)
        likeliest = log_joint.argmax(-1, keepdim=True)
        self.log_evidence = (log_joint.gather(-1, likeliest) - self.logits.gather(-1, likeliest)).squeeze(-1)


@register_kl(Responsibilities, OneHotCategorical)
def _kl_of_responsibilities(q: Responsibilities, p: OneHotCategorical) -> Tensor:
    """sum_k gamma(z_k) (log gamma(z_k) - log pi_k), 0 where gamma is 0."""
    return (q.probs * (q.logits - p.logits)).masked_fill(q.probs == 0, 0.0).sum(-1)


@final
class Enumeration(Posterior):
    """p(z | x) of a mixture: log p(x, z) of every component, normalised (eq. 9.13)."""

    is_exact, accepts_missing = True, True

    def check_model(self, model: LatentVariableModel) -> None:
        """Raise ValueError if z is not one of finitely many."""
        if not isinstance(model.likelihood, Components) or not isinstance(model.prior, OneHot):
            raise ValueError(
                f"posterior=enumeration sums over the components of a mixture: prior=one_hot with likelihood=gaussian_components or "
                f"bernoulli_components, not {type(model.prior).__name__} with {type(model.likelihood).__name__}"
            )

    def forward(self, x: Tensor, model: LatentVariableModel) -> Distribution:
        """gamma(z) for x ``[N, D]``, event ``[K]``."""
        assert isinstance(model.likelihood, Components)
        assert isinstance(model.prior, OneHot)
        return Responsibilities(model.likelihood.log_densities(x) + model.prior.logits.log_softmax(0))

    def log_evidence(self, x: Tensor, model: LatentVariableModel, q: Distribution) -> Tensor:
        """What normalises gamma (eq. 9.12)."""
        return q.log_evidence if isinstance(q, Responsibilities) else super().log_evidence(x, model, q)


class Components(Likelihood, Solvable, ClosedForm, ABC):
    """p(x | z) of one-hot z: K distributions."""

    marginalizes_missing = True
    num_data: Tensor

    def __init__(self, num_components: int, data_dim: int, pseudo_counts: float) -> None:
        super().__init__()
        self.latent_dim, self.data_dim = whole(num_components, "num_components"), whole(data_dim, "data.dim")
        self.pseudo_counts = real(pseudo_counts, "pseudo_counts", least=0)
        self.register_buffer("num_data", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def log_densities(self, x: Tensor) -> Tensor:
        """log p(x | z_k = 1) ``[N, K]`` of the observed entries."""

    def expected_log_prob(self, x: Tensor, q: Distribution) -> Tensor:
        """sum_k gamma(z_k) log p(x | z_k = 1), ``[N]``."""
        return (q.mean * self.log_densities(x)).sum(-1)

    def expect_data(self, count: int) -> None:
        """That the pseudo-counts stand beside."""
        self.num_data.fill_(count)

    def _count(self, statistics: Statistics) -> None:
        """How many data the pseudo-counts stand beside."""
        self.num_data.copy_(statistics["responsibilities"].sum())

    def _require_one(self) -> None:
        if self.latent_dim > 1:
            raise ValueError(f"a mixture of num_components={self.latent_dim} has no closed form: choose fit=em, or num_components=1")


@final
class GaussianComponents(Components):
    """N(mu_k, Sigma_k), with Sigma from a `Covariance`.

    Raises:
        ValueError: the covariance is one of other components or dimensions.
    """

    spread: Tensor
    offset: Tensor

    def __init__(self, num_components: int, data_dim: int, covariance: Covariance, pseudo_counts: float = 1.0) -> None:
        super().__init__(num_components, data_dim, pseudo_counts)
        self.mean = nn.Parameter(torch.randn(num_components, data_dim).double())  # [K, D]
        self.covariance = covariance
        if (covariance.num_components, covariance.data_dim) != (num_components, data_dim):
            theirs = f"{covariance.num_components} components in {covariance.data_dim} dimensions"
            raise ValueError(f"a covariance of {theirs} does not fit num_components={num_components} and data.dim={data_dim}")
        self.register_buffer("offset", torch.zeros(data_dim, dtype=torch.float64))  # what x is counted from in sums
        self.register_buffer("spread", torch.ones(data_dim, dtype=torch.float64))  # v

    def forward(self, z: Tensor) -> Distribution:
        """N(mu_z, Sigma_z) for one-hot z ``[..., K]``, event ``[D]``."""
        return self.covariance.distribution(z, z @ self.mean)

    def log_densities(self, x: Tensor) -> Tensor:
        """log N(x; mu_k, Sigma_k) ``[N, K]``."""
        return self.covariance.log_densities((x - self.offset).to(self.mean), self.mean - self.offset)

    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """N_k ``[K]``, and counts, first and second moments of what was observed, weighted by gamma."""
        sums = self.covariance.statistics((x - self.offset).to(self.mean), self.mean - self.offset, q.mean)
        return {"responsibilities": q.mean.sum(0, dtype=torch.float64), **sums}

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """Eq. 9.24 and 9.25, with the pseudo-counts; as it was where nothing was observed."""
        self._count(statistics)
        count, first, second = (statistics[name] for name in ("count", "first", "second"))
        counts = like(count, first)
        shift = first / positive(counts)  # [K, D]
        self.mean.copy_(torch.where(counts > 0, self.offset + shift, self.mean))
        self._solve(count, second - like(count, second) * squared(shift, second))
        empty, heaviest = emptied(statistics["responsibilities"])
        if empty.any():
            self.covariance.restart(empty, heaviest)
            beside = self.mean[heaviest] + self.covariance.stretched(directions(self.mean))
            self.mean.copy_(torch.where(empty.unsqueeze(1), beside, self.mean))

    def _solve(self, count: Tensor, scatter: Tensor) -> None:
        """The covariances that maximise the likelihood of the scatter times their prior."""
        spread = self.spread if scatter.ndim == self.mean.ndim else self.spread.diag()
        self.covariance.maximize(count + self.pseudo_counts, scatter + self.pseudo_counts * spread)

    def log_prior(self) -> Tensor | float:
        """-a/2 sum_k log |Sigma_k| + tr(Sigma_k^-1 diag v), divided by N."""
        if not self.pseudo_counts or not self.num_data > 0:
            return 0.0
        return -self.pseudo_counts / 2 * self.covariance.penalty(self.spread) / self.num_data

    @torch.no_grad()
    def count_from(self, x: Tensor) -> None:
        """Count x from the mean of rows, and take v from them."""
        x = x.to(self.mean)
        self.offset.copy_(x.nanmean(0).nan_to_num(0.0))
        self.spread.copy_((x - self.offset).square().nanmean(0).nan_to_num(1.0).clamp(min=self.covariance.min_scale**2))

    @torch.no_grad()
    def initialize(self, x: Tensor, num_data: int) -> None:
        """Means by k-means, all covariances the variances about the nearest mean."""
        x = x.to(self.mean)
        self.count_from(x)
        self.num_data.fill_(num_data)
        self.mean.copy_(centres(x, self.latent_dim))
        filled = torch.where(x.isnan(), self.offset, x)
        nearest = self.mean[torch.cdist(filled, self.mean).argmin(1)]
        within = (filled - nearest).square().mean(0) + 0.01 * self.spread  # [D]: not 0, where every row is a mean
        self.covariance.maximize(*self.covariance.shaped(torch.ones_like(self.num_data), within.diag()))

    @torch.no_grad()
    def solve(self, spectrum: Spectrum, model: LatentVariableModel) -> None:
        """One component: the mean and covariance of the data."""
        self._require_one()
        self.num_data.copy_(spectrum.count)
        self.mean.copy_(spectrum.mean.unsqueeze(0))
        self._solve(*self.covariance.shaped(spectrum.count, spectrum.count * spectrum.covariance))

    def predict(self, x: Tensor, q: Distribution, num_samples: int = 0) -> Predicted:
        """Mean and standard deviation over components, each given the observed entries."""
        means, variances = self.covariance.conditional((x - self.offset).to(self.mean), self.mean - self.offset)  # [N, K, D]
        r = q.mean.unsqueeze(-1)  # [N, K, 1]
        mean = (r * means).sum(1)
        variance = (r * (variances + means.square())).sum(1) - mean.square()  # [N, D]
        return Predicted(self.offset + mean, variance.clamp(min=0).sqrt())

    def check_data(self, x: Tensor) -> str | None:
        """Remark on bits; refuse missing entries that would cost too much."""
        if x.isnan().any():
            self.covariance.check_missing()
        return remark_on_bits(x, "likelihood=bernoulli_components")

    def floored(self) -> str | None:
        """A sentence if a component's variance has come within 5% of its floor."""
        count = self.covariance.floored()
        if not count:
            return None
        floor = f"covariance.min_scale={self.covariance.min_scale}"
        return f"{count} of {self.latent_dim} components have a variance at the floor {floor}: the density is limited by it alone"


@final
class BernoulliComponents(Components):
    """prod_d mu_kd^x_d (1 - mu_kd)^(1 - x_d); grey values are taken as probabilities of a bit."""

    def __init__(self, num_components: int, data_dim: int, pseudo_counts: float = 1.0) -> None:
        super().__init__(num_components, data_dim, pseudo_counts)
        self.logits = nn.Parameter(torch.randn(num_components, data_dim).double())  # [K, D]

    def forward(self, z: Tensor) -> Distribution:
        """Bernoulli(mu_z) for one-hot z ``[..., K]``, event ``[D]``."""
        return bernoulli(z @ self.logits)

    def log_densities(self, x: Tensor) -> Tensor:
        """sum_d x_d log mu_kd + (1 - x_d) log(1 - mu_kd) = x_d logit_kd - softplus(logit_kd), ``[N, K]``."""
        x = x.to(self.logits)
        return x.nan_to_num(0.0) @ self.logits.T - (~x.isnan()).to(x) @ softplus(self.logits).T

    def statistics(self, x: Tensor, q: Distribution) -> Statistics:
        """Observed entries and those that are on, weighted, each ``[K, D]``."""
        x, r = x.to(self.logits), q.mean.T
        return {
            "responsibilities": q.mean.sum(0, dtype=torch.float64),
            "count": (r @ (~x.isnan()).to(x)).double(),
            "on": (r @ x.nan_to_num(0.0)).double(),
        }

    @torch.no_grad()
    def maximize(self, statistics: Statistics) -> None:
        """Eq. 9.59, with the pseudo-counts; as it was where nothing was observed."""
        self._count(statistics)
        on, count = statistics["on"] + self.pseudo_counts / 2, statistics["count"] + self.pseudo_counts
        self.logits.copy_(torch.where(count > 0, _logit(on / positive(count)), self.logits))
        empty, heaviest = emptied(statistics["responsibilities"])
        if empty.any():
            beside = self.logits[heaviest] + 2 * directions(self.logits)  # a standard deviation of bits that are on half of the time
            self.logits.copy_(torch.where(empty.unsqueeze(1), beside, self.logits))

    def log_prior(self) -> Tensor | float:
        """a/2 sum_kd log mu_kd + log(1 - mu_kd), divided by N."""
        if not self.pseudo_counts or not self.num_data > 0:
            return 0.0
        return self.pseudo_counts / 2 * (logsigmoid(self.logits) + logsigmoid(-self.logits)).sum() / self.num_data

    @torch.no_grad()
    def initialize(self, x: Tensor, num_data: int) -> None:
        """Means by k-means, drawn a little towards 1/2."""
        self.num_data.fill_(num_data)
        self.logits.copy_(_logit(0.05 + 0.9 * centres(x.to(self.logits), self.latent_dim)))

    @torch.no_grad()
    def solve(self, spectrum: Spectrum, model: LatentVariableModel) -> None:
        """One component: the means of the bits."""
        self._require_one()
        self.num_data.copy_(spectrum.count)
        a = self.pseudo_counts
        self.logits.copy_(_logit((spectrum.count * spectrum.mean + a / 2) / (spectrum.count + a)).unsqueeze(0))

    def predict(self, x: Tensor, q: Distribution, num_samples: int = 0) -> Predicted:
        """Probability of a bit, and its standard deviation."""
        mean = q.mean @ self.logits.sigmoid()
        return Predicted(mean, (mean * (1 - mean)).sqrt())

    def check_data(self, x: Tensor) -> str | None:
        """Refuse values outside [0, 1]; remark on grey ones."""
        return require_unit_interval(x, "bernoulli_components", "gaussian_components")


def _logit(probability: Tensor) -> Tensor:
    """log(p / (1 - p)), of 0 and 1 a finite number."""
    return probability.logit(eps=1e-15)
