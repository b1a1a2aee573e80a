"""A run from the command line to its folder, and back: in this process, except where a new one is the point."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import lowerbound
from lowerbound.cli import main
from lowerbound.folder import read_checkpoint
from lowerbound.instantiate import instantiate
from lowerbound.tracking import read_metrics
from worker_of_commands import alone

SMALL = ("trainer.max_epochs=2", "network.encoder.sizes=[16]", "latent_dim=2")
DRAWN = "callbacks.pictures.num_images=4"
UNDRAWN = "~callbacks.pictures"


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """The run folder of a command line given in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lowerbound-train", f"hydra.run.dir={folder}/run", *overrides])
    assert main() == 0
    return folder / "run"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("finished"), patch, *SMALL, DRAWN)


def test_a_run_folder_holds_what_it_should(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.yaml", "weights.ckpt", "last.ckpt", "metrics.csv", "results.json", "figures"}
    pictures = {path.name for path in (finished / "figures").iterdir()}
    expected = {"reconstructions", "samples", "latent_plane", "learning_curves", "kl_per_dimension", "interpolation", "latent_traversal"}
    assert pictures == {f"{name}.png" for name in expected}


def test_the_results_add_up_and_say_how_they_came_about(finished: Path) -> None:
    found = results(finished)
    assert found["test/elbo"] == pytest.approx(found["test/reconstruction"] - found["test/kl"], abs=1e-4)
    assert found["test/loss"] == pytest.approx(-found["test/elbo"], abs=1e-4)
    assert found["optimizer_steps"] == 20
    assert found["monitor"] == "val/elbo"
    assert {"seconds", "images_per_second", "versions", "device", "git_commit", "precision"} <= set(found)


def test_the_best_weights_are_those_that_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """val/elbo of the results is the best row of metrics.csv, here not the last one: the learning rate is far too high."""
    folder = run(tmp_path, monkeypatch, *SMALL, UNDRAWN, "fit.optimizer.lr=0.3", "trainer.max_epochs=6")
    rows = read_metrics(folder / "metrics.csv")
    assert rows["step"] == [10, 20, 30, 40, 50, 60]
    assert max(rows["val/elbo"]) > rows["val/elbo"][-1] + 0.1
    assert results(folder)["val/elbo"] == pytest.approx(max(rows["val/elbo"]), rel=1e-12)
    assert not any("time" in name for name in rows)


def test_the_configuration_is_resolved_and_names_no_machine(finished: Path) -> None:
    text = (finished / "config.yaml").read_text()
    assert "${" not in text
    assert str(finished) not in text
    assert OmegaConf.create(text).model.likelihood.data_dim == 64


def test_checkpoints_hold_tensors_and_plain_containers(finished: Path) -> None:
    for name in ("weights.ckpt", "last.ckpt"):
        assert read_checkpoint(finished / name)["state_dict"]


LOAD = """
import sys, lowerbound
from pathlib import Path
from lightning.pytorch import Trainer
from lowerbound.instantiate import instantiate
run = lowerbound.load(sys.argv[1])
data = instantiate(run.config.data)
trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
(result,) = trainer.test(lowerbound.GradientFit(run.model), datamodule=data, verbose=False)
Path(sys.argv[2]).write_text(result["test/elbo"].hex())
"""


def test_a_loaded_model_gives_the_same_test_elbo_to_the_last_bit_in_a_new_process(processes: Any, finished: Path, tmp_path: Path) -> None:
    script, found = tmp_path / "load.py", tmp_path / "found"
    script.write_text(LOAD)
    process = processes.Process(target=alone, args=(str(script), [str(finished), str(found)]))
    process.start()
    process.join(120)
    assert float.fromhex(found.read_text()) == results(finished)["test/elbo"]


def test_a_loaded_run_prepares_encodes_and_decodes(finished: Path) -> None:
    loaded = lowerbound.load(finished)
    assert loaded.prepare is not None
    raw = torch.randint(0, 17, (5, 64))
    x = loaded.prepare(raw)
    assert torch.equal(loaded.prepare.inverse(x), raw.float())
    assert loaded.model.encode(x).shape == (5, 2)
    assert loaded.model.reconstruct(x).shape == (5, 64)
    assert loaded.model.sample(3).shape == (3, 64)
    assert not loaded.model.training


def test_the_statistics_of_the_training_part_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("data.prepare.dequantize=false", "data.prepare.standardize=true", "fit.ema=0.9", "trainer.precision=64-true")
    folder = run(tmp_path, monkeypatch, *SMALL, UNDRAWN, "noise.scale=1", *options)
    loaded = lowerbound.load(folder)
    assert loaded.prepare is not None
    data = instantiate(loaded.config.data)
    data.setup()
    raw = data.prepare.inverse(data.part("test").x.double())
    torch.testing.assert_close(loaded.prepare(raw), data.part("test").x.double(), atol=1e-5, rtol=0)  # float32 rows
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float64}
    checkpoint = read_checkpoint(folder / "weights.ckpt")
    weight = checkpoint["state_dict"]["average.module.likelihood.noise.log_scale"]
    assert loaded.model.state_dict()["likelihood.noise.log_scale"] == weight, "the averaged weights are the result"
    assert checkpoint["state_dict"]["model.likelihood.noise.log_scale"] != weight


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_what_is_no_run_folder_is_said_to_be_none(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml is missing"):
        lowerbound.load(tmp_path / folder)


def test_half_precision_that_lightning_would_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lowerbound-train", "trainer.precision=16-mixed"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "bf16-mixed or 32-true" in capsys.readouterr().err


def test_an_autoencoder_logs_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(run(tmp_path, monkeypatch, "model=autoencoder", *SMALL, DRAWN))
    assert found["monitor"] == "val/reconstruction"
    assert "test/elbo" not in found
    assert "test/kl" not in found
    assert not (tmp_path / "run" / "figures" / "samples.png").exists()


def test_images_of_another_shape_train_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "faces.npy", np.random.default_rng(0).random((197, 28, 20), dtype=np.float32))
    table = ("data=table", "data.path=faces.npy", "data.dim=560", "data.shape=[1,28,20]")
    found = results(run(tmp_path, monkeypatch, *table, *SMALL, DRAWN))
    assert np.isfinite(found["test/elbo"])


def test_from_python_without_configuration() -> None:
    x = torch.rand(60, 6)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    found = lowerbound.learn(lowerbound.vae(6, 2, sizes=[8]), lowerbound.GradientFit, x, max_epochs=2, **quiet)
    assert set(found) == {"test/loss", "test/elbo", "test/reconstruction", "test/kl"}
    again = lowerbound.learn(lowerbound.autoencoder(6, 2, sizes=[8]), lowerbound.GradientFit, x.numpy(), max_epochs=2, **quiet)
    assert set(again) == {"test/loss", "test/reconstruction"}
