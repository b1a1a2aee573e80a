"""Every file of conf/ composes, builds and learns from a batch; every number in it changes what it names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import lowerbound
import zoo
from lowerbound.data import InMemory
from lowerbound.data.module import TensorDataModule
from lowerbound.fit import Fit
from lowerbound.instantiate import instantiate
from lowerbound.model import LatentVariableModel
from lowerbound.objectives import Objective
from lowerbound.run import learn
from lowerbound.schedules import Step
from lowerbound.trust import safe_instantiate

# What a choice needs beside it, and whatever makes it small.
NEEDS = {
    "prior=flat": ("model=autoencoder",),
    "prior=mixture_of_gaussians": ("objective.kl=sampled",),
    "prior=one_hot": ("model=mixture",),
    "likelihood=gaussian_components": ("model=mixture",),
    "likelihood=bernoulli_components": ("model=mixture",),
    "posterior=delta": ("model=autoencoder",),
    "posterior=enumeration": ("model=mixture",),
    "posterior=exact": ("model=ppca",),
    "posterior=projection": ("model=pca",),
    "posterior=tied": ("model=linear_autoencoder",),
    "objective=log_prob": ("model=ppca", "fit=gradient"),
    "objective=reconstruction": ("model=autoencoder",),
    "objective=l2": ("model=linear_autoencoder",),
    "objective=non_uniform_l2": ("model=linear_autoencoder",),
    "objective=nested_dropout": ("model=linear_autoencoder",),
    "objective=ordered": ("model=linear_autoencoder",),
    "fit=closed_form": ("model=ppca",),
    "fit=em": ("model=factor_analysis",),
    "start=rows": ("model=ppca",),
    "start=pca": ("latent_dim=2",),
    "network=conv": ("network.encoder.channels=[2,4]",),
    "data=table": ("data.path=rows.npy", "data.dim=6"),
}
SMALL = ("network.encoder.sizes=[8]",)
LEARNING = ("prior", "likelihood", "noise", "covariance", "posterior", "network", "model", "objective", "beta", "fit", "start")


def overrides_of(group: str, choice: str) -> tuple[str, ...]:
    needs = NEEDS.get(f"{group}={choice}", ("model=mixture",) if group == "covariance" else ())
    return (*needs, f"{group}={choice}")


def small(config: DictConfig) -> DictConfig:
    """It with a network of eight units, where it has one whose layers have sizes."""
    if OmegaConf.select(config, "network.encoder.sizes") is not None:
        config.network.encoder.sizes = [8]
    return config


def parts(config: DictConfig) -> tuple[Fit, LatentVariableModel]:
    torch.manual_seed(0)
    model = instantiate(config.model)
    return instantiate(config.fit)(model), model


def choices_of(*groups: str) -> list[tuple[str, str]]:
    return [(group, choice) for group in groups for choice in zoo.choices(group)]


@pytest.mark.parametrize(("group", "choice"), choices_of(*LEARNING))
def test_every_way_to_learn_takes_a_step_with_finite_terms(group: str, choice: str) -> None:
    fit, model = parts(small(zoo.composed(*overrides_of(group, choice))))
    x = torch.rand(40, 64)
    found = learn(model, lambda _: fit, InMemory(x.round() if "bernoulli" in choice else x, batch_size=8), max_epochs=1, accelerator="cpu")
    assert found
    assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize("choice", [choice for choice in zoo.choices("data") if choice not in ("fashion_mnist", "kmnist", "cifar10")])
def test_every_source_at_hand_hands_out_what_its_file_says(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if choice == "mnist":
        monkeypatch.setenv("LOWERBOUND_DATA", str(request.getfixturevalue("data_root")))
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((60, 6)))
    monkeypatch.chdir(tmp_path)
    config = zoo.composed(*NEEDS.get(f"data={choice}", ()), f"data={choice}")
    data: TensorDataModule = instantiate(config.data)
    data.setup()
    (block, *_) = data.train_dataloader()
    assert block.shape == (1, min(config.data.batch_size, block.shape[1]), config.data.dim)
    assert block.isfinite().all()


@pytest.mark.parametrize("choice", ["fashion_mnist", "kmnist", "cifar10"])
def test_sources_that_are_downloaded_say_where_they_are_not(choice: str, tmp_path: Path) -> None:
    config = zoo.composed(f"data={choice}", f"data.root={tmp_path}", "data.download=false")
    with pytest.raises(ValueError, match=r"data\.root"):
        instantiate(config.data).setup()


@pytest.mark.parametrize("choice", zoo.choices("experiment"))
def test_every_experiment_builds_and_passes_a_batch(choice: str) -> None:
    config = zoo.composed(f"experiment={choice}")
    fit, model = parts(config)
    bound = fit.objective(model, torch.rand(4, config.data.dim).round(), Step(0, 100))
    assert bound.value.shape == (4,)
    assert bound.value.isfinite().all()


# What trains can be loaded.

EXPERIMENTS = {name: (f"experiment={name}",) for name in zoo.choices("experiment")}
EXPERIMENTS["maximum_likelihood"] += ("model=gaussian",)  # of a sweep, its first run
BUILT = choices_of("prior", "likelihood", "noise", "covariance", "posterior", "network", "model", "data")


@pytest.mark.parametrize(
    ("group", "choice"),
    [*BUILT, *(("experiment", name) for name in EXPERIMENTS)],
)
def test_every_configuration_that_trains_is_built_the_same(group: str, choice: str) -> None:
    config = zoo.resolved(*(EXPERIMENTS[choice] if group == "experiment" else overrides_of(group, choice)))
    models = []
    for make in (lambda: instantiate(config.model), lambda: safe_instantiate(config, "model")):
        torch.manual_seed(0)
        models.append(make())
    one, other = models
    assert repr(one) == repr(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for key in ("data", "data.prepare"):
        expected, found = instantiate(OmegaConf.select(config, key)), safe_instantiate(config, key)
        assert type(found) is type(expected)
        assert repr(vars(found)) == repr(vars(expected))


@pytest.mark.parametrize(("group", "choice"), choices_of("trainer", "callbacks", "logger"))
def test_every_trainer_callback_and_logger_builds(group: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    node = zoo.composed(f"{group}={choice}", "name=test")[group]
    if group == "trainer":
        instantiate(node, accelerator="cpu", devices=1, logger=False, default_root_dir=str(tmp_path))
    for one in node.values() if group != "trainer" else ():
        instantiate(one, **({"save_dir": str(tmp_path)} if group == "logger" else {}))


def global_files() -> list[Path]:
    return [path for path in zoo.CONF.rglob("*.yaml") if "# @package" in path.read_text()]


@pytest.mark.parametrize("path", global_files(), ids=lambda path: str(path.relative_to(zoo.CONF)))
def test_a_package_is_stated_on_the_first_line(path: Path) -> None:
    """Further down Hydra would ignore it without a word."""
    assert path.read_text().startswith("# @package")


@pytest.mark.parametrize("path", sorted(zoo.CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(zoo.CONF)))
def test_every_file_begins_with_its_sentence(path: Path) -> None:
    lines = path.read_text().splitlines()
    sentence = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert sentence.startswith("# "), "the equation or sentence that the file stands for"
    assert "oc.env" not in path.read_text(), "an environment variable would end up in every config.yaml"


@pytest.mark.parametrize("name", ["vae", "autoencoder", "linear_vae", "linear_autoencoder", "pca", "ppca", "factor_analysis"])
def test_the_constructor_builds_what_the_file_builds(name: str) -> None:
    by_file = instantiate(zoo.composed(f"model={name}").model)
    by_call = getattr(lowerbound, name)(64, 8)
    assert repr(by_file) == repr(by_call)
    assert {k: v.shape for k, v in by_file.state_dict().items()} == {k: v.shape for k, v in by_call.state_dict().items()}


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=ppca_of_nothing",),
        ("model=linear_vae", "network.encoder.sizes=[3]"),
        ("likelihood=bernoulli", "noise=fixed"),
    ],
)
def test_what_does_not_belong_together_does_not_compose(overrides: tuple[str, ...]) -> None:
    with pytest.raises(HydraException):
        zoo.composed(*overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("posterior=delta",), "infinite KL"),
        (("prior=flat",), "improper prior"),
        (("latent_dim=0",), "latent_dim"),
        (("network.encoder.sizes=[0]",), "sizes"),
        (("network.encoder.activation=rule",), "relu"),
        (("noise.scale=-1",), r"noise\.scale"),
        (("noise.min_scale=0",), r"noise\.min_scale"),
        (("network=conv", "data.shape=null"), r"data\.shape"),
        (("network=conv", "data.shape=[1,4,16]"), "8 to 64"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_the_constructor(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        instantiate(zoo.composed(*overrides).model)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("objective.beta=-1",), r"objective\.beta"),
        (("objective.beta=much",), r"objective\.beta"),
        (("objective.num_samples=0",), "num_samples"),
        (("objective.kl=exact",), "analytic or sampled"),
        (("objective.reconstruction=exact",), "analytic or sampled"),
        (("objective.free_bits=-1",), "free_bits"),
        (("objective=iwae", "objective.num_samples=0"), "num_samples"),
    ],
)
def test_objectives_out_of_range_are_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        instantiate(zoo.composed(*overrides).objective)


# Law 13: every number in a config changes what it names.


def value_of(objective: Objective, model: LatentVariableModel) -> float:
    torch.manual_seed(1)
    return objective(model, torch.rand(32, 64, generator=torch.Generator().manual_seed(0)), Step(1, 10)).value.sum().item()


@pytest.mark.parametrize(
    "override",
    [
        "objective.beta=2",
        "objective.free_bits=1",
        "objective.num_samples=2",
        "objective.kl=sampled",
        "beta=warm_up",
        "noise.scale=0.5",
        "noise.min_scale=0.1",
        "latent_dim=3",
        "network.encoder.sizes=[9]",
        "network.encoder.activation=tanh",
        "posterior.shared_scale=true",
        "objective=iwae",
        "seed_of_the_model",
    ],
)
def test_every_number_of_a_vae_changes_its_objective(override: str) -> None:
    def value(*overrides: str, seed: int = 0) -> float:
        config = zoo.composed(*SMALL, *overrides)
        torch.manual_seed(seed)
        return value_of(instantiate(config.objective), instantiate(config.model))

    other = value(seed=1) if override == "seed_of_the_model" else value(override)
    assert value() == value()
    if override == "noise.min_scale=0.1":  # the same scale at the start, from another place above the floor
        assert other == pytest.approx(value(), rel=1e-5)
    else:
        assert abs(other - value()) > 1e-3


@pytest.mark.parametrize(
    ("choice", "other"),
    [
        (("objective=iwae",), "objective.num_samples=5"),
        (("prior=mixture_of_gaussians", "objective.kl=sampled"), "prior.num_components=3"),
        (("prior=mixture_of_gaussians", "objective.kl=sampled"), "prior.min_scale=0.5"),
        (("objective=score_function",), "objective.num_samples=3"),
        (("model=linear_vae",), "objective.reconstruction=analytic"),
        (("network=conv",), "network.encoder.channels=[8,8]"),
    ],
)
def test_every_number_of_a_choice_changes_its_objective(choice: tuple[str, ...], other: str) -> None:
    def value(*overrides: str) -> float:
        config = zoo.composed(*overrides)
        torch.manual_seed(0)
        return value_of(instantiate(config.objective), instantiate(config.model))

    assert value(*choice) == value(*choice)
    assert abs(value(*choice) - value(*choice, other)) > 1e-3


@pytest.mark.parametrize(
    ("overrides", "other"),
    [
        (("beta=warm_up",), "objective.beta.end=3"),
        (("beta=warm_up",), "objective.beta.start=0.5"),
        (("beta=warm_up",), "objective.beta.fraction=0.9"),
        (("beta=cyclical",), "objective.beta.end=3"),
        (("beta=cyclical",), "objective.beta.cycles=3"),
        (("beta=cyclical",), "objective.beta.rise=0.9"),
        (("beta=cyclical",), "objective.beta.start=0.5"),
        (("beta=cyclical",), "objective.beta.fraction=0.5"),
        (("beta=warm_up", "objective.beta.fraction=null", "objective.beta.steps=20"), "objective.beta.steps=40"),
    ],
)
def test_every_number_of_a_schedule_changes_it(overrides: tuple[str, ...], other: str) -> None:
    def values(*overrides: str) -> list[float]:
        beta = instantiate(zoo.composed(*overrides).objective.beta)
        return [beta(Step(now, 100)) for now in range(100)]

    assert values(*overrides) != values(*overrides, other)


def weights(*overrides: str) -> dict[str, Any]:
    """The weights after a short fit of the command line's model on the command line's data."""
    config = zoo.composed(*SMALL, *overrides)
    fit, model = parts(config)
    options = OmegaConf.to_container(config.trainer)
    assert isinstance(options, dict)
    kept = {key: options[key] for key in ("max_epochs", "max_steps", "precision", "limit_train_batches")}
    learn(model, lambda _: fit, instantiate(config.data), seed=config.seed, accelerator="cpu", enable_progress_bar=False, **kept)
    return fit.evaluation_model.state_dict()


ONE_EPOCH = "trainer.max_epochs=1"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return weights(ONE_EPOCH)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "fit.optimizer.lr=0.01",
        "fit.clip=0.001",
        "fit.ema=0.5",
        "data.batch_size=64",
        "data.val_fraction=0.3",
        "data.split_seed=1",
        "data.prepare.dequantize=false",
        "data.prepare.standardize=true",
        "trainer.max_steps=2",
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=1",
    ],
)
def test_every_number_of_a_fit_changes_its_weights(override: str, reference: dict[str, Any]) -> None:
    found = weights(ONE_EPOCH, override)
    assert not all(torch.equal(value, found[name]) for name, value in reference.items())


@pytest.mark.parametrize("override", ["fit.steps_per_execution=3", "data.eval_batch_size=7", "data.storage=host"])
def test_what_only_concerns_speed_changes_no_weight(override: str, reference: dict[str, Any]) -> None:
    found = weights(ONE_EPOCH, override)
    assert all(torch.equal(value, found[name]) for name, value in reference.items())


def test_any_optimizer_and_scheduler_of_torch_is_a_line() -> None:
    config = zoo.composed(
        *SMALL,
        "fit.optimizer._target_=torch.optim.SGD",
        "+fit.optimizer.momentum=0.9",
        "fit.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 3}",
    )
    fit, _ = parts(config)
    configured = fit.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert isinstance(configured["lr_scheduler"], torch.optim.lr_scheduler.StepLR)
    assert isinstance(fit.make_optimizer, partial)
