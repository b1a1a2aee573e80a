"""Studies: what they claim, where there is an exact answer; and each as one command, small."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import commands
import lowerbound
import oracles
from lowerbound.amortization import AmortizationGap, best_posteriors
from lowerbound.data import InMemory
from lowerbound.data.prepare import Preparation
from lowerbound.decoding import DeadAreas, DecoderUnits, NoiseScale
from lowerbound.distributions import diagonal_normal
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian, SharedNoise
from lowerbound.model import LatentVariableModel
from lowerbound.networks import Linear
from lowerbound.objectives import ELBO, ScoreFunctionELBO
from lowerbound.posteriors import Delta, DiagonalGaussian
from lowerbound.priors import Flat, StandardNormal
from lowerbound.studies import BruteForce, GradientVariance, Study, gradients
from lowerbound.wording import unit, written

SIX = 6  # standard errors
SCALE = 0.3


def linear_vae(dim: int = 5, latent_dim: int = 2, seed: int = 0, orthogonal: bool = False) -> LatentVariableModel:
    """A VAE of affine maps in float64 with known weights, its q far from the posterior; or with columns of W at right angles."""
    torch.manual_seed(seed)
    encoder, decoder = partial(Linear, inputs=dim), partial(Linear, inputs=latent_dim)
    likelihood = Gaussian(decoder, latent_dim, dim, SharedNoise(dim))
    model = LatentVariableModel(StandardNormal(latent_dim), likelihood, DiagonalGaussian(encoder, latent_dim, shared_scale=True)).double()
    with torch.no_grad():
        if orthogonal:
            weight(model).copy_(torch.linalg.qr(weight(model)).Q * torch.tensor([1.0, 0.5]))
        model.likelihood.noise.log_scale.fill_(math.log(SCALE - model.likelihood.noise.min_scale))
        model.posterior_rule.log_scale.fill_(-1.0)
    return model


def weight(model: LatentVariableModel) -> Tensor:
    return model.likelihood.network.linear.weight


def parameters(model: LatentVariableModel) -> tuple[np.ndarray, np.ndarray, float]:
    return weight(model).detach().numpy(), model.likelihood.network.linear.bias.detach().numpy(), SCALE


def draws_of(model: LatentVariableModel, count: int) -> Tensor:
    torch.manual_seed(1)
    return model.sample(count, noise=True).detach()


def asked(study: Study, model: LatentVariableModel, x: Tensor, **options: Any) -> dict[str, float]:
    """The numbers of a study of this model; a tenth of x are validation data and a fifth test data."""
    data = InMemory(x, **options)
    fit: Any = SimpleNamespace(evaluation_model=model, objective=ELBO(), clock=None, device=torch.device("cpu"))
    study.check(model)
    study.start = model
    torch.manual_seed(2)
    return study.answer(fit, data).numbers


def test_part(x: Tensor) -> Tensor:
    return InMemory(x).part("test").x.double()


test_part.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_brute_force_converges_to_the_dense_gaussian(latent_dim: int) -> None:
    model = linear_vae(latent_dim=latent_dim)
    x = draws_of(model, 50).float()
    numbers = asked(BruteForce(points=[3, 9, 33, 65, 129], num_samples=[1, 10, 500], limit=8), model, x)
    exact = oracles.dense_gaussian(test_part(x).numpy(), *parameters(model)).mean()
    assert numbers["log_evidence"] == pytest.approx(exact, abs=1e-10)  # the trapezoidal rule on a Gaussian, float64
    assert numbers["elbo"] <= numbers["iwae_10"] <= numbers["iwae_500"], "the same draws, so Jensen holds exactly"
    assert numbers["iwae_10"] < exact
    assert numbers["needed_points"] in (9, 33, 65)
    assert numbers["dimension_3_evaluations"] == numbers["needed_points"] ** 3


def test_a_grid_that_only_seems_fine_enough_is_not_enough() -> None:
    study = BruteForce(points=[3, 5, 9, 17])
    assert study._needed([1.0, 0.001, 0.5]) == 17
    assert study._needed([1.0, 0.001, 0.002]) == 5
    assert study._needed([math.inf, math.nan, 0.002]) == 9


def test_the_gaps_are_those_of_an_independent_grid() -> None:
    """A nonlinear decoder: log p(x) by the midpoint rule, and the ELBO of the network by its closed KL and Monte Carlo."""
    torch.manual_seed(0)
    model = lowerbound.vae(4, 2, sizes=[8]).double().requires_grad_(False)
    torch.manual_seed(1)
    x = model.sample(6, noise=True)
    numbers, approximation, amortization = AmortizationGap(points=129, num_samples=4000, steps=150).gaps(model, x)

    def log_likelihood(grid: np.ndarray) -> np.ndarray:
        loc = model.likelihood.network(torch.from_numpy(grid)).numpy()  # [G, D]
        return np.stack([oracles.gaussian_log_density(row, loc, np.array(0.3)) for row in x.numpy()], 1)

    exact = oracles.grid_log_evidence(log_likelihood, 2, 6.5, 150).mean()
    assert numbers["log_evidence"] == pytest.approx(exact, abs=1e-4)  # relu: both rules err at the kinks
    with torch.no_grad():
        elbo = ELBO(num_samples=20_000)(model, x, None).value.mean().item()  # type: ignore[arg-type]
    error = SIX * (numbers["approximation_gap_se"] ** 2 + numbers["amortization_gap_se"] ** 2) ** 0.5
    assert exact - numbers["approximation_gap"] - numbers["amortization_gap"] == pytest.approx(elbo, abs=2 * error)
    assert numbers["approximation_gap"] > -SIX * numbers["approximation_gap_se"]
    assert numbers["amortization_gap"] > SIX * numbers["amortization_gap_se"], "an untrained network leaves a gap"
    assert approximation.mean().item() == pytest.approx(numbers["approximation_gap"])
    assert amortization.mean().item() == pytest.approx(numbers["amortization_gap"])


def test_where_the_posterior_is_a_diagonal_gaussian_only_amortization_costs() -> None:
    """Columns of W at right angles: q* is the exact posterior, and the amortization gap is KL(q, posterior)."""
    model = linear_vae(orthogonal=True).requires_grad_(False)
    x = draws_of(model, 8)
    numbers, approximation, _ = AmortizationGap(points=129, num_samples=2000, steps=400).gaps(model, x)
    means, covariance = oracles.dense_linear_posterior(x.numpy(), *parameters(model))
    q = model.posterior(x)
    kl = np.mean([oracles.gaussian_kl(q.mean[i].numpy(), np.diag(q.variance[i].numpy()), means[i], covariance) for i in range(len(x))])
    # q* is found to about a hundredth of a standard deviation, which costs its square.
    assert approximation.abs().max() < 1e-3
    assert numbers["amortization_gap"] == pytest.approx(kl, abs=SIX * numbers["amortization_gap_se"] + 1e-3)


def test_the_best_posterior_of_a_linear_model_is_known() -> None:
    """argmax of the ELBO over diagonal Gaussians: the mean of p(z | x), and the diagonal of its precision (Bishop 2006, eq. 10.15)."""
    model = linear_vae().requires_grad_(False)
    x = draws_of(model, 5)
    means, covariance = oracles.dense_linear_posterior(x.numpy(), *parameters(model))
    found = best_posteriors(model, x, model.posterior(x), steps=600)
    np.testing.assert_allclose(found.mean.numpy(), means, rtol=0, atol=0.02)  # Adam's last steps
    np.testing.assert_allclose(found.variance.numpy(), np.tile(1 / np.diag(np.linalg.inv(covariance)), (5, 1)), rtol=0.05, atol=0)


def test_the_best_posterior_is_no_worse_than_where_it_started() -> None:
    model = linear_vae().requires_grad_(False)
    x = draws_of(model, 5)
    far = diagonal_normal(torch.full((5, 2), 2.0).double(), torch.full((5, 2), 0.5).double())
    near, from_far = (best_posteriors(model, x, start, steps=600) for start in (model.posterior(x), far))
    torch.testing.assert_close(near.mean, from_far.mean, atol=0.03, rtol=0)


def test_in_turn_the_decoder_waits_for_the_encoder() -> None:
    def trained(steps: int, in_turn: bool) -> tuple[bool, bool, int]:
        model = linear_vae().float()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        curve = AmortizationGap(training_steps=steps, turn=3).curve(model, torch.randn(20, 5), torch.randn(10, 5), in_turn)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        return any(name.startswith("posterior") for name in moved), any(name.startswith("likelihood") for name in moved), len(curve)

    assert trained(3, in_turn=True)[:2] == (True, False)
    assert trained(4, in_turn=True)[:2] == (True, True)
    assert trained(1, in_turn=False)[:2] == (True, True)
    assert trained(80, in_turn=True)[2] == 41


@pytest.fixture(scope="module")
def both_gradients() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model = lowerbound.vae(4, 2, sizes=[3]).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    pathwise, score = (gradients(model, objective, x, 1000) for objective in (ELBO(kl="sampled"), ScoreFunctionELBO()))
    return pathwise, score


def test_both_gradients_have_the_same_mean(both_gradients: tuple[Tensor, Tensor]) -> None:
    pathwise, score = both_gradients
    error = ((pathwise.var(0) + score.var(0)) / len(score)).sqrt()
    assert ((pathwise.mean(0) - score.mean(0)).abs() <= SIX * error + 1e-12).all()
    assert (pathwise.mean(0).abs() > SIX * pathwise.std(0) / len(pathwise) ** 0.5).any(), "and it is not zero"


def test_the_score_function_has_the_larger_variance(both_gradients: tuple[Tensor, Tensor]) -> None:
    pathwise, score = (sample.var(0).sum() for sample in both_gradients)
    assert score > 3 * pathwise


def test_the_variance_of_a_gradient_is_known_for_one_parameter() -> None:
    """p(x | z) = N(z, s^2), q = N(m, 1): d/dm of the pathwise estimate is (x - z) / s^2 - z, with variance (1 / s^2 + 1)^2."""
    model = linear_vae(1, 1)
    with torch.no_grad():
        weight(model).fill_(1.0)
        model.posterior_rule.log_scale.zero_()
    x = torch.zeros(1, 1, dtype=torch.float64)
    samples = gradients(model, ELBO(kl="sampled"), x, 1000)
    bias = [name for name, _ in model.posterior_rule.named_parameters()].index("network.linear.bias")
    expected = (1 / SCALE**2 + 1) ** 2
    assert samples[:, bias].var().item() == pytest.approx(expected, rel=SIX * (2 / 1000) ** 0.5)  # of a variance of Gaussians


def test_the_gradients_of_start_and_end_are_both_measured() -> None:
    model = linear_vae()
    numbers = asked(GradientVariance(repeats=50, num_data=8), model, draws_of(model, 30).float())
    for when in ("start", "trained"):
        ratio = numbers[f"{when}_score_function_variance"] / numbers[f"{when}_pathwise_variance"]
        assert numbers[f"{when}_variance_ratio"] == pytest.approx(ratio)
        assert ratio > 1


def identity_autoencoder(shift: float) -> LatentVariableModel:
    """z = x - shift and x = z + shift, exactly."""
    affine = partial(Linear, inputs=2)
    model = LatentVariableModel(Flat(2), Gaussian(affine, 2, 2, FixedNoise(2)), Delta(affine, 2))
    with torch.no_grad():
        for layer, sign in ((model.posterior_rule.network.linear, -1), (model.likelihood.network.linear, 1)):
            layer.weight.copy_(torch.eye(2))
            layer.bias.fill_(sign * shift)
    return model


def test_draws_are_dead_where_no_code_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 2)
    near = asked(DeadAreas(), identity_autoencoder(0.0), x)
    assert near["dead_share"] < 0.05, "the codes are draws from N(0, I) themselves: one in a hundred is called dead"
    far = asked(DeadAreas(), identity_autoencoder(50.0), x)
    assert far["dead_share"] == 1
    assert far["dead_of_fitted_gaussian_share"] < 0.05, "a Gaussian fitted to Gaussian codes finds them"
    ring = asked(DeadAreas(), identity_autoencoder(0.0), 5 * x / x.norm(dim=1, keepdim=True))
    assert ring["dead_of_fitted_gaussian_share"] > 0.5, "no Gaussian finds a ring"
    assert far["train_squared_error"] == pytest.approx(0, abs=1e-6)  # float32 around 50
    assert far["posterior_scale"] == 0


def test_the_error_of_a_reconstruction_is_summed_over_dimensions() -> None:
    model = identity_autoencoder(0.0)
    nn.init.constant_(model.likelihood.network.linear.bias, 2.0)
    assert asked(DeadAreas(), model, torch.randn(100, 2))["test_squared_error"] == pytest.approx(8)  # 2 dimensions, 2 off


def test_the_scale_of_the_noise_is_set_beside_the_residuals() -> None:
    model = linear_vae(orthogonal=True)
    with torch.no_grad():  # the second dimension of z tells nothing
        model.posterior_rule.network.linear.weight[1].zero_()
        model.posterior_rule.network.linear.bias[1].zero_()
        model.posterior_rule.log_scale[1].zero_()
    numbers = asked(NoiseScale(), model, draws_of(model, 200).float())
    assert numbers["mean_scale"] == pytest.approx(SCALE, rel=1e-6)
    assert numbers["active_dimensions"] == 1


@pytest.mark.parametrize("standardize", [False, True])
def test_a_density_changes_with_the_unit(standardize: bool) -> None:
    x = torch.randint(0, 17, (60, 5))
    prepare = Preparation(levels=17, dequantize=True, standardize=standardize)
    data = InMemory(x, prepare=prepare)
    numbers = asked(DecoderUnits(), linear_vae(), x, prepare=prepare)
    scale = data.prepare.steps[-1].scale if standardize else torch.ones(5)
    expected = 5 * math.log(17) + scale.log().sum().item()
    assert numbers["log_density"] - numbers["log_density_in_original_unit"] == pytest.approx(expected, rel=1e-6)


def test_a_probability_has_no_unit() -> None:
    model = LatentVariableModel(linear_vae().float().prior, Bernoulli(partial(Linear, inputs=2), 2, 5), linear_vae().float().posterior_rule)
    x = torch.randint(0, 17, (60, 5))
    numbers = asked(DecoderUnits(), model, x, prepare=Preparation(levels=17, binarize="threshold"))
    assert set(numbers) == {"log_probability"}
    assert numbers["log_probability"] < 0
    assert set(asked(DecoderUnits(), model, x, prepare=Preparation(levels=17))) == {"negative_cross_entropy"}


@pytest.mark.parametrize(
    ("study", "model", "words"),
    [
        (BruteForce(), lowerbound.autoencoder(4, 2, sizes=[3]), "model=vae"),
        (BruteForce(), lowerbound.vae(4, 3, sizes=[3]), "latent_dim=3 must be at most 2"),
        (AmortizationGap(), lowerbound.vae(4, 3, sizes=[3]), "latent_dim=3"),
        (GradientVariance(), lowerbound.autoencoder(4, 2, sizes=[3]), "model=vae"),
        (DeadAreas(), lowerbound.vae(4, 1, sizes=[3]), "latent_dim=1"),
        (NoiseScale(), lowerbound.vae(4, 2, "bernoulli", [3]), "likelihood=gaussian"),
        (DecoderUnits(), lowerbound.autoencoder(4, 2, sizes=[3]), "model=vae"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(study: Study, model: LatentVariableModel, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study.check(model)


@pytest.mark.parametrize("options", [{"points": [5, 3]}, {"points": [5]}])
def test_grids_must_become_finer(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must increase"):
        BruteForce(**options)


def test_numbers_are_written_with_what_they_say() -> None:
    assert [written(value).strip() for value in (0.0, 1.23456, 65.0, 0.001234, 3.2e14)] == ["0.0000", "1.2346", "65", "0.00123", "3.2e+14"]
    assert unit("study/elbo_of_best_q") == unit("study/amortization_gap_se") == unit("test/kl") == " nats"
    assert unit("test/bits_per_dim") == unit("study/dead_share") == unit("study/needed_points") == ""


# Each idea as one command, small.

SMALL = ("trainer.max_epochs=2", "network.encoder.sizes=[8]", "~callbacks.pictures")
SINGLE = {
    "amortization": (
        "amortization",
        ("callbacks.study.num_data=3", "callbacks.study.points=33", "callbacks.study.steps=3", "callbacks.study.training_steps=4"),
    ),
    "brute_force": ("brute_force", ("callbacks.study.points=[5,9,17]", "callbacks.study.num_data=3")),
    "reparameterization": ("gradient_variance", ("callbacks.study.repeats=3",)),
}
SWEEPS = {
    "bernoulli_or_gaussian": ("likelihood=bernoulli,gaussian", "decoder_units"),
    "dead_areas": ("model=autoencoder,vae", "dead_areas"),
    "gaussian_noise": ("noise=shared,network", "noise_scale"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_idea_is_one_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture, options = SINGLE[name]
    assert commands.train(tmp_path, monkeypatch, f"experiment={name}", *options, *SMALL) == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    results = json.loads((folder / "results.json").read_text())
    numbers = {key: value for key, value in results.items() if key.startswith("study/")}
    assert numbers
    assert all(math.isfinite(value) for value in numbers.values())
    assert "test/elbo" in results
    printed = capsys.readouterr().out
    assert all(key in printed for key in numbers)
    assert Image.open(folder / "figures" / f"{picture}.png").size[0] > 500


@pytest.mark.parametrize("name", SWEEPS)
def test_an_idea_that_compares_is_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept, picture = SWEEPS[name]
    assert commands.train(tmp_path, monkeypatch, f"experiment={name}", swept, *SMALL) == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    runs = [path for path in folder.iterdir() if path.is_dir()]
    assert len(runs) == 2
    assert all((run / "figures" / f"{picture}.png").is_file() for run in runs)
    assert Image.open(folder / f"{name}.png").size[0] > 500
    printed = capsys.readouterr().out
    assert printed.count("\n  " + swept.partition("=")[0] + "=") == 2, "the lines of the table"
    assert "failed" not in printed


def test_a_study_changes_neither_the_fit_nor_the_generators(tmp_path: Path) -> None:
    class Fake(SimpleNamespace):
        is_global_zero, default_root_dir, loggers, global_step = True, str(tmp_path), (), 1

    model = lowerbound.vae(6, 2, sizes=[4])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    study: Any = GradientVariance(repeats=3)
    study.start = model
    fit: Any = SimpleNamespace(evaluation_model=model, device=torch.device("cpu"))
    trainer: Any = Fake(datamodule=InMemory(torch.rand(40, 6)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (study.conclude(trainer, fit) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_study_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        commands.train(tmp_path, monkeypatch, "experiment=brute_force", "latent_dim=3", *SMALL)
    assert end.value.code == 2
    assert "latent_dim=3 must be at most 2" in capsys.readouterr().err
