"""Identities of a linear VAE, whose evidence, bound and posterior are all known.

    log p(x) = E_q log p(x | z) - KL(q, p(z)) + KL(q, p(z | x))          Bishop 2006, eq. 9.70; Jordan et al. 1999
    max ELBO = max log p, reached by probabilistic PCA                   Lucas et al. 2019, theorem 1 and lemma 1
    mean of KL_i = max(0, log(lambda_i / (beta s^2)) / 2)                at the maximum, s^2 fixed

lambda_i are the eigenvalues of the data's covariance. The third line follows from eq. 12.45 of Bishop 2006: at the maximum w_i is
the i-th axis of length (lambda_i - beta s^2)^(1/2), q(z_i | x) has the variance beta s^2 / lambda_i, and its mean varies by the
rest of 1. So dimension i collapses iff lambda_i <= beta s^2. The beta-ELBO at noise s^2 has its maximum at the q and W of the ELBO at
noise beta s^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from lowerbound import linear_plots
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import covariance_of, kl_per_dimension
from lowerbound.fit import Fit
from lowerbound.likelihoods import FixedNoise, SharedNoise
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian, linear
from lowerbound.model import LatentVariableModel
from lowerbound.models import ppca
from lowerbound.networks import Linear
from lowerbound.objectives import ELBO
from lowerbound.plots import COLLAPSED
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.priors import StandardNormal
from lowerbound.schedules import Step
from lowerbound.statistics import Moments
from lowerbound.studies import Answer, Study, copied, rows_of


def exact(model: LatentVariableModel) -> LatentVariableModel:
    """The same prior and likelihood with Bayes' posterior."""
    return LatentVariableModel(model.prior, model.likelihood, ExactGaussian())


class Terms(NamedTuple):
    """The identity's terms for each datum, ``[N]``, nats."""

    log_evidence: Tensor
    reconstruction: Tensor
    kl: Tensor
    kl_to_posterior: Tensor

    @property
    def elbo(self) -> Tensor:
        """reconstruction - kl."""
        return self.reconstruction - self.kl

    @property
    def residual(self) -> Tensor:
        """log p(x) - (reconstruction - kl + KL to the posterior)."""
        return self.log_evidence - (self.elbo + self.kl_to_posterior)


@torch.no_grad()
def terms_of(model: LatentVariableModel, x: Tensor) -> Terms:
    """Each term for x ``[N, D]`` by a formula of its own: a dense Gaussian density, an expected square, two KLs of Gaussians."""
    p, q = linear(model), model.posterior(x)
    evidence = MultivariateNormal(p.bias, p.covariance, validate_args=False).log_prob(x)
    dense = MultivariateNormal(q.mean, covariance_of(q), validate_args=False)
    reconstruction = p.expected_log_prob(x, q)
    return Terms(evidence, reconstruction, kl_divergence(q, model.prior()), kl_divergence(dense, exact(model).posterior(x)))


def needs_linear_vae(model: LatentVariableModel) -> None:
    """Refuse a model without an encoder, or whose evidence is not known.

    Raises:
        ValueError: as said.
    """
    if model.is_exact or not isinstance(model.likelihood, LinearGaussian) or not isinstance(model.prior, StandardNormal):
        raise ValueError("this study sets a posterior that is learnt beside a known evidence: choose model=linear_vae")


@final
class EvidenceIdentity(Study):
    """log p(x) = reconstruction - KL(q, p(z)) + KL(q, p(z | x)), term by term for each test datum, before and after training.

    ``largest_residual`` is the largest difference of the two sides, of any datum.
    """

    name = "evidence_identity"

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the model is no linear VAE."""
        needs_linear_vae(model)

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Compute each term by itself."""
        times = {}
        for when, model in (("start", self.start.eval().to(fit.device)), ("trained", copied(fit))):
            times[when] = terms_of(model, rows_of(data, "test", model))
        numbers = {}
        for when, terms in times.items():
            numbers |= {f"{when}_{name}": value.mean().item() for name, value in terms._asdict().items()}
            numbers[f"{when}_largest_residual"] = terms.residual.abs().max().item()
        pairs = {when: (terms.log_evidence, terms.elbo, terms.kl_to_posterior) for when, terms in times.items()}
        return Answer(numbers, linear_plots.evidence_identity(pairs))


def linear_vae(data_dim: int, latent_dim: int, scale: float) -> LatentVariableModel:
    """A linear VAE whose noise has a fixed scale."""
    likelihood = LinearGaussian(latent_dim, data_dim, FixedNoise(data_dim, scale))
    posterior = DiagonalGaussian(partial(Linear, inputs=data_dim), latent_dim, shared_scale=True)
    return LatentVariableModel(StandardNormal(latent_dim), likelihood, posterior)


def with_moments(moments: Moments) -> Tensor:
    """2 D rows with this mean and covariance: to what is quadratic in x, as good as the data."""
    values, vectors = torch.linalg.eigh(moments.scatter / moments.count)
    root = (vectors * values.clamp(min=0).sqrt()).T * len(values) ** 0.5  # [D, D]
    return moments.mean + torch.cat([root, -root])


def ascend(model: LatentVariableModel, x: Tensor, beta: float, steps: int) -> None:
    """Maximise the mean beta-ELBO over x ``[N, D]``, all terms analytic, by `steps` steps of L-BFGS."""
    objective = ELBO(beta, reconstruction="analytic")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, history_size=50, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -objective(model, x, Step()).value.mean()
        value.backward()
        return value

    optimizer.step(loss)


class Collapse(NamedTuple):
    """A linear VAE at one beta s^2: its KL of each dimension, falling, and what the eigenvalues say they are, ``[L]`` both."""

    beta: float
    threshold: float  # beta s^2
    kl: Tensor
    predicted: Tensor


@final
class PrincipalCollapse(Study):
    """A linear VAE is probabilistic PCA: its evidence against the optimum, and which dimensions collapse at which fixed s^2.

    The trained model learns s^2; its evidence is that of training data, where probabilistic PCA has its maximum. Then linear VAEs of
    as many dimensions are trained at fixed s^2, at each beta: beta s^2 lies between eigenvalues, so that as many dimensions as in
    `kept` should stay (a KL above 0.01 nats in the mean over data). ``largest_kl_difference`` is that of any dimension of any of
    them from what the eigenvalues say.
    """

    name = "collapse"

    def __init__(self, kept: Sequence[int] = (0, 1, 3, 5, 8), betas: Sequence[float] = (1.0, 4.0), steps: int = 300) -> None:
        self.kept, self.betas, self.steps = list(kept), list(betas), steps

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the model is no linear VAE with one learnt scale, or has fewer dimensions than are to be kept."""
        needs_linear_vae(model)
        if not isinstance(linear(model).noise, SharedNoise):
            raise ValueError("PrincipalCollapse compares with the maximum of probabilistic PCA, which learns one s: choose noise=shared")
        if min(self.kept) < 0 or max(self.kept) > model.latent_dim:
            raise ValueError(f"callbacks.study.kept={self.kept} must lie between 0 and latent_dim={model.latent_dim}")

    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Compare the evidence; train at fixed s^2."""
        model = copied(fit)
        x = rows_of(data, "train", model)
        moments, best = Moments.of(x), ppca(model.data_dim, model.latent_dim).to(x)
        variances = moments.spectrum().variances
        linear(best).solve(moments.spectrum(), best)
        with torch.no_grad():
            reached, optimum, bound = exact(model).log_prob(x), best.log_prob(x), terms_of(model, x).elbo  # [N]
        numbers = {"ppca_log_evidence": optimum.mean(), "vae_log_evidence": reached.mean(), "vae_elbo": bound.mean()}
        numbers = {name: value.item() for name, value in numbers.items()} | {"evidence_gap": (optimum - reached).mean().item()}
        found = [self._trained(moments, variances, kept, beta, model.latent_dim) for beta in self.betas for kept in self.kept]
        numbers["largest_kl_difference"] = max((one.kl - one.predicted).abs().max().item() for one in found)
        for one, (beta, kept) in zip(found, ((beta, kept) for beta in self.betas for kept in self.kept), strict=True):
            numbers[f"beta_{beta:g}_of_{kept}_active_dimensions"] = float((one.kl > COLLAPSED).sum())
        return Answer(
            numbers, linear_plots.collapse([one._asdict() for one in found], variances[: model.latent_dim + 1], (reached, optimum))
        )

    def _trained(self, moments: Moments, variances: Tensor, kept: int, beta: float, latent_dim: int) -> Collapse:
        """A linear VAE trained with beta s^2 between the eigenvalues `kept` and `kept` + 1."""
        above = variances[kept - 1] if kept else 2 * variances[0]
        threshold = (above * variances[kept]).sqrt().item()
        model = linear_vae(len(variances), latent_dim, (threshold / beta) ** 0.5).to(variances)
        x = with_moments(moments)
        ascend(model, x, beta, self.steps)
        with torch.no_grad():
            kl = kl_per_dimension(model.posterior(x), model.prior()).mean(0).sort(descending=True).values
        return Collapse(beta, threshold, kl, ((variances[:latent_dim] / threshold).log() / 2).clamp(min=0))
