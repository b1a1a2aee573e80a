"""One constructor for each model, for Python without configuration files.

    model                prior      likelihood               posterior
    vae                  N(0, I)    of f(z), a network       N(mu(x), diag s(x)^2)
    autoencoder          flat       of f(z), a network       a point
    linear_vae           N(0, I)    N(W z + b, s^2 I)        N(V x + c, diag s^2), one s for all x
    linear_autoencoder   flat       N(W z + b, I)            a point, V x + c or W'(x - b)
    pca                  flat       N(W z + b, I)            a point, the orthogonal projection
    ppca                 N(0, I)    N(W z + b, s^2 I)        exact
    factor_analysis      N(0, I)    N(W z + b, diag psi)     exact
    gaussian_mixture     Cat(pi)    N(mu_z, Sigma_z)         exact
    bernoulli_mixture    Cat(pi)    bits of mean mu_z        exact
    gaussian             one z      N(mu, Sigma)             exact
    bernoulli            one z      bits of mean mu          exact

They build what ``conf/model/<name>.yaml`` builds; both mixtures are ``conf/model/mixture.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lowerbound.covariances import Covariance
from lowerbound.dense_covariances import Full
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, Noise, NoisePerDimension, SharedNoise
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian, OrthogonalProjection
from lowerbound.mixture import BernoulliComponents, Enumeration, GaussianComponents
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MLP, Linear, MLPDecoder, Recipe
from lowerbound.parts import Likelihood
from lowerbound.posteriors import Delta, DiagonalGaussian, Tied
from lowerbound.priors import Flat, OneHot, StandardNormal


def _likelihood(kind: str, network: Recipe, latent_dim: int, data_dim: int, noise: Noise) -> Likelihood:
    """The likelihood of that name.

    Raises:
        ValueError: there is none of that name.
    """
    if kind not in ("gaussian", "bernoulli"):
        raise ValueError(
            f"likelihood={kind!r} is neither gaussian nor bernoulli; any other Likelihood goes into LatentVariableModel itself"
        )
    return Bernoulli(network, latent_dim, data_dim) if kind == "bernoulli" else Gaussian(network, latent_dim, data_dim, noise)


def vae(data_dim: int, latent_dim: int, likelihood: str = "gaussian", sizes: Sequence[int] = (512,)) -> LatentVariableModel:
    """A variational autoencoder with MLPs of hidden layers `sizes`; the Gaussian likelihood has a learnt shared scale."""
    encoder, decoder = partial(MLP, inputs=data_dim, sizes=sizes), partial(MLPDecoder, inputs=latent_dim, sizes=sizes)
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=_likelihood(likelihood, decoder, latent_dim, data_dim, SharedNoise(data_dim)),
        posterior=DiagonalGaussian(encoder, latent_dim),
    )


def autoencoder(data_dim: int, latent_dim: int, likelihood: str = "gaussian", sizes: Sequence[int] = (512,)) -> LatentVariableModel:
    """An autoencoder with MLPs; under the Gaussian likelihood of scale 1 its loss is half the squared error plus a constant."""
    encoder, decoder = partial(MLP, inputs=data_dim, sizes=sizes), partial(MLPDecoder, inputs=latent_dim, sizes=sizes)
    return LatentVariableModel(
        prior=Flat(latent_dim),
        likelihood=_likelihood(likelihood, decoder, latent_dim, data_dim, FixedNoise(data_dim)),
        posterior=Delta(encoder, latent_dim),
    )


def linear_vae(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """Probabilistic PCA's likelihood with an amortised posterior (Lucas et al. 2019)."""
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=LinearGaussian(latent_dim, data_dim, SharedNoise(data_dim)),
        posterior=DiagonalGaussian(partial(Linear, inputs=data_dim), latent_dim, shared_scale=True),
    )


def linear_autoencoder(data_dim: int, latent_dim: int, tied: bool = False) -> LatentVariableModel:
    """An autoencoder of one affine map each way, which learns the subspace of PCA; or, `tied`, with the decoder transposed as encoder."""
    return LatentVariableModel(
        prior=Flat(latent_dim),
        likelihood=LinearGaussian(latent_dim, data_dim, FixedNoise(data_dim)),
        posterior=Tied() if tied else Delta(partial(Linear, inputs=data_dim), latent_dim),
    )


def pca(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """The plane nearest to the data, by `ClosedFormFit` or `EMFit`."""
    return LatentVariableModel(
        prior=Flat(latent_dim),
        likelihood=LinearGaussian(latent_dim, data_dim, FixedNoise(data_dim)),
        posterior=OrthogonalProjection(),
    )


def ppca(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """Probabilistic PCA (Tipping & Bishop 1999), by `ClosedFormFit`, `EMFit` or `GradientFit`."""
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=LinearGaussian(latent_dim, data_dim, SharedNoise(data_dim)),
        posterior=ExactGaussian(),
    )


def factor_analysis(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """Factor analysis (Rubin & Thayer 1982), by `EMFit` or `GradientFit`."""
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=LinearGaussian(latent_dim, data_dim, NoisePerDimension(data_dim)),
        posterior=ExactGaussian(),
    )


def gaussian_mixture(
    data_dim: int, num_components: int, covariance: Covariance | None = None, pseudo_counts: float = 1.0
) -> LatentVariableModel:
    """A mixture of Gaussians with full covariances, or others, by `EMFit` or `GradientFit`."""
    return LatentVariableModel(
        prior=OneHot(num_components, pseudo_counts),
        likelihood=GaussianComponents(num_components, data_dim, covariance or Full(num_components, data_dim), pseudo_counts),
        posterior=Enumeration(),
    )


def bernoulli_mixture(data_dim: int, num_components: int, pseudo_counts: float = 1.0) -> LatentVariableModel:
    """A mixture of independent bits, by `EMFit` or `GradientFit`."""
    return LatentVariableModel(
        prior=OneHot(num_components, pseudo_counts),
        likelihood=BernoulliComponents(num_components, data_dim, pseudo_counts),
        posterior=Enumeration(),
    )


def gaussian(data_dim: int, covariance: Covariance | None = None) -> LatentVariableModel:
    """A Gaussian by maximum likelihood: a mixture of one component."""
    return gaussian_mixture(data_dim, 1, covariance, pseudo_counts=0.0)


def bernoulli(data_dim: int, pseudo_counts: float = 1.0) -> LatentVariableModel:
    """Independent bits: a mixture of one component."""
    return bernoulli_mixture(data_dim, 1, pseudo_counts)
