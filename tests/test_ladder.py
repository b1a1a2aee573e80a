"""The ladder: its numbers against SciPy and scikit-learn, what it does to a rung that misses, and what it refuses."""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image
from scipy import stats
from sklearn.decomposition import PCA
from torch import Tensor

import zoo
from lowerbound import cli, ladder, ladder_linear_vae, ladder_plots
from lowerbound.answers import truth_of, truth_of_bits
from lowerbound.instantiate import instantiate
from lowerbound.ladder_checks import Check
from lowerbound.ladder_linear_vae import thresholds
from lowerbound.ladder_rows import Row, ranked, small, table
from lowerbound.linear_gaussian import ExactGaussian, LinearGaussian
from lowerbound.rungs import Prepared, Rung, Sizes, densities

D, L = 5, 2
SMALL = (f"data.dim={D}", f"latent_dim={L}", "num_components=2", "num_samples=8", "steps=400", "data.batch_size=64")
INTEGERS = ("data=table", "data.path=rows.npy", "data.prepare.levels=16", *SMALL)


def integers(count: int = 300) -> np.ndarray:
    """Rows of a linear Gaussian model of two factors, rounded to 0..15."""
    rng = np.random.default_rng(0)
    x = 7.5 + rng.normal(size=(count, 2)) @ np.array([[2.5, 2.0, 1.5, 0.5, 0.0], [0.0, -0.5, 1.0, 1.5, 1.5]])
    return np.clip(np.round(x + rng.normal(size=(count, D))), 0, 15).astype(np.uint8)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(zoo.CONF), version_base="1.3"):
        return compose("ladder", list(overrides))


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path


def command(place: Path, *arguments: str) -> Answer:
    """`lowerbound-ladder` in this process and that folder."""
    handlers, out, err = list(logging.root.handlers), StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(place)
        patch.setattr(sys, "argv", ["lowerbound-ladder", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            code = cli.ladder()
        except SystemExit as end:
            code = int(end.code or 0)
    logging.root.handlers = handlers
    GlobalHydra.instance().clear()
    return Answer(code, out.getvalue(), err.getvalue(), next(iter(place.glob("outputs/ladder/*")), place))


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """A whole ladder of integers: densities and probabilities."""
    place = tmp_path_factory.mktemp("ladder")
    np.save(place / "rows.npy", integers())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_linear_vae, "STEPS", 100)  # enough for two dimensions
        return command(place, *INTEGERS)


@pytest.fixture(scope="module")
def found(climbed: Answer) -> dict[str, Any]:
    return json.loads((climbed.folder / "ladder.json").read_text())


@pytest.fixture(scope="module")
def parts(climbed: Answer) -> dict[str, np.ndarray]:
    """The rows that were learnt from and tested on, from the data module itself."""
    return rows_of(climbed.folder.parents[2], "data.prepare.dequantize=true")


def rows_of(place: Path, *overrides: str) -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        data = instantiate(composed(*INTEGERS, *overrides).data)
        return {name: data.part(name).x.double().numpy() for name in ("train", "val", "test")}


def row(found: dict[str, Any], rung: str, way: str, quantity: str = "exact") -> dict[str, Any]:
    rows = [*found["densities"], *found["probabilities"]]
    (one,) = (one for one in rows if (one["rung"], one["way"], one["quantity"]) == (rung, way, quantity))
    return one


def test_it_ends_well_and_leaves_tables_and_a_figure(climbed: Answer, found: dict[str, Any]) -> None:
    assert climbed.err == ""
    assert climbed.code == 0
    assert {path.name for path in climbed.folder.iterdir()} >= {"config.yaml", "ladder.json", "ladder.csv", "ladder.md", "ladder.png"}
    assert (climbed.folder / "ladder.md").read_text().strip() in climbed.out
    with (climbed.folder / "ladder.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["rung"] for line in lines] == [one["rung"] for one in found["densities"] + found["probabilities"]]
    assert {line["table"] for line in lines} == {"densities", "probabilities"}
    assert min(Image.open(climbed.folder / "ladder.png").size) > 500


def test_every_rung_stands_in_its_own_table(found: dict[str, Any]) -> None:
    names = {table: [(one["rung"], one["way"]) for one in found[table]] for table in ("densities", "probabilities")}
    both = ("EM", "gradient")
    assert list(dict.fromkeys(names["densities"])) == [
        ("Gaussian", "closed form"),
        ("PCA", "closed form"),
        ("linear autoencoder", "gradient"),
        ("PPCA", "closed form"),
        *(("PPCA", way) for way in both),
        ("factor analysis", "EM"),
        ("2 Gaussians", "EM"),
        ("2 PPCAs", "EM"),
        ("linear VAE", "gradient"),
        ("VAE, shared noise", "gradient"),
        ("VAE, noise per dimension", "gradient"),
    ]
    assert list(dict.fromkeys(names["probabilities"])) == [("Bernoulli", "closed form"), ("2 Bernoullis", "EM"), ("VAE", "gradient")]
    assert [one["quantity"] for one in found["densities"] if one["rung"] == "linear VAE"] == ["exact", "IWAE-8", "ELBO"]
    assert [one["quantity"] for one in found["probabilities"] if one["rung"] == "VAE"] == ["IWAE-8", "ELBO"]


def test_exact_rungs_equal_dense_gaussians_of_the_same_rows(found: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    mean, covariance = parts["train"].mean(0), np.cov(parts["train"].T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    noise = values[: D - L].mean()
    low_rank = (vectors[:, D - L :] * (values[D - L :] - noise)) @ vectors[:, D - L :].T + noise * np.eye(D)
    for rung, dense in (("Gaussian", covariance), ("PPCA", low_rank)):
        one = row(found, rung, "closed form")
        for part in ("train", "test"):
            assert one[part] == pytest.approx(stats.multivariate_normal(mean, dense).logpdf(parts[part]).mean(), abs=1e-8)
    assert row(found, "PPCA", "EM")["test"] == pytest.approx(row(found, "PPCA", "closed form")["test"], abs=1e-4)


def test_squared_errors_and_angles_are_those_of_scikit_learn(found: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    peer = PCA(L).fit(parts["train"])
    error = np.square(parts["test"] - peer.inverse_transform(peer.transform(parts["test"]))).sum(1).mean()
    one, other = row(found, "PCA", "closed form", "squared error"), row(found, "linear autoencoder", "gradient", "squared error")
    assert one["squared_error"] == pytest.approx(error, rel=1e-8)
    assert one["angle_degrees"] < 1e-5
    assert other["squared_error"] == pytest.approx(error, rel=0.05), "of test data, where the plane of PCA is not the best"
    assert 0 < other["gap"] < 0.1
    assert 0 < other["angle_degrees"] < 1
    assert row(found, "Gaussian", "closed form")["angle_degrees"] is None


def test_probabilities_are_those_of_the_bits(found: dict[str, Any], climbed: Answer) -> None:
    bits = rows_of(climbed.folder.parents[2], "data.prepare.binarize=threshold")
    mu = (bits["train"].sum(0) + 0.5) / (len(bits["train"]) + 1)
    expected = stats.bernoulli(mu).logpmf(bits["test"]).sum(1).mean()
    assert row(found, "Bernoulli", "closed form")["test"] == pytest.approx(expected, abs=1e-10)
    assert all(one["test"] < 0 for one in found["probabilities"])


def test_bounds_stand_below_what_is_tighter(found: dict[str, Any]) -> None:
    for rung in ("VAE, shared noise", "VAE, noise per dimension", "VAE"):
        assert row(found, rung, "gradient", "ELBO")["test"] < row(found, rung, "gradient", "IWAE-8")["test"]
    exact, bound = (row(found, "linear VAE", "gradient", name) for name in ("exact", "ELBO"))
    assert bound["test"] < exact["test"]
    assert 0 < exact["gap"] < bound["gap"], "in training data, PPCA is the maximum"
    assert (exact["tolerance"], bound["tolerance"]) == (0.05, 0.1)


def test_each_table_ranks_its_densities_by_test_data(found: dict[str, Any]) -> None:
    for name in ("densities", "probabilities"):
        fits: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in found[name]:
            fits.setdefault((one["rung"], one["way"]), []).append(one)
        first = [own[0] for own in fits.values() if own[0]["test"] is not None]
        best = max(one["test"] for one in first)
        assert [one["rank"] for one in first if one["test"] == best] == [1]
        in_order = sorted(first, key=lambda one: -one["test"])
        assert [one["rank"] for one in in_order] == sorted(one["rank"] for one in first)
        others = [one for own in fits.values() for one in own[1:]] + [own[0] for own in fits.values() if own[0]["test"] is None]
        assert all(one["rank"] is None for one in others), "neither a looser bound nor a squared error"


def test_the_identity_is_told_from_the_first_step_to_the_last(found: dict[str, Any]) -> None:
    steps = [one["step"] for one in found["identity"]]
    assert steps[0] == 0
    assert steps[-1] == 400
    assert steps == sorted(set(steps))
    for one in found["identity"]:
        assert one["evidence"] - one["elbo"] == pytest.approx(one["kl"], abs=1e-9)
        assert one["kl"] > 0
    last, exact = found["identity"][-1], row(found, "linear VAE", "gradient")
    assert last["evidence"] == pytest.approx(exact["train"], abs=1e-9)
    assert found["identity"][0]["kl"] > 10 * last["kl"]


def test_dimensions_collapse_where_the_eigenvalues_say(found: dict[str, Any], parts: dict[str, np.ndarray]) -> None:
    values = np.linalg.eigvalsh(np.cov(parts["train"].T, bias=True))[::-1]
    assert len(found["collapse"]) == L
    for one in found["collapse"]:
        assert sum(kl > 0.01 for kl in one["kl"]) == (values[:L] > one["threshold"]).sum()
    assert {one["beta"] for one in found["collapse"]} == {1.0, 4.0}


# A rung that misses


def course(*overrides: str, table: np.ndarray | None = None) -> ladder.Course:
    config = composed("data=linear_gaussian", "data.latent_dim=2", *SMALL, *overrides)
    real, _ = ladder.courses(config)
    if table is None:
        return real
    parts = {name: torch.from_numpy(table) for name in ("train", "val", "test")}
    return replace(real, data=Prepared(parts=parts, dim=table.shape[1]), truth=truth_of(parts["train"], L))


def rung(name: str, way: str) -> Rung:
    (one,) = (one for one in densities(D, Sizes(L, 2, 8)) if (one.name, one.way) == (name, way))
    return one


def missed(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not check.holds]


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def spoiled(self: LinearGaussian, *arguments: Any) -> None:
        function(self, *arguments)
        with torch.no_grad():
            self.weight.mul_(factor)

    return spoiled


def turned(function: Callable[..., Any], angle: float) -> Callable[..., Any]:
    def spoiled(self: LinearGaussian, *arguments: Any) -> None:
        function(self, *arguments)
        with torch.no_grad():
            self.weight.add_(angle * torch.linalg.qr(self.weight, mode="complete").Q[:, L:].sum(1, keepdim=True))

    return spoiled


def shifted(function: Callable[..., Tensor], nats: float) -> Callable[..., Tensor]:
    return lambda *arguments: function(*arguments) + nats


SOLVE, EXPECTED, EVIDENCE = LinearGaussian.solve, LinearGaussian.expected_log_prob, ExactGaussian.log_evidence
SPOILED = {
    "scaled_axes": (LinearGaussian, "solve", scaled(SOLVE, 1.01), ("PPCA", "closed form"), "PPCA, closed form: exact, from its exact"),
    "turned_plane": (
        LinearGaussian,
        "solve",
        turned(SOLVE, 1e-5),
        ("PCA", "closed form"),
        "PCA, closed form: largest angle to the plane of PCA",
    ),
    "worse_plane": (LinearGaussian, "solve", turned(SOLVE, 0.1), ("PCA", "closed form"), "PCA, closed form: squared error"),
    "another_density": (ExactGaussian, "log_evidence", shifted(EVIDENCE, 1e-7), ("PPCA", "EM"), "PPCA, EM: log p(x) from that of a dense"),
    "too_high_a_bound": (
        LinearGaussian,
        "expected_log_prob",
        shifted(EXPECTED, 5.0),
        ("linear VAE", "gradient"),
        "linear VAE, gradient: ELBO above log p(x), any datum",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_rung_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, spoiled, fit, expected = SPOILED[name]
    short = course("data.num_data=300", "steps=20")

    def is_found_out() -> bool:
        return any(what.startswith(expected) for what in missed(ladder.climbed([rung(*fit)], short)[1]))

    assert not is_found_out()
    monkeypatch.setattr(owner, method, spoiled)
    assert is_found_out()


def test_a_rung_that_was_not_learnt_misses_its_tolerance() -> None:
    rungs = [rung("linear VAE", "gradient"), rung("PPCA", "gradient"), rung("linear autoencoder", "gradient")]
    found = missed(ladder.climbed(rungs, course("steps=5"))[1])
    assert {f"linear VAE, gradient: {name}, from its exact answer" for name in ("exact", "ELBO")} <= set(found)
    assert "PPCA, gradient: exact, from its exact answer" in found
    assert "linear autoencoder, gradient: squared error, from its exact answer" in found


def test_a_number_that_is_not_finite_does_not_hold() -> None:
    assert Check("", 0.05, 0.05).holds
    assert not any(Check("", value, 0.05).holds for value in (0.051, -0.051, math.nan, math.inf))


def test_a_miss_is_told_and_ends_with_exit_code_one(climbed: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", integers())
    checks = [Check("a rung: far off", 0.25, 0.05), Check("another: near", 0.01, 0.05)]
    nothing = ladder.Ladder([], [], checks, [], [], [])
    monkeypatch.setattr(ladder, "climb_all", lambda config: nothing)
    monkeypatch.setattr(ladder_plots, "ladder", lambda found: ladder_plots.Figure())
    answer = command(tmp_path, *INTEGERS)
    assert answer.code == 1
    assert answer.err == "missed: a rung: far off: 0.2500 nats, allowed 0.05\n"
    assert [line.split("|")[-2].strip() for line in answer.out.splitlines() if line.startswith(("| a rung", "| another"))] == ["missed", ""]
    written = json.loads((answer.folder / "ladder.json").read_text())
    assert [check["holds"] for check in written["checks"]] == [False, True]


def test_a_fit_at_its_variance_floor_is_neither_ranked_nor_compared() -> None:
    flat = np.random.default_rng(0).normal(size=(200, D))
    flat[:, 1] = 0.0  # its density is what the floor allows
    rows, checks = ladder.climbed([rung("Gaussian", "closed form"), rung("PPCA", "closed form")], course(table=flat))
    first, second = ranked(rows)
    assert first.floored is not None
    assert "floor" in first.floored
    assert first.test is not None
    assert second.test is not None
    assert first.test > second.test, "it would have been the first"
    assert (first.rank, first.gap, first.tolerance) == (None, None, None)
    assert (second.rank, second.floored) == (1, None)
    assert not any(check.what.startswith("Gaussian") for check in checks)
    assert "at its variance floor" in table([first, second])[2]
    assert "at its variance floor" not in table([first, second])[3]


def test_an_angle_to_a_plane_that_the_data_do_not_determine_is_not_compared() -> None:
    round_data = np.concatenate([np.eye(D), -np.eye(D)] * 20) * np.array([3.0, 1.0, 1.0, 0.9, 0.8])
    assert not truth_of(torch.from_numpy(round_data), L).has_plane(L)
    _, checks = ladder.climbed([rung("PCA", "closed form")], course(table=round_data))
    assert [check.what for check in checks] == ["PCA, closed form: squared error, from its exact answer"]


# What it stands on


def test_every_rung_sees_the_same_rows(climbed: Answer, parts: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(climbed.folder.parents[2])
    real, bits = ladder.courses(composed(*INTEGERS))
    assert bits is not None
    mean = parts["train"].mean(0)
    for name, x in parts.items():
        np.testing.assert_allclose(real.data.parts[name].numpy(), x - mean, rtol=0, atol=1e-12)
    handed = torch.cat([rows for block in real.data.train_dataloader() for rows in block])
    assert sorted(map(tuple, handed.tolist())) == sorted(map(tuple, real.data.parts["train"].float().tolist()))
    assert torch.equal(torch.cat(list(real.data.test_dataloader())).double(), real.data.parts["test"].float().double())
    assert set(bits.data.parts["train"].unique().tolist()) == {0.0, 1.0}
    x = bits.data.parts["test"].numpy()
    assert ((parts["test"] > 0.5) == (x == 1)).mean() > 0.99, "the same rows in the same order; dequantized a few cross the middle"


def test_real_numbers_have_no_bits() -> None:
    assert ladder.prepared_bits(composed("data=linear_gaussian")) is None
    assert ladder.prepared_bits(composed("data=bernoulli_mixture")) is not None


def test_what_training_data_must_give() -> None:
    x = np.random.default_rng(1).normal(size=(300, D)) @ np.diag([3.0, 2.0, 1.0, 0.7, 0.5]) + 4
    truth = truth_of(torch.from_numpy(x), L)
    peer = PCA(L).fit(x)
    dense = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    assert truth.answers["gaussian"] == pytest.approx(dense.logpdf(x).mean(), abs=1e-10)
    assert truth.answers["pca"] == pytest.approx(np.square(x - peer.inverse_transform(peer.transform(x))).sum(1).mean(), rel=1e-10)
    covariance = peer.get_covariance() * 299 / 300  # scikit-learn divides by n - 1
    assert truth.answers["ppca"] == pytest.approx(stats.multivariate_normal(x.mean(0), covariance).logpdf(x).mean(), abs=1e-10)
    assert truth.has_plane(L)
    bits = (x > 4).astype(float)
    mu = (bits.sum(0) + 0.5) / 301
    expected = stats.bernoulli(mu).logpmf(bits).sum(1).mean()
    assert truth_of_bits(torch.from_numpy(bits)).answers["bernoulli"] == pytest.approx(expected, abs=1e-10)


def test_thresholds_lie_in_the_widest_gaps() -> None:
    values = np.array([8.0, 4.0, 3.9, 1.0, 0.98, 0.5])
    found = thresholds(values, 4, count=2)
    assert [int((values > one).sum()) for one in found] == [1, 3]
    assert thresholds(np.ones(6), 4, count=3) == [], "nothing to tell apart"
    assert len(thresholds(np.array([4.0, 2.0, 0.0, 0.0]), 2, count=3)) == 2


def made_row(rung: str, test: float | None, quantity: str = "exact", floored: str | None = None) -> Row:
    return Row(rung, "EM", quantity, test, test, None, None, 1.0, None, 0.1, floored)


def test_equal_fits_share_a_rank_and_bounds_are_ranked_by_the_tightest() -> None:
    rows = [
        made_row("a", 2.0),
        made_row("b", 2.001),
        made_row("c", 5.0, floored="at the floor"),
        made_row("d", 3.0, "IWAE-8"),
        made_row("d", 2.5, "ELBO"),
        made_row("e", 1.0),
        made_row("f", None, "squared error"),
    ]
    assert [row.rank for row in ranked(rows)] == [2, 2, None, 1, None, 4, None]


def test_the_table_says_what_is_a_bound() -> None:
    rows = [made_row("a", 2.0), made_row("d", 3.0, "IWAE-8"), made_row("d", 2.5, "ELBO"), made_row("f", None, "squared error")]
    lines = table(ranked(rows))
    assert [("≥ 3.00" in line, "≥ 2.50" in line, "no density" in line) for line in lines[2:]] == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert len({len(line) for line in lines}) == 1, "aligned"
    assert [small(value) for value in (0.0, 0.25, -3e-12)] == ["0", "0.2500", "-3e-12"]


def test_the_figure_names_its_axes_and_units(found: dict[str, Any]) -> None:
    collapses = [SimpleNamespace(**one | {"kl": torch.tensor(one["kl"])}) for one in found["collapse"]]
    told = {name: [Row(**one) for one in found[name]] for name in ("densities", "probabilities")}
    seen = [tuple(one.values()) for one in found["identity"]]
    both: Any = SimpleNamespace(**told, seen=seen, collapses=collapses, eigenvalues=[0.5, 0.2, 0.1])
    figure = ladder_plots.ladder(both)
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.get_axes()]
    assert len(labels) == 4
    assert sum("nats" in x + y for x, y in labels) == 3
    assert sum("variance" in y for _, y in labels) == 1
    both.probabilities = []
    assert len(ladder_plots.ladder(both).get_axes()) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("latent_dim=64",), "latent_dim=64 must be below data.dim=64"),
        (("precision=bf16-mixed",), "precision=bf16-mixed is none of 32-true, 64-true"),
        (("data.missing.fraction=0.1",), "the ladder takes complete data"),
        (("steps=0",), "steps=0"),
        (("accelerator=abacus",), "abacus"),
        (("latent_dm=3",), "Did you mean latent_dim?"),
        (("model=vae",), "model=vae: there is no model to choose."),
        (("data=digit",), "Did you mean data=digits?"),
        (("+lr=3",), "+lr=3: there is no key lr."),
    ],
)
def test_what_does_not_fit_is_answered_in_three_lines(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    answer = command(tmp_path, *arguments)
    assert answer.code == 2
    assert answer.err.startswith("lowerbound-ladder: ")
    assert words in answer.err
    assert len(answer.err.splitlines()) <= 3
