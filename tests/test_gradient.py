"""Laws 6, 12 and 14 on real fits: what a fit learns depends on the seed and on nothing that only makes it faster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowerbound
from lowerbound.data import InMemory
from lowerbound.errors import NonFiniteError
from lowerbound.fit import rows
from lowerbound.gradient import GradientFit
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import ELBO, Bound, Objective
from lowerbound.schedules import Linear, Step

DIM = 6


def toy(count: int = 53, seed: int = 0) -> Tensor:
    return torch.rand(count, DIM, generator=torch.Generator().manual_seed(seed))


def small(seed: int = 0, dim: int = DIM) -> LatentVariableModel:
    torch.manual_seed(seed)
    return lowerbound.vae(dim, 2, sizes=[8])


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**({"accelerator": "cpu", "max_epochs": 3} | quiet | options))


def fitted(fit: GradientFit, data: pl.LightningDataModule | None = None, seed: int = 7, **options: Any) -> tuple[GradientFit, pl.Trainer]:
    runner = trainer(**options)
    torch.manual_seed(seed)
    runner.fit(fit, datamodule=data or InMemory(toy(), batch_size=8))
    return fit, runner


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# Law 6


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_block_size_changes_nothing(steps: int) -> None:
    """To the last bit: the weights, and the means that are logged."""
    eight, log = fitted(GradientFit(small(), steps_per_execution=8))
    other, other_log = fitted(GradientFit(small(), steps_per_execution=steps))
    assert eight.clock == other.clock == Step(15, 15), "37 training rows in batches of 8 are 5 steps an epoch"
    assert same(eight.model, other.model)
    for key in ("val/elbo", "val/kl", "train/elbo"):
        assert log.callback_metrics[key].item() == pytest.approx(other_log.callback_metrics[key].item(), rel=1e-14)


def test_an_epoch_of_one_batch_is_one_step_of_gradient_ascent_on_the_mean() -> None:
    """The uneven last batch counts as a batch: its mean is over its own rows."""
    x, model = toy(10), lowerbound.linear_autoencoder(DIM, 2)
    weight = model.likelihood.weight
    before = weight.detach().clone()
    loss = -model.draw(x).log_likelihood.mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    fit = GradientFit(model, optimizer=partial(torch.optim.SGD, lr=0.1))
    loader = DataLoader(TensorDataset(x), batch_size=10)
    trainer(max_epochs=1).fit(fit, loader, DataLoader(TensorDataset(x), batch_size=4))
    torch.testing.assert_close(weight.detach(), before - 0.1 * gradient)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_validation_does_not_depend_on_its_batches(batch_size: int) -> None:
    """Of a model without noise, in float64 sums: 53 rows in batches that do not divide them."""
    torch.manual_seed(0)
    fit = GradientFit(lowerbound.autoencoder(DIM, 2, sizes=[8]))
    loader = DataLoader(TensorDataset(toy()), batch_size=batch_size)
    (result,) = trainer().validate(fit, loader, verbose=False)
    expected = fit.model.draw(toy()).log_likelihood.double().mean().item()
    assert result["val/reconstruction"] == pytest.approx(expected, rel=1e-6)  # float32 densities
    assert result["val/loss"] == -result["val/reconstruction"]
    assert "val/elbo" not in result, "an autoencoder has no evidence to bound"
    assert "val/kl" not in result


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_nor_does_its_noise(batch_size: int) -> None:
    """Of a VAE, to the last bit: 537 rows are measured in chunks that have noise of their own."""
    x = toy(537)

    def measured(batch_size: int) -> dict[str, float]:
        (result,) = trainer().validate(GradientFit(small()), DataLoader(TensorDataset(x), batch_size=batch_size), verbose=False)
        return result

    assert measured(batch_size) == measured(1000)


def test_training_means_are_over_all_rows_since_the_last_validation() -> None:
    """With a learning rate of 0 the epoch's mean is the mean over the rows, the short batch weighted by its rows."""
    x = toy(37)
    torch.manual_seed(0)
    fit = GradientFit(lowerbound.autoencoder(DIM, 2, sizes=[8]), optimizer=partial(torch.optim.SGD, lr=0.0), steps_per_execution=3)
    runner = trainer(max_epochs=1)
    runner.fit(fit, DataLoader(TensorDataset(x), batch_size=8), DataLoader(TensorDataset(x)))
    expected = fit.model.draw(x).log_likelihood.double().mean().item()
    assert runner.callback_metrics["train/reconstruction"].item() == pytest.approx(expected, rel=1e-6)


# Law 12


def test_the_same_seed_gives_the_same_bits() -> None:
    one, one_log = fitted(GradientFit(small()))
    two, two_log = fitted(GradientFit(small()))
    other, _ = fitted(GradientFit(small()), seed=8)
    assert same(one, two)
    assert not same(one, other)
    assert {k: v.item() for k, v in one_log.callback_metrics.items()} == {k: v.item() for k, v in two_log.callback_metrics.items()}


def test_validation_does_not_change_training() -> None:
    often, _ = fitted(GradientFit(small()), max_epochs=4)
    once, _ = fitted(GradientFit(small()), max_epochs=4, check_val_every_n_epoch=4)
    assert same(often.model, once.model)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_resumed_fit_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path, limit: int | None) -> None:
    """From a checkpoint at the end of an epoch, also of one cut short: weights, optimizer, average, loader, noise and schedules go on."""

    def fit() -> GradientFit:
        return GradientFit(small(), ELBO(Linear(steps=7)), ema=0.9, clip=1.0)

    straight, log = fitted(fit(), max_epochs=4, limit_train_batches=limit)
    _, runner = fitted(fit(), max_epochs=2, limit_train_batches=limit)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    resumed, other = fit(), trainer(max_epochs=4, limit_train_batches=limit)
    other.fit(resumed, datamodule=InMemory(toy(), batch_size=8), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert same(straight, resumed)
    assert resumed.clock == straight.clock
    assert {k: v.item() for k, v in log.callback_metrics.items()} == {k: v.item() for k, v in other.callback_metrics.items()}


# Law 14


class Recorded(Objective):
    """The ELBO, keeping the steps at which it was asked."""

    def __init__(self) -> None:
        self.elbo, self.steps = ELBO(Linear(steps=10)), []

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        self.steps.append((torch.is_grad_enabled(), step.now))
        return self.elbo(model, x, step)


def test_schedules_see_every_optimizer_step_once_and_validation_does_not_advance_them() -> None:
    objective = Recorded()
    fitted(GradientFit(small(), objective), max_epochs=2)
    assert [now for training, now in objective.steps if training] == list(range(10))
    assert {now for training, now in objective.steps if not training} == {0, 5, 10}, "a check of validation, then two validations"


def test_beta_and_learning_rate_are_logged_as_they_are_at_that_step() -> None:
    fit = GradientFit(small(), ELBO(Linear(end=4, fraction=1.0)), scheduler=Linear(start=1.0, end=0.0, fraction=1.0), steps_per_execution=2)
    _, runner = fitted(fit, max_steps=8, max_epochs=-1)
    assert runner.global_step == 8
    assert runner.callback_metrics["beta"].item() == 4.0
    assert runner.callback_metrics["lr"].item() == pytest.approx(1e-3 / 8), "the rate of the eighth and last step, 7/8 of the way down"
    assert runner.callback_metrics["step"].item() == 8


def test_a_warm_up_that_does_not_end_inside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end inside a run of 15"):
        fitted(GradientFit(small(), ELBO(Linear(steps=16))))


def test_a_fraction_of_a_run_that_only_the_clock_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="length is unknown"):
        fitted(GradientFit(small(), ELBO(Linear(fraction=0.5))), max_epochs=-1, max_time={"seconds": 1})


# How a run ends


@pytest.mark.parametrize("max_steps", [1, 7, 8, 13])
def test_max_steps_is_exact_and_ends_with_a_validation(max_steps: int) -> None:
    fit, runner = fitted(GradientFit(small(), steps_per_execution=4), max_steps=max_steps, max_epochs=-1, check_val_every_n_epoch=5)
    assert runner.global_step == fit.clock.now == max_steps
    assert runner.callback_metrics["step"].item() == max_steps
    assert "val/elbo" in runner.callback_metrics


def test_max_epochs_ends_with_a_validation_whatever_their_interval() -> None:
    _, runner = fitted(GradientFit(small()), max_epochs=3, check_val_every_n_epoch=2)
    assert runner.callback_metrics["step"].item() == 15


def test_max_time_ends_with_a_validation() -> None:
    _, runner = fitted(GradientFit(small()), max_epochs=-1, max_time={"seconds": 1}, check_val_every_n_epoch=10**6)
    assert runner.callback_metrics["step"].item() == runner.global_step > 0


class Broken(Objective):
    """The ELBO, whose KL is NaN at one step."""

    def __call__(self, model: LatentVariableModel, x: Tensor, step: Step) -> Bound:
        bound = ELBO()(model, x, step)
        assert bound.kl is not None
        return bound._replace(kl=bound.kl * torch.nan) if step.now == 11 else bound


def test_a_term_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 12: kl not finite"):
        fitted(GradientFit(small(), Broken()), max_epochs=9, default_root_dir=tmp_path)


# What a fit can be given


def test_the_progress_bar_has_the_elbo_on_it() -> None:
    _, runner = fitted(GradientFit(small()), max_epochs=1)
    assert set(runner.progress_bar_metrics) == {"elbo"}
    assert runner.progress_bar_metrics["elbo"] < 0


def test_ema_is_the_average_of_every_optimizer_step_and_is_what_is_evaluated() -> None:
    class Trace(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            self.weights = [*getattr(self, "weights", []), pl_module.model.likelihood.noise.log_scale.item()]

    def run(steps: int) -> tuple[GradientFit, list[float]]:
        trace = Trace()
        fit, _ = fitted(GradientFit(small(), ema=0.9, steps_per_execution=steps), callbacks=[trace])
        return fit, trace.weights

    fit, weights = run(1)
    average = weights[0]
    for weight in weights[1:]:
        average = 0.9 * average + 0.1 * weight
    assert fit.evaluation_model.likelihood.noise.log_scale.item() == pytest.approx(average, rel=1e-5)
    assert fit.evaluation_model is not fit.model
    assert same(fit, run(4)[0]), "the average is over steps, not over blocks"


def test_clipping_bounds_the_norm_of_the_gradient() -> None:
    start = small()
    before = nn.utils.parameters_to_vector(start.parameters()).detach().clone()
    fit, _ = fitted(GradientFit(start, optimizer=partial(torch.optim.SGD, lr=1.0), clip=0.01), max_steps=1, max_epochs=-1)
    moved = nn.utils.parameters_to_vector(fit.model.parameters()) - before
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_scheduler_of_torch_steps_with_the_optimizer() -> None:
    fit = GradientFit(small(), scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), steps_per_execution=4)
    _, runner = fitted(fit, max_epochs=1)
    assert runner.callback_metrics["lr"].item() == pytest.approx(1e-3 * 0.5**5)


@pytest.mark.parametrize("options", [{"ema": 1.0}, {"ema": 0.0}, {"clip": -1.0}, {"steps_per_execution": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GradientFit(small(), **options)


def test_batches_of_images_with_labels_are_rows() -> None:
    images = torch.rand(5, 1, 4, 7)
    assert torch.equal(rows((images, torch.arange(5)), 28), images.flatten(1))
    assert rows(torch.rand(3, 1, 28), 28).shape == (3, 28)
    with pytest.raises(ValueError, match="data_dim=27"):
        rows(images, 27)


def test_a_datamodule_of_the_users_trains() -> None:
    class Theirs(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(torch.rand(20, 1, 4, 7), torch.zeros(20)), batch_size=6)

        val_dataloader = test_dataloader = train_dataloader

    fit, runner = fitted(GradientFit(small(dim=28)), Theirs())
    assert fit.clock == Step(12, 12)
    assert "val/elbo" in runner.callback_metrics


def test_data_that_the_model_cannot_have_produced_are_refused_at_the_start() -> None:
    model = lowerbound.vae(DIM, 2, likelihood="bernoulli", sizes=[8])
    with pytest.raises(ValueError, match=r"\[-?\d.*cannot have produced|cannot have produced"):
        fitted(GradientFit(model), InMemory(toy() * 3, batch_size=8))
    with pytest.raises(ValueError, match="NaN"):
        fitted(GradientFit(small()), InMemory(toy().masked_fill(toy() > 0.9, torch.nan), batch_size=8))


@pytest.mark.parametrize("option", ["val_fraction", "test_fraction"])
def test_a_part_without_rows_is_refused_at_the_start(option: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{option}=0"):
        fitted(GradientFit(small()), InMemory(toy(), **{option: 0.0}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": partial(torch.optim.Adam, lr="high")}, r"fit\.optimizer"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
        ({"scheduler": torch.optim.lr_scheduler.StepLR}, r"fit\.scheduler.*step_size"),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "metric"),
    ],
)
def test_recipes_that_lack_something_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fitted(GradientFit(small(), **options))


def test_weights_that_are_not_finite_are_found_by_the_next_validation() -> None:
    fit = GradientFit(small(), optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(NonFiniteError, match="not finite"):
        fitted(fit, max_epochs=1)


def test_grey_values_under_a_bernoulli_likelihood_are_remarked_on() -> None:
    fit = GradientFit(lowerbound.vae(DIM, 2, likelihood="bernoulli", sizes=[8]))
    with pytest.warns(UserWarning, match="no log-probability|not a log-probability"):
        fitted(fit, max_epochs=1)
    assert len(fit.remarks) == 1


def test_in_float64_every_parameter_and_datum_is() -> None:
    fit, runner = fitted(GradientFit(small()), precision="64-true", max_epochs=1)
    assert {p.dtype for p in fit.model.parameters()} == {torch.float64}
    assert runner.callback_metrics["val/elbo"].isfinite()


def test_half_precision_leaves_the_densities_in_float32() -> None:
    """The ELBO of the same weights under bfloat16 autocast differs by the rounding of the networks alone."""
    torch.manual_seed(0)
    model = lowerbound.vae(64, 8)
    x = torch.rand(50, 64)
    torch.manual_seed(1)
    exact = ELBO()(model, x, Step())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = ELBO()(model, x, Step())
    for one, other in zip(exact, half, strict=True):
        assert other is not None
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.5)
