"""Three stories of how a datum comes about: a Gaussian step z along a line or in a plane, then noise.

    x = b + W z + F e,   z ~ N(0, I), e ~ N(0, I),   p(x) = N(b, W W' + F F')

    PCA               W = U_L Lambda_L^(1/2)               F = s (I - U_L U_L')   orthogonal to the plane
    probabilistic PCA W = U_L (Lambda_L - s^2 I)^(1/2)     F = s I                in every direction    T&B 1999, eq. 7
    factor analysis   W                                    F = diag psi^(1/2)     along the axes of x

Lambda and U are of the data's covariance, s^2 is the mean of the other eigenvalues. The first two are one density: which part of the
variance in the plane is called noise is all that differs. With L = D - 1 the second is a Gaussian of any covariance, so that factor
analysis differs from it only where D - L is at least 2.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributions import MultivariateNormal

from lowerbound import linear_plots
from lowerbound.axes import largest_angle
from lowerbound.data.module import TensorDataModule
from lowerbound.data.synthetic import LinearGaussianData
from lowerbound.fit import Fit
from lowerbound.likelihoods import NoisePerDimension
from lowerbound.linear_gaussian import LinearGaussian, linear
from lowerbound.model import LatentVariableModel
from lowerbound.models import ppca
from lowerbound.statistics import Moments, Spectrum
from lowerbound.studies import Answer, Study, copied, rows_of


class Story(NamedTuple):
    """x = b + W z + F e."""

    bias: Tensor  # [D]
    weight: Tensor  # [D, L]
    noise: Tensor  # [D, D], F

    @property
    def covariance(self) -> Tensor:
        """W W' + F F' ``[D, D]``."""
        return self.weight @ self.weight.T + self.noise @ self.noise.T

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) ``[N]`` for x ``[N, D]``."""
        return MultivariateNormal(self.bias, self.covariance, validate_args=False).log_prob(x)

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` steps b + W z ``[n, D]``, and where the noise carries them ``[n, D]``."""
        dim, latent_dim = self.weight.shape
        step = self.bias + torch.randn(count, latent_dim).to(self.bias) @ self.weight.T
        return step, step + torch.randn(count, dim).to(self.bias) @ self.noise.T

    @property
    def noise_share(self) -> float:
        """The share of the variance that it calls noise."""
        return (self.noise.square().sum() / self.covariance.trace()).item()


def story_of(model: LatentVariableModel) -> Story:
    """That of a linear Gaussian model."""
    p = linear(model)
    return Story(p.bias, p.weight, p.scale.diag())


def orthogonal(spectrum: Spectrum, latent_dim: int) -> Story:
    """That of PCA: all variance in the plane is step, all noise stands at right angles to it."""
    axes, variances = spectrum.axes[:, :latent_dim], spectrum.variances[:latent_dim]
    rest = torch.eye(len(spectrum.mean)).to(axes) - axes @ axes.T
    return Story(spectrum.mean, axes * variances.sqrt(), spectrum.residual(latent_dim).sqrt() * rest)


@final
class NoiseStories(Study):
    """The truth and three stories fitted to its draws: log p(x) of test data, the angle of W's span to the truth's, samples.

    ``noise_share`` is the share of the variance that a story calls noise. The picture is of the plane of the truth's step and its
    noisiest dimension.
    """

    name = "noise_stories"

    def __init__(self, num_draws: int = 100) -> None:
        self.num_draws = num_draws

    def check(self, model: LatentVariableModel) -> None:
        """Raise ValueError if the model is not factor analysis, or not different from the others."""
        p = model.likelihood
        if not (isinstance(p, LinearGaussian) and isinstance(p.noise, NoisePerDimension) and model.is_exact):
            raise ValueError("NoiseStories compares factor analysis with PCA and probabilistic PCA: choose model=factor_analysis")
        if p.data_dim - p.latent_dim < 2:
            raise ValueError(
                f"latent_dim={p.latent_dim} and data.dim={p.data_dim} must be at least 2 apart, or all three are one full Gaussian"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data without a known truth, with holes, or in other units than the truth's."""
        super().on_fit_start(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, LinearGaussianData) or data.missing.hides or len(data.prepare.steps):
            raise ValueError(
                "NoiseStories compares with the truth of synthetic data as they are drawn:\n"
                "choose data=linear_gaussian, without data.missing and data.prepare"
            )

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Fit the other two, and compare."""
        assert isinstance(data, LinearGaussianData)
        model = copied(fit)
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        spectrum, isotropic = Moments.of(train).spectrum(), ppca(model.data_dim, model.latent_dim).to(train)
        linear(isotropic).solve(spectrum, isotropic)
        truth = Story(*(value.to(train) for value in (data.truth.bias, data.truth.weight, data.truth.noise_variance.sqrt().diag())))
        stories = {
            "truth": truth,
            "pca": orthogonal(spectrum, model.latent_dim),
            "ppca": story_of(isotropic),
            "factor_analysis": story_of(model),
        }
        numbers = {f"{name}_log_evidence": story.log_prob(test).mean().item() for name, story in stories.items()}
        numbers |= {
            f"{name}_angle_degrees": largest_angle(story.weight, truth.weight) for name, story in stories.items() if name != "truth"
        }
        numbers |= {f"{name}_noise_share": story.noise_share for name, story in stories.items()}
        view, names = self._view(truth)
        seen = {name: self._seen(story, truth.bias, view) for name, story in stories.items()}
        return Answer(numbers, linear_plots.noise_stories(seen, numbers, names))

    @staticmethod
    def _view(truth: Story) -> tuple[Tensor, tuple[str, str]]:
        """Two directions ``[D, 2]``, that of the noisiest dimension and the rest of the truth's longest step, and their names."""
        noisiest = int(truth.noise.diagonal().argmax())
        across = torch.eye(len(truth.bias)).to(truth.bias)[noisiest]
        step = torch.linalg.svd(truth.weight, full_matrices=False).U[:, 0]
        along = step - across * (step @ across)
        directions = torch.stack([across, along / along.norm()], 1)
        return directions, (f"$x_{{{noisiest + 1}}}$, the noisiest dimension", "the rest of the truth's w")

    def _seen(self, story: Story, centre: Tensor, view: Tensor) -> dict[str, Tensor]:
        """Steps, draws, and the ends of W's columns, counted from the truth's mean, in the plane of the view."""
        step, x = story.draws(self.num_draws)
        columns = torch.stack([story.bias - story.weight.T, story.bias + story.weight.T])  # [2, L, D]
        return {"step": (step - centre) @ view, "x": (x - centre) @ view, "columns": (columns - centre) @ view}
