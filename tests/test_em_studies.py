"""Studies of maximum likelihood, of EM and of codes: what they claim against dense NumPy answers, and each as one command, small."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor
from torch.distributions import OneHotCategorical

import commands
import lowerbound
from lowerbound import em_plots
from lowerbound.codes import LabelledCodes, knn_accuracy
from lowerbound.data import InMemory
from lowerbound.em import EMFit
from lowerbound.expectation import CoordinateAscent, MonteCarloEM, bound, judged, shares
from lowerbound.fit import Fit
from lowerbound.gradient import GradientFit
from lowerbound.maximum_likelihood import MaximumLikelihood, StepwiseStudy, TwoWays, steps_to
from lowerbound.model import LatentVariableModel
from lowerbound.plots import pixels
from lowerbound.solve import ClosedFormFit
from lowerbound.starts import Start
from lowerbound.studies import Study
from lowerbound.study_plots import stacked
from lowerbound.wording import unit

SIX = 6  # standard errors
ALGEBRA = 1e-10  # nats, float64
OPTIMUM = 1e-6  # nats


def overlapping(count: int = 400) -> Tensor:
    """Rows ``[N, 2]`` of three Gaussians that overlap, and not so much that they could be told apart in several ways."""
    rng = np.random.default_rng(0)
    means = np.array([[0.0, 0.0], [3.5, 0.0], [0.0, 3.0]])[rng.integers(3, size=count)]
    return torch.from_numpy(means + rng.standard_normal((count, 2)) * [1.0, 0.7])


def mixture() -> LatentVariableModel:
    return lowerbound.gaussian_mixture(2, 3, pseudo_counts=0.0)


def learnt(
    study: Study, model: LatentVariableModel, fit: Callable[[LatentVariableModel], Fit], x: Tensor, steps: int = 40, **others: Any
) -> tuple[dict[str, float], Fit, InMemory]:
    """The study's numbers of a run of at most so many epochs."""
    torch.manual_seed(0)
    data, learner = InMemory(x, **others), fit(model)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["check_val_every_n_epoch"] = steps
    Trainer(max_epochs=steps, callbacks=[study], num_sanity_val_steps=0, accelerator="cpu", **quiet).fit(learner, datamodule=data)
    torch.manual_seed(1)
    return study.answer(learner, data).numbers, learner, data


exactly = partial(EMFit, tolerance=0.0)


def training_rows(data: InMemory) -> np.ndarray:
    return data.part("train").x.double().numpy()


def log_joint(model: LatentVariableModel, x: np.ndarray) -> np.ndarray:
    """log pi_k + log N(x; mu_k, Sigma_k) ``[N, K]``, by the dense density."""
    weights = torch.softmax(model.prior.logits, 0).detach().numpy()
    means, matrices = (value.detach().numpy() for value in (model.likelihood.mean, model.likelihood.covariance.matrices))
    return np.stack([np.log(w) + stats.multivariate_normal(m, s).logpdf(x) for w, m, s in zip(weights, means, matrices, strict=True)], 1)


def log_evidence(model: LatentVariableModel, x: np.ndarray) -> float:
    return float(logsumexp(log_joint(model, x), axis=1).mean())


def responsibilities(model: LatentVariableModel, x: np.ndarray) -> np.ndarray:
    joint = log_joint(model, x)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


# Maximum likelihood.


def gaussian_maximum(x: np.ndarray) -> float:
    return float(stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x).mean())


def bernoulli_maximum(x: np.ndarray) -> float:
    """With one pseudo-count, of which half is on; its log-density counts once for all data."""
    p = (x.sum(0) + 0.5) / (len(x) + 1)
    return float(np.log(np.where(x == 1, p, 1 - p)).sum(1).mean() + 0.5 * (np.log(p) + np.log(1 - p)).sum() / len(x))


def ppca_maximum(x: np.ndarray) -> float:
    """Tipping & Bishop 1999, eq. 7 and 8, for L = 1."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-1].mean()
    covariance = noise * np.eye(x.shape[1]) + (values[-1] - noise) * np.outer(vectors[:, -1], vectors[:, -1])
    return float(stats.multivariate_normal(x.mean(0), covariance).logpdf(x).mean())


def correlated() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((200, 3)) @ [[1.0, 0.5, 0.0], [0.0, 1.0, 0.8], [0.0, 0.0, 0.6]])


@pytest.mark.parametrize(
    ("model", "x", "maximum"),
    [
        (lowerbound.gaussian(3), correlated(), gaussian_maximum),
        (lowerbound.bernoulli(3), (correlated() > 1).double(), bernoulli_maximum),
        (lowerbound.ppca(3, 1), correlated(), ppca_maximum),
    ],
    ids=["gaussian", "bernoulli", "ppca"],
)
def test_gradient_ascent_arrives_at_the_closed_form(model: LatentVariableModel, x: Tensor, maximum: Callable[[np.ndarray], float]) -> None:
    numbers, _, data = learnt(MaximumLikelihood(steps=400), model, ClosedFormFit, x)
    assert numbers["closed_form"] == pytest.approx(maximum(training_rows(data)), abs=ALGEBRA)
    assert -ALGEBRA <= numbers["gap_at_end"] < OPTIMUM, "the closed form is the maximum"
    assert numbers["closed_form"] - numbers["gradient_ascent"] == pytest.approx(numbers["gap_at_end"], abs=1e-14)
    assert numbers["gap_at_start"] > 0.01, "there was a way to go"
    assert 0 < numbers["needed_steps"] < 400
    assert numbers["largest_difference"] < 1e-2, "of log p(x) of one datum: the root of a gap, times how far the datum is out"


def test_too_few_steps_do_not_arrive() -> None:
    numbers, *_ = learnt(MaximumLikelihood(steps=5), lowerbound.gaussian(3), ClosedFormFit, correlated())
    assert numbers["gap_at_end"] > 1e-3
    assert numbers["needed_steps"] == 6


def test_a_way_has_arrived_when_it_stays() -> None:
    assert steps_to(torch.tensor([3.0, 0.1, 2.0, 0.2, 0.0]), 1.0) == 3
    assert steps_to(torch.tensor([0.5, 0.1]), 1.0) == 0
    assert steps_to(torch.tensor([0.5, math.nan]), 1.0) == 2


# EM.


def test_em_and_gradient_ascent_reach_the_same_likelihood_and_em_only_ascends(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(em_plots, "two_ways", lambda *given: drawn.append(given))
    study = TwoWays(steps=400)
    numbers, fit, data = learnt(study, mixture(), exactly, overlapping(), steps=150)
    x = training_rows(data)
    values = [log_evidence(model, x) for model in study.models(fit)]
    assert numbers["at_start"] == pytest.approx(values[0], abs=ALGEBRA)
    assert numbers["em"] == pytest.approx(values[-1], abs=ALGEBRA)
    assert numbers["em"] - numbers["at_start"] > 0.01
    assert numbers["em_smallest_increase"] >= -ALGEBRA
    assert numbers["em_smallest_increase"] == pytest.approx(np.diff(values).min(), abs=ALGEBRA)
    assert abs(numbers["difference"]) < OPTIMUM
    assert numbers["em"] - numbers["gradient_ascent"] == pytest.approx(numbers["difference"], abs=1e-14)
    assert numbers["gradient_ascent_smallest_increase"] < 0, "nothing keeps Adam from going down"
    assert 0 < numbers["em_needed_steps"] < 150
    ((gaps, paths, _),) = drawn
    for both in (gaps, paths):
        torch.testing.assert_close(both["EM"][0], both["gradient ascent"][0], atol=ALGEBRA, rtol=0)


def test_mixtures_of_bits_and_rows_of_one_number_are_drawn_too() -> None:
    bits = (overlapping(100) > 1).double()
    for model, x in ((lowerbound.bernoulli_mixture(2, 2), bits), (lowerbound.gaussian_mixture(1, 2), overlapping(100)[:, :1])):
        numbers, *_ = learnt(TwoWays(steps=3), model, exactly, x, steps=4)
        assert numbers["em_smallest_increase"] >= -ALGEBRA, "with its prior, which is part of what ascends"


class Known(Start):
    """Component means that no other start would find."""

    means = torch.tensor([[-1.0, -1.0], [4.0, 1.0], [1.0, 4.0]], dtype=torch.float64)

    def __call__(self, model: LatentVariableModel, x: Tensor, num_data: int) -> None:
        model.initialize(x, num_data)
        with torch.no_grad():
            model.likelihood.mean.copy_(self.means)


def test_the_steps_begin_where_the_fit_began_and_end_where_it_ended() -> None:
    study = CoordinateAscent()
    _, fit, _ = learnt(study, mixture(), partial(exactly, start=Known()), overlapping(), steps=7)
    assert len(study.states) == 8
    assert torch.equal(study.states[0]["likelihood.mean"], Known.means)
    assert all(torch.equal(value, study.states[-1][name]) for name, value in fit.model.state_dict().items())
    assert len({tuple(state["likelihood.mean"].flatten().tolist()) for state in study.states}) == 8, "they are copies"
    learnt(study, mixture(), exactly, overlapping(), steps=2)
    assert len(study.states) == 3, "of the last fit"


def test_the_bound_is_the_evidence_less_the_divergence_from_the_posterior() -> None:
    torch.manual_seed(0)
    model = mixture()
    x = overlapping(20)
    q = np.random.default_rng(2).dirichlet(np.ones(3), size=20)
    exact = responsibilities(model, x.numpy())
    divergence = (q * (np.log(q) - np.log(exact))).sum(1).mean()
    found = bound(model, x, OneHotCategorical(probs=torch.from_numpy(q)))
    assert found == pytest.approx(log_evidence(model, x.numpy()) - divergence, abs=ALGEBRA)


def test_the_e_step_touches_and_both_halves_of_a_step_ascend() -> None:
    study = CoordinateAscent()
    numbers, fit, data = learnt(study, mixture(), exactly, overlapping(), steps=60)
    x = training_rows(data)
    assert numbers["em_steps"] == 60
    assert numbers["largest_gap_after_e_step"] < ALGEBRA
    assert numbers["smallest_gain_of_m_step"] >= -ALGEBRA
    assert numbers["smallest_gain_of_e_step"] >= -ALGEBRA
    posteriors = [responsibilities(model, x) for model in study.models(fit)]
    gains = [(old * (np.log(old) - np.log(new))).sum(1).mean() for old, new in pairwise(posteriors)]  # KL(old q, new posterior)
    assert numbers["raised_by_e_step"] == pytest.approx(sum(gains), abs=1e-8)  # sixty differences
    assert numbers["raised_by_e_step"] > 1e-3
    rise = numbers["log_evidence_at_end"] - numbers["log_evidence_at_start"]
    assert numbers["raised_by_m_step"] + numbers["raised_by_e_step"] == pytest.approx(rise, abs=ALGEBRA)
    assert rise == pytest.approx(log_evidence(fit.model, x) - log_evidence(next(study.models(fit)), x), abs=ALGEBRA)


def test_shares_are_those_of_a_multinomial() -> None:
    torch.manual_seed(0)
    probabilities, repeats, draws = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64), 20_000, 7
    found = shares(OneHotCategorical(probs=probabilities.expand(repeats, -1)), draws)
    torch.testing.assert_close(found * draws, (found * draws).round())
    torch.testing.assert_close(found.sum(1), torch.ones(repeats, dtype=torch.float64))
    variance = (probabilities.diag() - torch.outer(probabilities, probabilities)) / draws
    error = (variance.diag() / repeats).sqrt()
    assert ((found.mean(0) - probabilities).abs() <= SIX * error).all()
    # The standard error of a covariance is that of a mean of products, here at most 1/draws / sqrt(repeats).
    assert ((found.T.cov() - variance).abs() <= SIX / draws / repeats**0.5).all()


def test_more_samples_of_z_ascend_for_longer_and_come_nearer() -> None:
    """While exact EM still gains more than the noise of many samples takes: twenty steps; and long after, when the noise is all."""
    early, *_ = learnt(MonteCarloEM(num_samples=[1, 100_000]), mixture(), exactly, overlapping(), steps=20)
    assert early["em_steps"] == 20
    assert early["exact_smallest_increase"] > 0
    assert early["samples_1_descending_share"] > 0.15, "it descends"
    assert early["samples_100000_descending_share"] < early["samples_1_descending_share"] / 2
    assert early["samples_100000_ascending_steps"] > early["samples_1_ascending_steps"]
    late, *_ = learnt(MonteCarloEM(num_samples=[1, 1000]), mixture(), exactly, overlapping(), steps=60)
    assert late["exact_smallest_increase"] >= -ALGEBRA
    assert late["samples_1_descending_share"] > 0.2
    assert late["samples_1_gap_at_end"] > 30 * abs(late["samples_1000_gap_at_end"]), "of the order of a thousand times"


def test_a_step_descends_when_the_likelihood_falls() -> None:
    found = judged([0.0, 1.0, 1.0, 0.5, 2.0, 3.0, 3.0, 2.5, 3.5], best=4.0)
    assert (found.descending, found.ascending, found.left) == (2 / 8, 2, 1.0)  # the last two values lie 1.5 and 0.5 below
    assert judged([0.0, 1.0], best=1.0)[1:] == (0.0, 1, 0.0)


def test_steps_outlive_the_run_that_is_resumed(tmp_path: Path) -> None:
    def run(study: Study, epochs: int, model: LatentVariableModel, checkpoint: Path | None = None) -> Trainer:
        torch.manual_seed(0)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=epochs, callbacks=[study], num_sanity_val_steps=0, accelerator="cpu", **quiet)
        trainer.fit(exactly(model), datamodule=InMemory(overlapping()), ckpt_path=checkpoint, weights_only=True)
        return trainer

    whole, first, second = CoordinateAscent(), CoordinateAscent(), CoordinateAscent()
    run(whole, 6, mixture())
    run(first, 3, mixture()).save_checkpoint(tmp_path / "last.ckpt")
    run(second, 6, mixture(), tmp_path / "last.ckpt")
    assert len(second.states) == len(whole.states) == 7
    for one, other in zip(whole.states, second.states, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("study", "model", "words"),
    [
        (MaximumLikelihood(), lowerbound.vae(4, 2, sizes=[3]), "model=gaussian"),
        (MaximumLikelihood(), lowerbound.pca(4, 2), "model=gaussian"),
        (TwoWays(), lowerbound.ppca(4, 2), "model=mixture"),
        (CoordinateAscent(), lowerbound.vae(4, 2, sizes=[3]), "model=mixture"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(study: Study, model: LatentVariableModel, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study.check(model)


@pytest.mark.parametrize(
    ("study", "fit", "words"),
    [(MaximumLikelihood(), GradientFit, "fit=closed_form"), (MonteCarloEM(), GradientFit, "fit=em"), (TwoWays(), GradientFit, "fit=em")],
)
def test_another_way_of_learning_is_refused(study: StepwiseStudy, fit: Callable[..., Fit], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learnt(study, lowerbound.gaussian(2), fit, overlapping(50), steps=1)


def test_options_are_checked() -> None:
    for make in (lambda: CoordinateAscent([3, 3]), lambda: MonteCarloEM([0]), lambda: MaximumLikelihood(lr=0.0), lambda: TwoWays(steps=0)):
        with pytest.raises(ValueError, match="must be"):
            make()


# Codes.


@pytest.mark.parametrize("neighbors", [1, 3, 9])
def test_the_accuracy_is_that_of_a_vote_of_the_nearest(neighbors: int) -> None:
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(2, size=60), rng.integers(2, size=300)
    train, test = rng.standard_normal((60, 2)) + labels[:, None], rng.standard_normal((300, 2)) + truth[:, None]

    def right(among: int) -> float:
        votes = [labels[np.argsort(((train - row) ** 2).sum(1))[:among]].mean() > 0.5 for row in test]
        return float((np.array(votes) == truth).mean())

    assert len({right(among) for among in (1, 3, 5, 9)}) == 4, "their number matters here"
    assert knn_accuracy(*map(torch.from_numpy, (train, labels, test, truth)), neighbors=neighbors) == pytest.approx(right(neighbors))


def test_codes_that_keep_the_labels_are_told_from_codes_that_do_not() -> None:
    """Labels along the direction of largest variance, or along the smallest, which one component of PCA leaves out."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 3)) * [9.0, 3.0, 1.0])
    kept, *_ = learnt(LabelledCodes(), lowerbound.pca(3, 1), ClosedFormFit, x, labels=(x[:, 0] > 0).long())
    lost, _, data = learnt(LabelledCodes(), lowerbound.pca(3, 1), ClosedFormFit, x, labels=(x[:, 2] > 0).long())
    assert kept["knn_accuracy"] > 0.95
    assert lost["knn_accuracy"] < 0.7, "a coin gives a half"
    assert lost["data_accuracy"] > lost["knn_accuracy"]
    centred = data.part("test").x.double().numpy() - training_rows(data).mean(0)
    axes = np.linalg.eigh(np.cov(training_rows(data).T))[1]
    error = ((centred @ axes[:, :2]) ** 2).sum(1).mean()
    assert lost["squared_error"] == pytest.approx(error, rel=1e-8)


def test_data_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="data=digits"):
        learnt(LabelledCodes(), lowerbound.pca(2, 1), ClosedFormFit, overlapping(50))


def test_what_is_no_number_of_nats_is_not_called_so() -> None:
    assert {unit(f"study/{key}") for key in ("em_steps", "knn_accuracy", "samples_1_descending_share")} == {""}
    assert unit("study/em_smallest_increase") == unit("study/largest_gap_after_e_step") == " nats"


def test_pictures_stand_in_rows() -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    found = pixels(stacked({f"{i}": np.full((50, 80, 3), color, dtype=np.uint8) for i, color in enumerate(colors)}, across=2))
    assert found.shape[1] == 160
    strip = found.shape[0] // 2 - 50
    corners = ((strip + 5, 5), (strip + 5, 85), (2 * strip + 55, 5))
    assert [tuple(found[place]) for place in corners] == colors
    assert tuple(found[2 * strip + 55, 85]) == (255, 255, 255)


# Each idea as one command, small.

FEW = ("trainer.max_epochs=4", "data.num_data=200", "trainer.check_val_every_n_epoch=4")
SINGLE = {
    "em_and_gradient": ("two_ways", (*FEW, "callbacks.study.steps=5")),
    "coordinate_ascent": ("coordinate_ascent", FEW),
    "monte_carlo_em": ("monte_carlo_em", (*FEW, "callbacks.study.num_samples=[1,5]")),
}
SWEEPS = {
    "maximum_likelihood": ("model=gaussian,bernoulli", "maximum_likelihood", ("callbacks.study.steps=12",)),
    "labelled_codes": ("model=pca,vae", "labelled_codes", ("trainer.max_epochs=2",)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_idea_is_one_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture, options = SINGLE[name]
    assert commands.train(tmp_path, monkeypatch, f"experiment={name}", *options, "~callbacks.pictures") == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    numbers = {key: value for key, value in json.loads((folder / "results.json").read_text()).items() if key.startswith("study/")}
    assert numbers
    assert all(math.isfinite(value) for value in numbers.values())
    printed = capsys.readouterr().out
    assert all(key in printed for key in numbers)
    assert Image.open(folder / "figures" / f"{picture}.png").size[0] > 500


@pytest.mark.parametrize("name", SWEEPS)
def test_an_idea_that_compares_is_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept, picture, options = SWEEPS[name]
    assert commands.train(tmp_path, monkeypatch, f"experiment={name}", swept, *options, "~callbacks.pictures") == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    runs = [path for path in folder.iterdir() if path.is_dir()]
    assert len(runs) == 2
    assert all((run / "figures" / f"{picture}.png").is_file() for run in runs)
    assert Image.open(folder / f"{name}.png").size[0] > 500
    printed = capsys.readouterr().out
    assert printed.count("\n  " + swept.partition("=")[0] + "=") == 2, "the lines of the table"
    assert "failed" not in printed


def test_a_study_leaves_the_fit_as_it_was() -> None:
    study: Any = TwoWays(steps=3)
    _, fit, data = learnt(study, mixture(), exactly, overlapping(), steps=3)
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    steps = [{name: value.clone() for name, value in state.items()} for state in study.states]
    study.answer(fit, data)
    other: Any = MonteCarloEM(num_samples=[2])
    other.states = study.states
    other.answer(fit, data)
    assert all(torch.equal(value, before[name]) for name, value in fit.model.state_dict().items())
    assert all(torch.equal(value, step[name]) for state, step in zip(study.states, steps, strict=True) for name, value in state.items())
