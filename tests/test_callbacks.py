"""Checkpoints, early stopping, the line of progress and the pictures, in small runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lowerbound.models as models
from lowerbound.callbacks import BestWeights, LastCheckpoint, Pictures, StopEarly
from lowerbound.data import Digits, InMemory
from lowerbound.folder import model_state, read_checkpoint
from lowerbound.gradient import GradientFit
from lowerbound.instantiate import instantiate
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MLP
from lowerbound.posteriors import FullGaussian
from lowerbound.tracking import MetricsFile, read_metrics
from zoo import composed

PICTURES = {"reconstructions", "samples", "latent_plane", "learning_curves", "kl_per_dimension", "interpolation", "latent_traversal"}


def table(num_data: int = 60) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_data, 12, generator=generator)
    return InMemory(x=x, labels=torch.arange(num_data) % 3, dim=12, shape=[1, 3, 4], batch_size=8)


class Users(LightningDataModule):
    """A data module as users write them."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=5, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=5)


def vae() -> LatentVariableModel:
    return models.vae(12, 3, sizes=(8,))


def trained(
    folder: Path,
    callbacks: list[Callback],
    model: LatentVariableModel | None = None,
    data: LightningDataModule | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Trainer, GradientFit]:
    """A run of a small VAE, and its fit."""
    seed_everything(0, verbose=False)
    fit = GradientFit(vae() if model is None else model, optimizer=partial(torch.optim.Adam, lr=1e-2))
    quiet: dict[str, Any] = {"enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0, "logger": False}
    if not callbacks:
        quiet["enable_checkpointing"] = False
    trainer = Trainer(**(quiet | {"accelerator": "cpu", "max_epochs": 3, "default_root_dir": folder, "callbacks": callbacks} | options))
    trainer.fit(fit, datamodule=table() if data is None else data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trainer, fit


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").glob("*.png")}


def test_the_weights_kept_are_those_of_the_best_validation(tmp_path: Path) -> None:
    class Worsen(Callback):
        """Spoil the model after the second epoch."""

        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter += 0.5

    trainer, fit = trained(tmp_path, [MetricsFile(), BestWeights(), Worsen()], max_epochs=4)
    rows = read_metrics(tmp_path / "metrics.csv")["val/elbo"]
    assert max(rows) == max(rows[:2])  # the case is what it means to be
    fit.load_state_dict(read_checkpoint(tmp_path / "weights.ckpt")["state_dict"])
    (again,) = trainer.validate(fit, datamodule=table(), verbose=False)
    assert again["val/elbo"] == max(rows)


def test_a_run_leaves_one_file_of_each_kind(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "config.yaml").touch()
    trained(tmp_path, [BestWeights(), LastCheckpoint()])
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "weights.ckpt", "last.ckpt"}
    assert not [warning for warning in recwarn if "not empty" in str(warning.message)]


def test_the_weights_of_the_best_checkpoint_are_a_model(tmp_path: Path) -> None:
    trained(tmp_path, [BestWeights()])
    vae().load_state_dict(model_state(read_checkpoint(tmp_path / "weights.ckpt")))
    assert "optimizer_states" not in read_checkpoint(tmp_path / "weights.ckpt")


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [5, 6, 11, 12, 17, 18]), (1e9, [18])])
def test_the_last_checkpoint_is_written_in_time_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    steps: list[int] = []
    save = Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, *args: (steps.append(self.global_step), save(self, *args)))
    trained(tmp_path, [LastCheckpoint(every_seconds=seconds)])
    assert steps == expected  # 42 training rows in batches of 8: a block of five, and the short one
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == expected[-1]


@pytest.mark.parametrize("seconds", [0.0, 1e9])  # written at the end of an epoch, and at the end of training
def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, seconds: float) -> None:
    def callbacks() -> list[Callback]:
        return [MetricsFile(), LastCheckpoint(seconds), StopEarly(patience=50), BestWeights()]

    trained(tmp_path, callbacks(), max_epochs=2)
    trainer, _ = trained(tmp_path, callbacks(), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 4
    assert read_metrics(tmp_path / "metrics.csv")["epoch"] == [0, 1, 2, 3]
    assert read_metrics(tmp_path / "metrics.csv")["step"] == [6, 12, 18, 24]


def test_nothing_is_saved_after_an_exception(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("failed on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        trained(tmp_path, [LastCheckpoint(0.0), Fail()])
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1


def test_early_stopping_follows_the_models_monitor(tmp_path: Path) -> None:
    stop = StopEarly(patience=2, min_delta=1e9)
    trainer, fit = trained(tmp_path, [stop], models.autoencoder(12, 3, sizes=(8,)), max_epochs=50)
    assert stop.monitor == fit.monitor == "val/reconstruction"
    assert trainer.current_epoch == 3  # the first is the best, and two more are waited for


def test_pictures_every_n_epochs_and_at_the_end(tmp_path: Path) -> None:
    pictures = Pictures(every_n_epochs=2, num_images=4)
    trainer, fit = trained(tmp_path, [MetricsFile(), pictures])
    assert drawn(tmp_path) == PICTURES
    before = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    pictures.draw(trainer, fit)
    after = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert all(before[path] != after[path] for path in before)  # another epoch's weights
    pictures.draw(trainer, fit)
    assert after == {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}  # the same weights, the same draws
    for path in after:
        assert Image.open(path).size[0] > 300


def test_drawing_does_not_change_training(tmp_path: Path) -> None:
    _, plain = trained(tmp_path, [])
    state = torch.get_rng_state()
    _, drawing = trained(tmp_path, [Pictures(every_n_epochs=1)])
    assert drawn(tmp_path) >= {"samples"}
    assert torch.equal(state, torch.get_rng_state())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, drawing.state_dict()[name]), name


def test_drawing_leaves_each_module_in_its_mode(tmp_path: Path) -> None:
    model = vae()
    pictures = Pictures()
    trainer, fit = trained(tmp_path, [pictures], model)
    model.train()
    next(module for module in model.modules() if isinstance(module, nn.Linear)).eval()
    before = [module.training for module in model.modules()]
    pictures.draw(trainer, fit)
    assert [module.training for module in model.modules()] == before
    assert not all(before)


def test_an_autoencoder_has_no_samples_and_no_kl(tmp_path: Path) -> None:
    pictures = Pictures()
    pictures.draw(*trained(tmp_path, [MetricsFile(), pictures], models.autoencoder(12, 3, sizes=(8,))))
    assert drawn(tmp_path) == PICTURES - {"samples", "kl_per_dimension"}


def test_a_posterior_with_correlations_has_no_kl_per_dimension(tmp_path: Path) -> None:
    model = vae()
    model = LatentVariableModel(model.prior, model.likelihood, FullGaussian(partial(MLP, inputs=12, sizes=[8]), 3))
    pictures = Pictures()
    pictures.draw(*trained(tmp_path, [MetricsFile(), pictures], model))
    assert drawn(tmp_path) == PICTURES - {"kl_per_dimension"}


@pytest.mark.parametrize(("labelled", "shape"), [(True, (12,)), (False, (1, 3, 4))])
def test_pictures_of_a_loader_of_the_users(tmp_path: Path, labelled: bool, shape: tuple[int, ...]) -> None:
    x = torch.rand(20, *shape)
    rows = TensorDataset(x, torch.arange(20) % 2) if labelled else x
    pictures = Pictures(num_codes=12)
    pictures.draw(*trained(tmp_path, [MetricsFile(), pictures], data=Users(rows), log_every_n_steps=1))
    assert drawn(tmp_path) == PICTURES


def test_pictures_refuse_numbers_that_draw_nothing() -> None:
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        Pictures(every_n_epochs=0)


def test_the_configured_callbacks_work_together(tmp_path: Path) -> None:
    config = composed("callbacks=[default,early_stopping]").callbacks
    callbacks = [instantiate(node) for node in config.values()]
    assert [type(callback) for callback in callbacks] == [BestWeights, LastCheckpoint, Pictures, StopEarly]
    trained(tmp_path, callbacks, enable_progress_bar=True)
    assert (tmp_path / "weights.ckpt").exists()


@pytest.mark.parametrize(("rate", "epochs"), [(0.0, 3), (3e-3, 12)])
def test_early_stopping_ends_what_no_longer_rises_and_nothing_else(tmp_path: Path, rate: float, epochs: int) -> None:
    fit = GradientFit(models.linear_autoencoder(64, 2), optimizer=partial(torch.optim.SGD, lr=rate))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=12, accelerator="cpu", callbacks=[StopEarly(patience=2)], default_root_dir=tmp_path, **options)
    trainer.fit(fit, datamodule=Digits())
    assert trainer.current_epoch == epochs
