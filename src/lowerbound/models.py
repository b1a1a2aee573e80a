"""One constructor for each model, for Python without configuration files.

    model                prior      likelihood               posterior
    vae                  N(0, I)    of f(z), a network       N(mu(x), diag s(x)^2)
    linear_vae           N(0, I)    N(W z + b, s^2 I)        N(V x + c, diag s^2), one s for all x
    autoencoder          flat       of f(z), a network       a point
    linear_autoencoder   flat       N(W z + b, I)            a point

They build what ``conf/model/<name>.yaml`` builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, Noise, SharedNoise
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MLP, Linear, MLPDecoder, Recipe
from lowerbound.parts import Likelihood
from lowerbound.posteriors import Delta, DiagonalGaussian
from lowerbound.priors import Flat, StandardNormal


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


def linear_vae(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """Probabilistic PCA's likelihood with an amortised posterior (Lucas et al. 2019)."""
    return LatentVariableModel(
        prior=StandardNormal(latent_dim),
        likelihood=Gaussian(partial(Linear, inputs=latent_dim), latent_dim, data_dim, SharedNoise(data_dim)),
        posterior=DiagonalGaussian(partial(Linear, inputs=data_dim), latent_dim, shared_scale=True),
    )


def autoencoder(data_dim: int, latent_dim: int, likelihood: str = "gaussian", sizes: Sequence[int] = (512,)) -> LatentVariableModel:
    """An autoencoder with MLPs; under the Gaussian likelihood of scale 1 its loss is half the squared error plus a constant."""
    encoder, decoder = partial(MLP, inputs=data_dim, sizes=sizes), partial(MLPDecoder, inputs=latent_dim, sizes=sizes)
    return LatentVariableModel(
        prior=Flat(latent_dim),
        likelihood=_likelihood(likelihood, decoder, latent_dim, data_dim, FixedNoise(data_dim)),
        posterior=Delta(encoder, latent_dim),
    )


def linear_autoencoder(data_dim: int, latent_dim: int) -> LatentVariableModel:
    """An autoencoder of one affine map each way, which learns the subspace of PCA."""
    return LatentVariableModel(
        prior=Flat(latent_dim),
        likelihood=Gaussian(partial(Linear, inputs=latent_dim), latent_dim, data_dim, FixedNoise(data_dim)),
        posterior=Delta(partial(Linear, inputs=data_dim), latent_dim),
    )
