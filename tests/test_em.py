"""Expectation maximization on real fits: where it ends, when it stops, what a step is, and what changes nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowerbound
from lowerbound.data import InMemory
from lowerbound.distributions import Delta
from lowerbound.em import EMFit
from lowerbound.fit import Fit
from lowerbound.likelihoods import FixedNoise
from lowerbound.linear_gaussian import LinearGaussian
from lowerbound.model import LatentVariableModel
from lowerbound.posteriors import Tied
from lowerbound.priors import Flat
from lowerbound.solve import ClosedFormFit
from lowerbound.statistics import Statistics

D, L = 6, 2
EXACT = partial(EMFit, tolerance=0.0)


def toy(count: int = 60, holes: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, D, generator=generator, dtype=torch.float64)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64) @ mixing
    x = x + 0.5 * torch.randn(count, D, generator=generator, dtype=torch.float64) + 2
    return x.masked_fill(torch.rand(count, D, generator=generator) < holes, torch.nan)


def model_of(kind: str = "ppca", seed: int = 0) -> LatentVariableModel:
    torch.manual_seed(seed)
    return getattr(lowerbound, kind)(D, L)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**({"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0} | quiet | options))


def fitted(fit: Fit, x: Tensor | None = None, seed: int = 7, batch_size: int = 8, **options: Any) -> tuple[Any, pl.Trainer]:
    runner = trainer(**options)
    torch.manual_seed(seed)
    runner.fit(fit, datamodule=InMemory(toy() if x is None else x, batch_size=batch_size))
    return fit, runner


def loader(x: Tensor, batch_size: int = 7) -> DataLoader:
    return DataLoader(TensorDataset(x), batch_size=batch_size)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def value(fit: Fit, x: Tensor) -> float:
    """The mean over rows of log p(x), or of minus half the squared error."""
    with torch.no_grad():
        if fit.model.is_exact:
            return fit.model.log_prob(x).mean().item()
        return -(fit.model.reconstruct(x) - x).square().nansum(1).mean().item() / 2


class Trace(pl.Callback):
    """The objective after every epoch, at the parameters it then has."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.values = x, []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Fit)
        self.values.append(value(pl_module, self.x))


# Where it ends


@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_em_ends_at_the_closed_form(kind: str) -> None:
    """To 1e-6 nats per datum in training, validation and test."""
    data = InMemory(toy())
    solved, runner = trainer(), trainer(max_epochs=6)
    one, other = ClosedFormFit(model_of(kind)), EXACT(model_of(kind))
    solved.fit(one, datamodule=data)
    runner.fit(other, datamodule=data)
    assert runner.global_step == 6 * 50
    key = one.model.monitor
    for part in ("train", "val"):
        expected = solved.callback_metrics[f"{part}/{key}"].item()
        assert runner.callback_metrics[f"{part}/{key}"].item() == pytest.approx(expected, abs=1e-6)
    (expected,), (found,) = (t.test(f, datamodule=data, verbose=False) for t, f in ((solved, one), (runner, other)))
    assert found[f"test/{key}"] == pytest.approx(expected[f"test/{key}"], abs=1e-6)


def test_factor_analysis_ends_where_scikit_learn_does() -> None:
    data, fit = InMemory(toy(300)), EXACT(model_of("factor_analysis"), steps_per_execution=200)
    runner = trainer(max_epochs=2)
    runner.fit(fit, datamodule=data)
    x = data.part("train").x.numpy()
    found = FactorAnalysis(L, tol=1e-14, max_iter=20_000, svd_method="lapack").fit(x)
    assert runner.callback_metrics["train/log_evidence"].item() == pytest.approx(found.score(x), abs=1e-6)


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["ppca", "factor_analysis", "pca"])
def test_every_epoch_ascends(kind: str, holes: float) -> None:
    """Law 5, on moments and, where entries are missing, on rows."""
    x = toy(holes=holes)
    module = InMemory(x)
    fit = EXACT(model_of(kind), steps_per_execution=1)
    trace = Trace(x)
    runner = trainer(max_epochs=20, callbacks=[trace])
    torch.manual_seed(7)
    trace.x = x[module._rows("train").rows]
    runner.fit(fit, datamodule=module)
    assert fit.is_on_moments == (holes == 0)
    assert (np.diff(trace.values) >= -1e-10).all()
    assert trace.values[-1] > trace.values[0]
    assert runner.global_step == fit.clock.now == 20


def test_the_moments_and_the_rows_are_two_routes_to_one_fit() -> None:
    """The rows are taken where a batch holds an entry that is missing: here one more row, of which nothing was observed."""
    x = toy()
    one, other = (EXACT(model_of(), steps_per_execution=1, start=None) for _ in range(2))
    trainer(max_epochs=6).fit(one, loader(x), loader(x))
    trainer(max_epochs=6).fit(other, loader(torch.cat([x, torch.full((1, D), torch.nan)])), loader(x))
    assert one.is_on_moments
    assert not other.is_on_moments
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(dict(other.model.named_parameters())[name], parameter, atol=1e-10, rtol=0)


# How long it goes on


@pytest.mark.parametrize("steps", [1, 3, 12, 100])
@pytest.mark.parametrize("update", ["epoch", "batch"])
def test_steps_per_execution_changes_nothing(update: str, steps: int) -> None:
    """To the last bit. 42 rows in batches of 8 are 6 steps of stepwise EM an epoch."""
    options = {"max_epochs": -1, "max_steps": 12}
    one, _ = fitted(EXACT(model_of(), update=update, steps_per_execution=5), **options)
    other, runner = fitted(EXACT(model_of(), update=update, steps_per_execution=steps), **options)
    assert runner.global_step == other.clock.now == 12
    assert same(one.model, other.model)


@pytest.mark.parametrize("max_steps", [1, 7, 13])
@pytest.mark.parametrize(("update", "holes"), [("epoch", 0.0), ("epoch", 0.3), ("batch", 0.0), ("batch", 0.3)])
def test_max_steps_is_exact_and_ends_with_a_validation(update: str, holes: float, max_steps: int) -> None:
    fit, runner = fitted(EXACT(model_of(), update=update, steps_per_execution=4), toy(holes=holes), max_epochs=-1, max_steps=max_steps)
    assert runner.global_step == fit.clock.now == max_steps
    assert runner.callback_metrics["step"].item() == max_steps
    assert runner.callback_metrics["val/log_evidence"].isfinite()


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_the_run_ends_when_a_step_gains_less_than_the_tolerance(holes: float) -> None:
    """The last gain is below it and the one before is not; the step that was measured has been taken by then."""
    x, tolerance = toy(300, holes=holes), 1e-3
    data = InMemory(x)
    fit, runner = EMFit(model_of(), tolerance=tolerance, steps_per_execution=1), trainer(max_epochs=500)
    trace = Trace(x[data._rows("train").rows])
    runner.callbacks.append(trace)
    runner.fit(fit, datamodule=data)
    assert 3 < runner.current_epoch < 500
    gains = np.diff(trace.values)
    assert gains[-2] < tolerance
    assert (gains[:-2] >= tolerance).all()
    assert runner.callback_metrics["step"].item() == fit.clock.now


def test_a_loader_of_the_users_is_one_execution_an_epoch() -> None:
    """However many batches it hands out; the trace has an end after every epoch."""
    x = toy()
    fit, runner = EXACT(model_of(), steps_per_execution=5), trainer(max_epochs=4)
    runner.fit(fit, loader(x), loader(x))
    assert runner.global_step == fit.clock.now == 20


def test_missing_entries_that_a_loader_hands_out_last_are_seen_before_it_is_too_late() -> None:
    x = toy()
    x[-1, 2] = torch.nan
    one, other = (EXACT(model_of(), start=None) for _ in range(2))
    trainer(max_epochs=3).fit(one, loader(x), loader(x))
    trainer(max_epochs=3).fit(other, loader(x.flip(0), 60), loader(x))
    assert one.has_missing
    assert one.clock.now == 3
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(dict(other.model.named_parameters())[name], parameter, atol=1e-10, rtol=0)


# Law 12


@pytest.mark.parametrize(
    ("options", "holes"),
    [({}, 0.0), ({}, 0.3), ({"update": "batch"}, 0.0), ({"e_step": "sampled", "num_samples": 3}, 0.0)],
    ids=["moments", "rows", "stepwise", "sampled"],
)
class TestBits:
    def test_the_same_seed_gives_the_same(self, options: dict[str, Any], holes: float) -> None:
        one, one_log = fitted(EXACT(model_of(), **options), toy(holes=holes))
        two, two_log = fitted(EXACT(model_of(), **options), toy(holes=holes))
        other, _ = fitted(EXACT(model_of(), **options), toy(holes=holes), seed=8)
        assert same(one, two)
        assert not same(one, other), "the start is drawn"
        assert {k: v.item() for k, v in one_log.callback_metrics.items()} == {k: v.item() for k, v in two_log.callback_metrics.items()}

    def test_a_resumed_fit_ends_with_those_of_an_uninterrupted_one(self, options: dict[str, Any], holes: float, tmp_path: Path) -> None:
        x = toy(holes=holes)
        straight, log = fitted(EXACT(model_of(), **options), x, max_epochs=4)
        _, runner = fitted(EXACT(model_of(), **options), x, max_epochs=2)
        runner.save_checkpoint(tmp_path / "last.ckpt")
        resumed, other = EXACT(model_of(seed=5), **options), trainer(max_epochs=4)
        other.fit(resumed, datamodule=InMemory(x, batch_size=8), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert same(straight, resumed)
        assert resumed.clock == straight.clock
        assert {k: v.item() for k, v in log.callback_metrics.items()} == {k: v.item() for k, v in other.callback_metrics.items()}

    def test_a_second_fit_begins_anew(self, options: dict[str, Any], holes: float) -> None:
        once, _ = fitted(EXACT(model_of(), **options), toy(holes=holes))
        twice, _ = fitted(EXACT(model_of(), **options), toy(seed=3, holes=0.3 - holes))  # a fit of the other route
        twice, runner = fitted(twice, toy(holes=holes))
        assert same(once.model, twice.model)
        assert runner.global_step == twice.clock.now == once.clock.now


def test_the_tolerance_knows_the_last_value_after_a_resume(tmp_path: Path) -> None:
    """An uninterrupted run that stops in its fourth epoch, and one that was resumed after the second."""
    x = toy(holes=0.2)
    straight, whole = fitted(EMFit(model_of(), tolerance=0.02), x, max_epochs=500)
    assert 2 < whole.current_epoch < 500
    _, runner = fitted(EMFit(model_of(), tolerance=0.02), x, max_epochs=whole.current_epoch - 1)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    resumed, other = EMFit(model_of(), tolerance=0.02), trainer(max_epochs=500)
    other.fit(resumed, datamodule=InMemory(x, batch_size=8), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert other.current_epoch == whole.current_epoch
    assert same(straight, resumed)


# Stepwise EM


def by_name(model: LatentVariableModel, x: Tensor) -> Statistics:
    return {name: value.clone() for name, value in model.statistics(x).items()}


@pytest.mark.parametrize("holes", [0.0, 0.2])
@pytest.mark.parametrize("kappa", [0.6, 1.0])
def test_stepwise_em_mixes_statistics_as_cappe_and_moulines_do(kappa: float, holes: float) -> None:
    """Against a loop, over an uneven last batch: sums as if all data were like the batch, step size (t + 2)^-kappa."""
    x = toy(17, holes=holes)
    fit, hand = EXACT(model_of(), update="batch", kappa=kappa, start=None), model_of()
    runner = trainer(max_epochs=2)
    runner.fit(fit, loader(x, 5), loader(x))
    hand.likelihood.offset.copy_(x.nanmean(0))
    sums: Statistics = {}
    with torch.no_grad():
        for t, batch in enumerate([*x.split(5), *x.split(5)]):
            new, size = by_name(hand, batch), (t + 2) ** -kappa
            for name, total in new.items():
                total = total * 17 / len(batch)
                sums[name] = total if t == 0 else (1 - size) * sums[name] + size * total
            hand.maximize(sums)
    assert runner.global_step == fit.clock.now == 8
    for name, parameter in hand.named_parameters():
        torch.testing.assert_close(dict(fit.model.named_parameters())[name], parameter, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["ppca", "factor_analysis", "pca"])
def test_stepwise_em_comes_near_the_optimum(kind: str) -> None:
    """No step is promised to ascend: with step sizes that end near 0.06 the noise of the batches of 30 is that of about 500 rows.

    An estimate from n rows loses about parameters / 2n nats: 20 / 1000, and half as much again is allowed.
    """
    x = toy(300)
    exact, _ = fitted(EXACT(model_of(kind), steps_per_execution=200), x, max_epochs=2)
    fit, _ = fitted(EXACT(model_of(kind), update="batch", kappa=0.6), x, batch_size=30, max_epochs=15)
    rows = x[InMemory(x)._rows("train").rows]
    optimum = value(exact, rows)
    assert optimum - 0.03 < value(fit, rows) <= optimum + 1e-10


# Monte Carlo EM


def test_the_sampled_e_step_averages_the_sums_of_samples() -> None:
    """Wei & Tanner 1990: replayed with the same noise."""
    x = toy(9)
    fit = EXACT(model_of(), e_step="sampled", num_samples=4)
    with torch.no_grad():
        q = fit.model.posterior(x)
        torch.manual_seed(3)
        found = fit._statistics(x, q)
        torch.manual_seed(3)
        z = q.sample(torch.Size([4]))
        each = [fit.model.statistics(x, Delta(one)) for one in z]
    for name, total in found.items():
        torch.testing.assert_close(total, sum(one[name] for one in each) / 4, atol=1e-12, rtol=1e-12)


def test_its_sums_are_right_in_expectation() -> None:
    """Six standard errors, over repetitions."""
    x = toy(9, holes=0.2)
    fit = EXACT(model_of(), e_step="sampled", num_samples=1)
    with torch.no_grad():
        q = fit.model.posterior(x)
        exact, draws = fit.model.statistics(x, q), [fit._statistics(x, q) for _ in range(2000)]
    for name, total in exact.items():
        found = torch.stack([draw[name] for draw in draws])
        assert ((found.mean(0) - total).abs() <= 6 * found.std(0) / 2000**0.5 + 1e-10).all(), name


def test_many_samples_make_monte_carlo_em_exact() -> None:
    """Sums over 42 rows of 1,000 samples have 1/200 of the spread of a datum, so that the fits differ by about as much."""
    x = toy()
    options = {"max_epochs": 3, "x": x}
    exact, _ = fitted(EXACT(model_of(), steps_per_execution=1), **options)
    many, _ = fitted(EXACT(model_of(), e_step="sampled", num_samples=1000), **options)
    one, _ = fitted(EXACT(model_of(), e_step="sampled", num_samples=1), **options)
    assert abs(value(many, x) - value(exact, x)) < 0.01
    near, far = ((fit.model.likelihood.weight - exact.model.likelihood.weight).norm() for fit in (many, one))
    assert near < far
    torch.testing.assert_close(many.model.likelihood.covariance, exact.model.likelihood.covariance, atol=0.1, rtol=0.02)


def test_sampling_never_ends_by_the_tolerance() -> None:
    """A gain by chance is no sign of an end."""
    _, runner = fitted(EMFit(model_of(), tolerance=1e6, e_step="sampled"), max_epochs=4)
    assert runner.global_step == 4


# Edges


@pytest.mark.parametrize("kind", ["ppca", "factor_analysis", "pca"])
@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows_are_refused(kind: str, count: int) -> None:
    x = toy(count)
    with pytest.raises(ValueError, match=f"latent_dim={L} must be lower"):
        trainer(max_epochs=5).fit(EMFit(model_of(kind)), loader(x), loader(toy(5)))


@pytest.mark.parametrize("kind", ["ppca", "factor_analysis"])
def test_hardly_more_rows_than_latents_end_at_the_floor(kind: str) -> None:
    fit, runner = EMFit(model_of(kind)), trainer(max_epochs=5)
    runner.fit(fit, loader(toy(L + 1)), loader(toy(5)))
    assert runner.callback_metrics[fit.monitor].isfinite()
    assert "ended at the floor noise.min_scale=0.001" in (fit.model.likelihood.floored() or "")


@pytest.mark.parametrize("kind", ["ppca", "factor_analysis", "pca"])
@pytest.mark.parametrize("lost", ["row", "column"])
def test_a_whole_row_or_column_may_be_missing(kind: str, lost: str) -> None:
    x = toy(holes=0.1)
    if lost == "row":
        x[:5] = torch.nan
    else:
        x[:, 4] = torch.nan
    fit, runner = fitted(EMFit(model_of(kind)), x)
    mean, std = fit.model.impute(x)
    assert runner.callback_metrics[fit.monitor].isfinite()
    assert mean.isfinite().all()
    assert std is None or std.isfinite().all()


def test_a_constant_column_is_fitted_at_the_floor_and_said_so() -> None:
    x = toy()
    x[:, 1] = -3.0
    fit, runner = fitted(EMFit(model_of("factor_analysis")), x)
    assert "1 of 6 noise scales ended at the floor noise.min_scale=0.001" in (fit.model.likelihood.floored() or "")
    assert runner.callback_metrics["val/log_evidence"].isfinite()


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_a_kept_start_counts_its_sums_from_the_rows(far: float) -> None:
    """Without a start from rows, too: sums about 0 would lose the noise to rounding."""
    x = toy() + far
    model = model_of()
    ClosedFormFit(model)
    trainer().fit(ClosedFormFit(model), loader(x), loader(x))
    before = model.likelihood.scale.clone()
    model.likelihood.offset.zero_()
    trainer(max_epochs=2).fit(EXACT(model, start=None), loader(x), loader(x))
    torch.testing.assert_close(model.likelihood.scale, before, atol=1e-7, rtol=0)
    assert model.likelihood.offset == pytest.approx(x.mean(0).numpy())


# What is refused


def test_models_without_an_m_step_are_refused() -> None:
    for kind, part in (("vae", "Gaussian and DiagonalGaussian"), ("linear_vae", "DiagonalGaussian"), ("linear_autoencoder", "Delta")):
        with pytest.raises(ValueError, match=f"fit=em has no M-step for {part}: choose fit=gradient"):
            EMFit(model_of(kind))


def test_a_posterior_that_is_no_e_step_is_refused() -> None:
    """The tied encoder W'(x - b) is not the nearest point, and so nothing would ascend."""
    model = LatentVariableModel(Flat(L), LinearGaussian(L, D, FixedNoise(D)), Tied())
    with pytest.raises(ValueError, match="or the nearest point of a plane, not Tied: choose posterior=exact or projection"):
        EMFit(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -1.0}, "fit.tolerance, in nats per datum,=-1.0 must be a number of at least 0"),
        ({"update": "step"}, "fit.update='step' is unknown: epoch or batch"),
        ({"e_step": "exakt"}, "fit.e_step='exakt' is unknown: exact or sampled"),
        ({"kappa": 0.5}, "fit.kappa=0.5 must be a number above 0.5"),
        ({"kappa": 1.1}, "fit.kappa=1.1 must be above 0.5 and at most 1"),
        ({"e_step": "sampled", "num_samples": 0}, "fit.num_samples=0 must be a whole number"),
        ({"steps_per_execution": 0}, "fit.steps_per_execution=0 must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMFit(model_of(), **options)


def test_a_run_that_ends_before_its_tolerance_says_so() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    for steps, ends in ((1, 0), (400, 1)):
        fit = EMFit(lowerbound.factor_analysis(4, 2), tolerance=1e-4, steps_per_execution=1)
        trainer(max_epochs=steps + 1).fit(fit, datamodule=InMemory(x))
        assert [("fit.tolerance=0.0001" in remark) for remark in fit.remarks] == ([] if ends else [True])


@pytest.mark.parametrize("pseudo_counts", [0.0, 3.0])
def test_stepwise_em_of_a_mixture_weighs_its_prior_against_all_data(pseudo_counts: float) -> None:
    """Against a loop: the sums stand for all 17 rows, so the pseudo-counts are beside 17, not beside a batch or beside one."""
    x = toy(17)
    torch.manual_seed(0)
    fit = EXACT(lowerbound.gaussian_mixture(D, 2, pseudo_counts=pseudo_counts), update="batch", kappa=0.6, start=None)
    torch.manual_seed(0)
    hand = lowerbound.gaussian_mixture(D, 2, pseudo_counts=pseudo_counts)
    hand.likelihood.count_from(x)
    trainer(max_epochs=2).fit(fit, loader(x, 5), loader(x))
    sums: Statistics = {}
    with torch.no_grad():
        for t, batch in enumerate([*x.split(5), *x.split(5)]):
            new, size = {name: total * 17 / len(batch) for name, total in hand.statistics(batch).items()}, (t + 2) ** -0.6
            sums = {name: (1 - size) * sums[name] + size * total if t else total for name, total in new.items()}
            hand.maximize(sums)
    assert fit.model.prior.num_data.item() == pytest.approx(17)
    for name, parameter in hand.named_parameters():
        torch.testing.assert_close(dict(fit.model.named_parameters())[name], parameter, atol=1e-10, rtol=0)


def test_a_mixture_converges_by_its_objective_and_not_by_log_p_alone() -> None:
    """log p(X) + log p(parameters) is what ascends; under a strong prior log p alone would end the run elsewhere."""
    x, tolerance = toy(), 1e-3
    fits = [lowerbound.gaussian_mixture(D, 2, pseudo_counts=20.0) for _ in range(2)]
    for model in fits:
        torch.manual_seed(0)
        model.initialize(x, len(x))
    fit, hand = EMFit(fits[0], tolerance=tolerance, start=None), fits[1]
    trainer(max_epochs=500).fit(fit, loader(x), loader(x))
    objective, log_p = [], []
    with torch.no_grad():
        for _ in range(500):
            log_p.append(hand.log_prob(x).mean().item())
            objective.append(log_p[-1] + float(hand.log_prior()))
            hand.maximize(hand.statistics(x))
    first = [int((np.abs(np.diff(values)) < tolerance).argmax()) + 2 for values in (objective, log_p)]
    assert first[0] != first[1]
    assert fit.clock.now == first[0]


class Break(pl.Callback):
    """An interruption after two batches."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize(("make", "holes"), [(EXACT, 0.0), (EXACT, 0.3), (ClosedFormFit, 0.0)])
def test_a_fit_after_an_interrupted_one_forgets_its_rows(make: Any, holes: float) -> None:
    """What the first fit had added up, of other data, is no part of the second."""
    x = toy(holes=holes)
    fresh, again = make(model_of()), make(model_of())
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(callbacks=[Break()]).fit(again, loader(10 * x + 100), loader(x))
    for fit in (fresh, again):
        torch.manual_seed(7)
        trainer().fit(fit, loader(x), loader(x))
    assert same(fresh.model, again.model)


@pytest.mark.parametrize("update", ["epoch", "batch"])
@pytest.mark.parametrize("kind", ["ppca", "factor_analysis", "pca"])
def test_a_batch_of_which_nothing_was_observed_moves_no_noise(kind: str, update: str) -> None:
    x = toy()
    x[:7] = torch.nan
    fit, runner = EXACT(model_of(kind), update=update), trainer()
    runner.fit(fit, loader(x), loader(toy()))
    assert runner.callback_metrics[fit.monitor].isfinite()
