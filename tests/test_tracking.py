"""`metrics.csv`, Weights & Biases (real, offline, read back by its own reader) and TensorBoard."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

import lowerbound.connection as connection
import lowerbound.models as models
from lowerbound.callbacks import LastCheckpoint, Pictures
from lowerbound.data import InMemory
from lowerbound.gradient import GradientFit
from lowerbound.instantiate import instantiate
from lowerbound.tracking import MetricsFile, WandB, finish, read_metrics, send_picture, send_table
from zoo import composed

COLUMNS = [f"{part}/{name}" for part in ("train", "val") for name in ("elbo", "kl", "loss", "reconstruction")]


class Recorder(Callback):
    """What MetricsFile has to write, from another place: the metrics and the optimizer step after each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(metrics | {"step": trainer.global_step, "epoch": trainer.current_epoch})


def trained(
    folder: Path, callbacks: list[Callback], loggers: Any = False, ckpt_path: Path | None = None, **options: Any
) -> tuple[Trainer, GradientFit]:
    """A run of a small VAE of two optimizer steps per epoch, and its fit."""
    seed_everything(0, verbose=False)
    x = torch.rand(20, 12, generator=torch.Generator().manual_seed(0))
    data = InMemory(x=x, labels=torch.arange(20) % 2, dim=12, shape=[1, 3, 4], batch_size=7)
    quiet: dict[str, Any] = {"enable_model_summary": False, "enable_progress_bar": False, "enable_checkpointing": False}
    if any(isinstance(callback, LastCheckpoint) for callback in callbacks):
        del quiet["enable_checkpointing"]
    fit = GradientFit(models.vae(12, 2, sizes=(8,)), steps_per_execution=8, optimizer=partial(torch.optim.Adam, lr=1e-2))
    given: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 3, "default_root_dir": folder, "callbacks": callbacks, "logger": loggers}
    trainer = Trainer(**(quiet | given | {"log_every_n_steps": 1} | options))
    trainer.fit(fit, datamodule=data, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trainer, fit


def test_a_row_for_each_validation_at_the_optimizer_step(tmp_path: Path) -> None:
    recorder = Recorder()
    trained(tmp_path, [MetricsFile(), recorder], num_sanity_val_steps=2)
    columns = read_metrics(tmp_path / "metrics.csv")
    assert list(columns) == ["step", "epoch", *sorted(["beta", "lr", *COLUMNS])]
    assert columns["step"] == [2, 4, 6]  # the sanity check has no row
    assert columns["epoch"] == [0, 1, 2]
    for name, values in columns.items():
        assert values == [row[name] for row in recorder.rows], name  # to the last bit


def test_the_file_grows_with_each_validation(tmp_path: Path) -> None:
    lengths: list[int] = []

    class Look(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            lengths.append(len((tmp_path / "metrics.csv").read_text().splitlines()))

    trained(tmp_path, [MetricsFile(), Look()])
    assert lengths == [2, 3, 4]


def test_a_second_run_in_the_folder_begins_anew(tmp_path: Path) -> None:
    trained(tmp_path, [MetricsFile()])
    first = (tmp_path / "metrics.csv").read_bytes()
    trained(tmp_path, [MetricsFile()])
    assert (tmp_path / "metrics.csv").read_bytes() == first


def test_a_resumed_run_cuts_off_the_rows_that_its_checkpoint_did_not_know(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.current_epoch == 2:
                shutil.copy(tmp_path / "last.ckpt", tmp_path / "second.ckpt")

    trained(tmp_path, [MetricsFile(), LastCheckpoint(0.0), Keep()], max_epochs=4)
    whole = (tmp_path / "metrics.csv").read_text().splitlines()
    trained(tmp_path, [MetricsFile(), LastCheckpoint()], max_epochs=4, ckpt_path=tmp_path / "second.ckpt")
    resumed = (tmp_path / "metrics.csv").read_text().splitlines()
    assert resumed[:3] == whole[:3]
    assert [line.split(",")[:2] for line in resumed] == [line.split(",")[:2] for line in whole]


def test_what_a_row_does_not_have_is_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/elbo\n1,-2.5\n2,\n")
    columns = read_metrics(tmp_path / "metrics.csv")
    assert columns["step"] == [1.0, 2.0]
    assert columns["val/elbo"][0] == -2.5
    assert math.isnan(columns["val/elbo"][1])


def test_a_row_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/elbo\n1,2.5\n2")
    assert read_metrics(tmp_path / "metrics.csv") == {"step": [1.0], "val/elbo": [2.5]}


def test_a_file_without_rows_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").touch()
    assert read_metrics(tmp_path / "metrics.csv") == {}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine on which nobody has ever logged in to W&B."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    wandb.teardown()  # it reads the environment once in a process
    yield monkeypatch
    wandb.teardown()


class Refusing(BaseHTTPRequestHandler):
    """A server that answers everything with 401."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_HEAD = do_GET = do_PUT = do_POST  # noqa: N815 the names that http.server calls

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers and refuses."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def closed_address() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of the only W&B run in a folder, by W&B's own reader."""
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_wandb_offline_is_read_back(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    node = composed("logger=[csv,wandb]", "name=trial", "logger.wandb.group=vaes", "logger.wandb.tags=[small,first]").logger
    logger: WandB = instantiate(node.wandb, save_dir=str(tmp_path))
    assert logger.mode == "offline"
    config = {"model": {"sizes": [8, 8], "latent_dim": 2}, "objective": {"beta": None}, "seed": 0}
    logger.log_hyperparams(config)
    pictures = Pictures(every_n_epochs=2)
    trainer, fit = trained(tmp_path, [MetricsFile(), pictures], [logger])
    pictures.draw(trainer, fit)
    (test,) = trainer.test(fit, datamodule=trainer.datamodule, verbose=False)
    send_table(logger, "numbers", ["name", "test"], [["ELBO", "1.5"], ["KL", "0.5"]])
    finish(trainer.loggers, {"test/elbo": test["test/elbo"]}, exit_code=3)
    (table,) = tmp_path.glob("wandb/*/files/media/table/numbers_*.table.json")
    assert json.loads(table.read_text())["data"] == [["ELBO", "1.5"], ["KL", "0.5"]]

    found = records(tmp_path)
    (run,) = [record["run"] for record in found if record["type"] == "run"]
    assert (run["display_name"], run["run_group"], run["tags"], run["project"]) == ("trial", "vaes", ["small", "first"], "lowerbound")
    told = [record["config"]["update"] for record in found if record["type"] == "config"]
    assert {key: value for update in told for key, value in update.items() if not key.startswith("_")} == config

    history = [record["history"]["item"] for record in found if record["type"] == "history"]
    columns = read_metrics(tmp_path / "metrics.csv")
    shown = [(item["trainer/global_step"], item["val/elbo"]) for item in history if "val/elbo" in item]
    assert [step for step, _ in shown] == columns["step"] == [2, 4, 6]
    np.testing.assert_allclose([value for _, value in shown], columns["val/elbo"], rtol=1e-12)  # the reader's JSON rounds
    metrics = [record["metric"] for record in found if record["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "trainer/global_step" for metric in metrics)

    images = {(name.partition(".")[0], item["trainer/global_step"]) for item in history for name in item if name.startswith("figures/")}
    drawn = {f"figures/{path.stem}" for path in (tmp_path / "figures").iterdir()}
    assert images == {(name, step) for name in drawn for step in (4, 6)}  # after the second epoch and at the end
    media = sorted(tmp_path.glob("wandb/*/files/media/images/figures/samples_*.png"), key=lambda path: int(path.stem.split("_")[1]))
    assert len(media) == 2
    np.testing.assert_array_equal(np.asarray(Image.open(media[-1])), np.asarray(Image.open(tmp_path / "figures" / "samples.png")))

    summary = {key: value for record in found if record["type"] == "summary" for key, value in record["summary"]["update"].items()}
    assert summary["test/elbo"] == pytest.approx(test["test/elbo"])
    assert found[-1]["exit"]["exit_code"] == 3


def test_nothing_of_the_machine_is_in_a_wandb_run(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    logger = WandB(tmp_path)
    logger.log_hyperparams({"seed": 0})
    logger.finish({})
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert list(run.glob("files/*")) == []  # no requirements, no system metadata, no output
    assert not (run / "logs").exists()
    assert socket.gethostname() not in (r["run"]["host"] for r in records(tmp_path) if r["type"] == "run")
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_without_a_key_wandb_is_offline_says_so_and_asks_nothing(
    tmp_path: Path, machine: pytest.MonkeyPatch, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.setenv("WANDB_BASE_URL", server)
    machine.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    for wanted in (None, "online"):
        assert WandB(tmp_path, mode=wanted).mode == "offline"
        assert "W&B: offline, because there is no key" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["environment", "netrc"])
def test_with_a_key_and_a_server_wandb_is_online(tmp_path: Path, machine: pytest.MonkeyPatch, server: str, source: str) -> None:
    machine.setenv("WANDB_BASE_URL", server)
    if source == "environment":
        machine.setenv("WANDB_API_KEY", "0" * 40)
    else:
        (tmp_path / "netrc").write_text(f"machine {server.removeprefix('http://')} login user password {'0' * 40}\n")
    assert WandB(tmp_path).mode == "online"


def test_a_server_that_refuses_the_run_makes_it_offline(tmp_path: Path, machine: pytest.MonkeyPatch, server: str) -> None:
    machine.setenv("WANDB_BASE_URL", server)
    machine.setenv("WANDB_API_KEY", "0" * 40)
    logger = WandB(tmp_path)
    logger.log_hyperparams({"seed": 1})
    logger.finish({"test/elbo": -1.0})
    assert logger.mode == "offline"
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def hang(*_: Any, **__: Any) -> None:
    """The look-up of a name that nobody answers."""
    sleep(5)
    raise OSError("no such name")


def test_a_key_without_a_network_costs_two_seconds_at_most(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    machine.setenv("WANDB_API_KEY", "0" * 40)
    machine.setenv("WANDB_BASE_URL", closed_address())
    assert WandB(tmp_path).mode == "offline"
    machine.setattr(connection, "urlopen", hang)
    started = perf_counter()
    assert WandB(tmp_path).mode == "offline"
    assert perf_counter() - started < 3  # two seconds and a slow machine


@pytest.mark.parametrize("said", ["offline", "disabled"])
def test_wandb_mode_is_honoured(tmp_path: Path, machine: pytest.MonkeyPatch, server: str, said: str) -> None:
    machine.setenv("WANDB_API_KEY", "0" * 40)
    machine.setenv("WANDB_BASE_URL", server)
    machine.setenv("WANDB_MODE", said)
    assert WandB(tmp_path).mode == said


def test_a_disabled_run_takes_everything_and_writes_nothing(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    logger = WandB(tmp_path, mode="disabled")
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"val/elbo": -1.0}, 2)
    send_picture(logger, "figures/x", np.zeros((4, 4, 3), np.uint8), 2)
    logger.finish({"test/elbo": -1.0})
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_logger_that_was_never_used_starts_no_run_at_its_end(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    WandB(tmp_path).finish({"test/elbo": -1.0})
    assert not (tmp_path / "wandb").exists()


def test_tensorboard_has_the_metrics_and_the_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = instantiate(composed("logger=tensorboard").logger.tensorboard, save_dir=str(tmp_path))
    logger.log_hyperparams({"model": {"sizes": [8, 8]}, "seed": 0})
    trained(tmp_path, [MetricsFile(), Pictures(every_n_epochs=2)], [logger])
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    columns = read_metrics(tmp_path / "metrics.csv")
    assert [event.step for event in events.Scalars("val/elbo")] == columns["step"]
    np.testing.assert_allclose([event.value for event in events.Scalars("val/elbo")], columns["val/elbo"], rtol=1e-6)  # float32
    (picture,) = events.Images("figures/samples")
    assert picture.step == 4


def test_several_loggers_at_once(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    nodes = composed("logger=[csv,wandb,tensorboard]", "name=several").logger
    loggers = [instantiate(node, save_dir=str(tmp_path)) for node in nodes.values()]
    assert len(loggers) == 2
    trainer, _ = trained(tmp_path, [MetricsFile(), Pictures(every_n_epochs=2)], loggers)
    finish(trainer.loggers, {})
    assert len(read_metrics(tmp_path / "metrics.csv")["step"]) == 3
    assert len(list(tmp_path.glob("events.out.tfevents*"))) == 1
    assert len(records(tmp_path)) > 0


def test_csv_is_no_logger_of_its_own() -> None:
    assert dict(composed("logger=csv").logger) == {}
