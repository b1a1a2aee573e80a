"""What the latent space holds, against dense sums over the same data, and told whatever the batches are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Independent, Normal

import lowerbound
from lowerbound import latent_space as spaces
from lowerbound.data import InMemory
from lowerbound.latent_space import labels_from_codes, parts_of_the_kl, rate_and_distortion, shared_scale, use_of_units
from lowerbound.metrics import LatentUnits, PerDatum, Units
from lowerbound.model import LatentVariableModel
from lowerbound.runs import beta_at_the_end

SIX = 6.0


def linear(active: tuple[float, ...], dim: int = 4) -> LatentVariableModel:
    """A linear VAE whose posterior means are x_j times the given numbers: known standard deviations for standard normal x."""
    torch.manual_seed(0)
    model = lowerbound.linear_vae(dim, len(active))
    with torch.no_grad():
        weight = next(p for p in model.posterior_rule.network.parameters() if p.ndim == 2)  # type: ignore[union-attr]
        weight.zero_()
        for j, scale in enumerate(active):
            weight[j, j] = scale
    return model


def test_a_unit_is_active_if_its_mean_varies() -> None:
    x = torch.randn(20_000, 4)
    units = spaces.units_of(linear((0.11, 0.09, 0.0)), x)  # standard deviations of the means: the threshold is 0.1 squared
    assert units.active.tolist() == [True, False, False]
    np.testing.assert_allclose(units.mean_variance.sqrt(), [0.11, 0.09, 0.0], atol=0.11 * SIX / (2 * 20_000) ** 0.5, rtol=0)


def test_units_are_those_of_all_data_at_once_whatever_the_batches() -> None:
    torch.manual_seed(1)
    loc, scale = torch.randn(101, 3).double(), torch.rand(101, 3).double() + 0.1
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    kl = (scale.square() + loc.square() - 1) / 2 - scale.log()  # KL(N(m, s^2), N(0, 1))
    for size in (101, 7, 1):
        metric = LatentUnits(3)
        for m, s in zip(loc.split(size), scale.split(size), strict=True):
            metric.update(Independent(Normal(m, s), 1), prior)
        found = metric.compute()
        for value, expected in zip(found, (kl.mean(0), loc.var(0), scale.square().mean(0)), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-12, rtol=0)


def test_numbers_of_each_datum_are_put_together_in_any_order() -> None:
    values = torch.randn(2, 10)
    metric = PerDatum(2, 10)
    for start in (6, 0, 3):
        metric.update(start, values[:, start : start + (4 if start == 6 else 3)])
    assert torch.equal(metric.compute(), values.double())


def test_rate_and_distortion_are_the_terms_of_the_bound() -> None:
    """Of a linear model both have closed forms."""
    torch.manual_seed(0)
    model = linear((0.5, 0.3))
    x = torch.randn(300, 4)
    found = rate_and_distortion(model, x)
    q = model.posterior(x)
    with torch.no_grad():
        rate = torch.distributions.kl_divergence(q, model.prior()).double()
        expected = model.likelihood.expected_log_prob(x, q)
    assert expected is not None
    for name, exact in (("rate", rate), ("distortion", -expected.double())):
        noise = SIX * found[name]["standard_error"] / spaces.SAMPLES**0.5
        assert found[name]["mean"] == pytest.approx(exact.mean().item(), abs=noise)
        over_data = exact.std().item() / 300**0.5
        assert 0.8 * over_data < found[name]["standard_error"] < 2 * over_data, "that over data, and the noise of sampling z"
    assert found["elbo"]["mean"] == pytest.approx(-found["rate"]["mean"] - found["distortion"]["mean"], abs=1e-9)


def test_the_rate_is_mutual_information_and_the_distance_to_the_prior() -> None:
    found = parts_of_the_kl(linear((0.5, 0.3)), torch.randn(500, 4), 400)
    assert found["num_data"] == 400
    assert found["kl"] == pytest.approx(found["mutual_information"] + found["distance_to_prior"], abs=1e-9)
    assert found["distance_to_prior"] == pytest.approx(found["total_correlation"] + found["dimension_wise_kl"], abs=1e-9)


def data_of(x: Tensor, labels: Any = None) -> InMemory:
    data = InMemory(x.numpy(), labels=labels) if labels is not None else InMemory(x.numpy())
    data.setup()
    return data


def test_a_linear_decoder_would_keep_the_eigenvalues_above_beta_times_the_noise() -> None:
    torch.manual_seed(0)
    data = data_of(torch.randn(5000, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5]))  # eigenvalues 9, 4, 1, 1/4
    model = lowerbound.linear_vae(4, 3)
    with torch.no_grad():
        model.likelihood.noise.log_scale.fill_(float(np.log(1.5 - model.likelihood.noise.min_scale)))  # type: ignore[union-attr]
    assert shared_scale(model) == pytest.approx(1.5)
    units = Units(torch.tensor([1.0, 0.5, 0.001]), torch.tensor([1.0, 0.02, 0.0]), torch.ones(3))
    for beta, kept in ((0.1, 3), (1.0, 2), (3.0, 1)):  # of the three largest those above 0.225, 2.25, 6.75
        found = use_of_units(model, units, beta, data)
        assert (found["predicted_active"], found["active"], found["collapsed"]) == (kept, 2, 1)
        assert found["threshold"] == pytest.approx(2.25 * beta)


def test_nothing_is_predicted_where_the_noise_is_not_shared() -> None:
    units = Units(torch.ones(2), torch.ones(2), torch.ones(2))
    data = data_of(torch.randn(100, 4))
    for model in (lowerbound.vae(4, 2, likelihood="bernoulli"), lowerbound.factor_analysis(4, 2)):
        assert "predicted_active" not in use_of_units(model, units, 1.0, data)
    assert "predicted_active" not in use_of_units(lowerbound.vae(4, 2), units, None, data)


@pytest.mark.parametrize(
    ("objective", "beta"),
    [({"beta": 2.0}, 2.0), ({}, 1.0), ({"beta": {"_target_": "x", "start": 0.0, "end": 0.5}}, 0.5), ({"beta": {"_target_": "x"}}, None)],
)
def test_the_beta_is_the_one_that_training_ended_with(objective: dict[str, Any], beta: float | None) -> None:
    assert beta_at_the_end(objective) == beta


def test_codes_that_are_principal_components_find_as_many_labels_as_they() -> None:
    """A rotation of codes leaves neighbours as they are; the digits are far from chance."""
    images, labels = load_digits(return_X_y=True)
    data = InMemory(images / 16, labels=labels)
    data.setup()
    model = lowerbound.pca(64, 8)
    lowerbound.learn(model, lowerbound.ClosedFormFit, data, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    found = labels_from_codes(model, data, 2000)
    assert found["knn_accuracy"] == pytest.approx(found["pca_knn_accuracy"], abs=0.01)
    assert found["probe_accuracy"] == pytest.approx(found["pca_probe_accuracy"], abs=0.02)
    assert found["knn_accuracy"] > 0.9
    assert found["probe_accuracy"] > 0.8


def test_labels_are_learnt_from_training_rows_alone() -> None:
    """Labels without any relation to x: whoever had seen those of the test rows would know them."""
    rng = np.random.default_rng(0)
    data = InMemory(rng.normal(size=(600, 3)), labels=rng.integers(0, 2, 600))
    data.setup()
    found = labels_from_codes(lowerbound.vae(3, 2), data, 2000)
    chance = SIX * 0.5 / len(data.part("test").x) ** 0.5
    assert all(abs(value - 0.5) < chance for value in found.values())


def test_rows_of_the_parts_are_drawn_from_all() -> None:
    """Of rows that lie sorted the first ones would tell of one kind only: here they are far apart, and the others one point."""
    x = torch.cat([100 * torch.randn(50, 4), torch.zeros(450, 4)])
    found = parts_of_the_kl(linear((0.5, 0.3)), x, 50)
    assert found["mutual_information"] < 0.5 * np.log(50)


def test_without_labels_there_is_nothing_to_find() -> None:
    assert labels_from_codes(lowerbound.pca(4, 2), data_of(torch.randn(50, 4)), 100) == {}
