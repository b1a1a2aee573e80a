"""Studies of the decoder: where in the latent space it has learnt anything, what it takes for noise, and in what unit it counts.

DeadAreas      do draws from N(0, I) fall where the decoder has seen codes?
NoiseScale     is the s of a Gaussian likelihood what is left over by the reconstructions?
DecoderUnits   of what is the ELBO a bound: of a density or of a probability?
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lowerbound import plots, study_plots
from lowerbound.data.module import TensorDataModule
from lowerbound.distributions import kl_per_dimension
from lowerbound.fit import Fit
from lowerbound.likelihoods import Gaussian
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.studies import Answer, Study, copied, rows_of


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """The distance of each point ``[N, L]`` to the nearest of the others, ``[N]``."""
    return torch.cdist(points, others).min(1).values


@final
class DeadAreas(Study):
    """Where draws from N(0, I) fall among the codes of the training data, and what the decoder makes of them.

    A draw is dead if it is farther from every training code than 99% of the codes of test data are. A code is one draw of
    q(z | x), which is what the decoder learnt from. The errors are squared errors of reconstructions, summed over what is observed of x.
    """

    name = "dead_areas"

    def __init__(self, num_draws: int = 2000, num_images: int = 64) -> None:
        self.num_draws, self.num_images = num_draws, num_images

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the codes have no plane."""
        if model.latent_dim < 2:
            raise ValueError(f"DeadAreas draws codes in a plane: latent_dim={model.latent_dim} must be at least 2")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Draw from N(0, I), and from the Gaussian with the mean and covariance of the codes."""
        model = copied(fit)
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        codes = model.draw(train).z[0]  # [N, L]
        draws = torch.randn(self.num_draws, model.latent_dim).to(codes)
        centred = codes - codes.mean(0)
        fitted = codes.mean(0) + torch.randn(self.num_draws, len(codes)).to(codes) @ centred / (len(codes) - 1) ** 0.5
        usual, distances = nearest(model.draw(test).z[0], codes), nearest(draws, codes)
        radius = usual.quantile(0.99).item()
        numbers = {
            "dead_share": (distances > radius).double().mean().item(),
            "dead_of_fitted_gaussian_share": (nearest(fitted, codes) > radius).double().mean().item(),
            "posterior_scale": model.posterior(test).variance.mean().sqrt().item(),
            "train_squared_error": (train - model.reconstruct(train)).square().nansum(-1).mean().item(),
            "test_squared_error": (test - model.reconstruct(test)).square().nansum(-1).mean().item(),
        }
        decoded = model.likelihood(draws[: self.num_images]).mean
        clouds = study_plots.Clouds(codes, draws, usual, distances, radius)
        title = "VAE" if model.is_bounded else "Autoencoder"
        return Answer(numbers, study_plots.dead_areas(clouds, decoded, data.shape, train, title))


@final
class NoiseScale(Study):
    """The scale s of a Gaussian likelihood beside the residuals x - f(z) of test data, dimension by dimension.

    Also the number of latent dimensions that are active, that is with a KL above 0.01 nats in the mean over test data.
    """

    name = "noise_scale"

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the likelihood is not Gaussian, or there is no KL."""
        if not isinstance(model.likelihood, (Gaussian, LinearGaussian)) or not model.is_bounded:
            raise ValueError("NoiseScale looks at the s of N(f(z), diag s^2) in a model with a KL: choose likelihood=gaussian model=vae")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Compare at one z ~ q(z | x) for each test datum."""
        model = copied(fit)
        x = rows_of(data, "test", model)
        kl = kl_per_dimension(model.posterior(x), model.prior()).mean(0)  # [L]
        p = model.likelihood(model.draw(x).z[0])
        residual = (x - p.mean).square().nanmean(0).sqrt()  # [D]
        scale = p.stddev.square().mean(0).sqrt()  # [D]
        numbers = {
            "active_dimensions": float((kl > plots.COLLAPSED).sum()),
            "squared_error": residual.square().nansum().item(),
            "mean_scale": scale.mean().item(),
        }
        return Answer(numbers, study_plots.noise_scale(residual, scale))


@final
class DecoderUnits(Study):
    """Test data, their reconstructions and draws from p(x | z), and the ELBO under the name of what it bounds.

    A density is also told of the original integers, which are no longer spread over (0, 1): it changes with the unit of x, and a
    probability does not.
    """

    name = "decoder_units"

    def __init__(self, num_images: int = 12) -> None:
        self.num_images = num_images

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if there is no bound."""
        if not model.is_bounded:
            raise ValueError("an autoencoder bounds no log p(x): choose model=vae")

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """The ELBO of the test data as prepared and, of a density, in the original unit."""
        model = copied(fit)
        x = rows_of(data, "test", model)
        bound = fit.objective(model, x, fit.clock)
        assert bound.kl is not None
        elbo = (bound.reconstruction - bound.kl).double().mean().item()
        if data.prepare.is_discrete:
            numbers = {"log_probability": elbo}
        else:
            numbers = {"log_density": elbo, "log_density_in_original_unit": elbo + data.prepare.log_jacobian(x).mean().item()}
        if model.check_data(x) is not None:  # grey values under a Bernoulli likelihood
            numbers = {"negative_cross_entropy": elbo}
        shown = x[: self.num_images]
        p = model.likelihood(model.draw(shown).z[0])
        kind = type(model.likelihood).__name__
        return Answer(numbers, study_plots.decoder(kind, numbers, shown, p.mean, p.sample(), data.shape))
