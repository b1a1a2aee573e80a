"""A run's page: everything the folder knows, in one file that needs no network."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import zoo
from lowerbound.circumstances import measure
from lowerbound.defaults import differences
from lowerbound.equations import equation, equations
from lowerbound.instantiate import instantiate
from lowerbound.report import facts, numbers, write_report

RESULTS: dict[str, Any] = {
    "name": "a <b>run</b>",
    "monitor": "val/elbo",
    "val/elbo": 1.5,
    "test/elbo": 1.25,
    "test/loss": -1.0,
    "study/knn_accuracy": 0.5,
    "optimizer_steps": 1200,
    "epochs": 3,
    "equations": ["z ~ N(0, I)"],
    "data": {"kind": "Digits", "train": 1000, "val": 2, "test": 3, "dim": 64, "preparation": ["Scale(17)"]},
    "seconds": 2.0,
    "images_per_second": 1500.0,
    "remarks": ["a learnt variance is at its floor"],
}
ESTIMATE = {"is_bound": True, "standard_error": 0.1, "bits_per_dimension": None, "num_data": 3, "effective": 2.0, "seconds": 0.1}
EVALUATION = {
    "evidence": [{"quantity": "IWAE-10", "mean": 1.2345} | ESTIMATE],
    "baselines": [{"quantity": "independent Gaussians", "mean": -7.0} | ESTIMATE],
    "verdict": "it lies above",
    "warnings": ["few samples count"],
    "sentences": ["Rate 1 + distortion 2"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    for name, size in (("samples", (20, 20)), ("a_picture_of_my_own", (90, 20))):
        Image.fromarray(np.full((size[1], size[0], 3), 7, np.uint8)).save(tmp_path / "figures" / f"{name}.png")
    return tmp_path


def page(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_all_numbers_are_there_with_their_units(folder: Path) -> None:
    text = page(folder)
    for expected in (
        "1.2500",
        "1.5000",
        "z ~ N(0, I)",
        "1,200 optimizer steps",
        "1,500 data per second",
        "Digits: 1,000 training",
        "at its floor",
    ):
        assert expected in text
    lines = {line["name"]: line for line in numbers(RESULTS)}
    assert list(lines) == ["ELBO", "loss", "knn accuracy"]
    assert (lines["ELBO"]["unit"], lines["knn accuracy"]["unit"]) == ("nats", "")
    assert (lines["ELBO"]["val"], lines["loss"]["val"], lines["knn accuracy"]["test"]) == ("1.5000", "", "0.5000")


def test_nothing_is_fetched_and_every_picture_is_inside(folder: Path) -> None:
    text = page(folder)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "http" not in text
    pictures = re.findall(r'<figure class="(\w+)">.*?src="data:image/png;base64,([^"]+)"', text)
    assert [kind for kind, _ in pictures] == ["usual", "broad"], "those that are known come first, a wide one has the page's width"
    assert [Image.open(BytesIO(b64decode(data))).size for _, data in pictures] == [(20, 20), (90, 20)]


def test_a_study_has_numbers_of_its_own(folder: Path) -> None:
    """Also where it calls them as the test does."""
    lines = {(line["name"], line["test"]) for line in numbers(RESULTS | {"study/elbo": 99.0})}
    assert {("ELBO", "1.2500"), ("ELBO", "99")} <= lines


def test_numbers_that_are_not_finite_are_told(folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(RESULTS | {"test/elbo": float("nan"), "test/loss": float("inf")}))
    text = page(folder)
    assert "nan" in text
    assert "inf" in text


def test_an_evaluation_of_an_older_version_is_shown(folder: Path) -> None:
    (folder / "evaluation.json").write_text(json.dumps({"evidence": EVALUATION["evidence"]}))
    assert "≥ 1.234" in page(folder)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "densities of real data"),
        (("likelihood=bernoulli", "data.prepare.dequantize=false", "data.prepare.binarize=threshold"), "probabilities of discrete data"),
        (("likelihood=bernoulli",), "no log p(x) of these data (the data"),
        (("data.prepare.dequantize=false", "data.prepare.binarize=threshold"), "no log p(x) of these data (the data"),
        (("model=autoencoder",), "squared errors and cross-entropies, no log p(x)"),
    ],
)
def test_a_density_is_one_of_real_data_and_a_probability_one_of_bits(overrides: tuple[str, ...], words: str) -> None:
    config = zoo.composed(*overrides, "network.encoder.sizes=[4]")
    data = instantiate(config.data)
    data.setup()
    assert str(measure(instantiate(config.model), data)).startswith(words)


def test_what_comes_from_outside_is_text_and_no_markup(folder: Path) -> None:
    text = page(folder)
    assert "<b>run</b>" not in text
    assert "a <b>run</b>" in unescape(text)


def test_an_evaluation_is_shown_or_how_to_get_one(folder: Path) -> None:
    assert "lowerbound-evaluate" in page(folder)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = page(folder)
    for expected in ("≥ 1.234", "independent Gaussians", "it lies above", "few samples count", "Rate 1 + distortion 2"):
        assert expected in text
    assert text.count('class="aside"') == 1, "simple models are set apart"


def test_a_run_without_results_has_no_page(tmp_path: Path) -> None:
    assert write_report(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_results_of_an_older_version_have_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"test/elbo": 3.25}))
    assert "3.2500" in page(tmp_path)
    assert facts({"test/elbo": 3.25}) == {}


def test_the_command_is_that_of_the_run(folder: Path) -> None:
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(["latent_dim=3", "name=two words"]), folder / ".hydra" / "overrides.yaml")
    assert "lowerbound-train latent_dim=3 'name=two words'" in unescape(page(folder))


def test_differences_are_those_that_were_made() -> None:
    def found(*overrides: str) -> dict[str, tuple[str | None, str]]:
        config = zoo.composed(*overrides, "name=n", "sweep=s")
        return {one.key: (one.default, one.here) for one in differences(config)}

    assert found() == {}
    assert found("latent_dim=3", "network.encoder.sizes=[5,6]") == {"latent_dim": ("8", "3"), "network.encoder.sizes": ("[512]", "[5,6]")}
    other = found("fit.clip=1.5", "likelihood=bernoulli", "data.prepare.dequantize=false", "data.prepare.binarize=threshold")
    assert other["fit.clip"] == ("null", "1.5")
    assert other["likelihood._target_"] == ("lowerbound.likelihoods.Gaussian", "lowerbound.likelihoods.Bernoulli")
    assert other["data.prepare.dequantize"] == ("true", "false")
    glued = differences(zoo.composed("network.decoder.sizes=[5]", "name=n", "sweep=s"), ["network.decoder.sizes"])
    assert [tuple(one) for one in glued] == [("network.decoder.sizes", "[512]", "[5]")]


@pytest.mark.parametrize("name", zoo.choices("model"))
def test_every_model_has_equations(name: str) -> None:
    """None of our own parts is called by the name of its class."""
    model = instantiate(zoo.composed(f"model={name}").model)
    lines = equations(model)
    assert len(lines) == 3
    parts = (model.prior, model.likelihood, model.posterior_rule)
    assert not [line for line, part in zip(lines, parts, strict=True) if type(part).__name__ in line]


CHOICES = [
    *(("prior", f"prior={name}") for name in ("standard_normal", "flat", "mixture_of_gaussians")),
    ("prior", "model=mixture"),
    *(("likelihood", f"noise={name}") for name in ("fixed", "shared", "per_dimension", "network")),
    *(("likelihood", f"model=mixture covariance={name}") for name in ("full", "tied", "diagonal", "spherical", "low_rank")),
    ("likelihood", "likelihood=bernoulli"),
    ("likelihood", "model=mixture likelihood=bernoulli_components"),
    ("likelihood", "model=ppca"),
    ("likelihood", "model=factor_analysis"),
    *(("posterior", f"posterior={name}") for name in ("diagonal_gaussian", "full_gaussian", "delta", "projection", "tied", "exact")),
    ("posterior", "model=linear_vae"),
]


def test_different_parts_have_different_equations() -> None:
    written = [(group, equation(instantiate(zoo.composed(*words.split())[group]))) for group, words in CHOICES]
    assert len(set(written)) == len(CHOICES), written


def test_a_part_of_the_users_own_can_say_what_it_is() -> None:
    import torch

    class Mine(torch.nn.Module):
        equation = "x | z ~ Laplace(f(z), s)"

    assert equation(Mine()) == "x | z ~ Laplace(f(z), s)"
    assert equation(torch.nn.Identity()) == "Identity"
