"""Files of others that are none, or not what their names say: nothing is fetched, nothing waits, and the answer is three lines."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from html import unescape
from io import BytesIO
from pathlib import Path
from shutil import copytree
from struct import pack
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from omegaconf import OmegaConf
from PIL import Image, PngImagePlugin

import commands
import lowerbound
from lowerbound import runs, summary, sweep_report, sweep_status
from lowerbound.data import Table, TorchvisionImages
from lowerbound.durable import DurableCheckpoints
from lowerbound.evaluation import data_of
from lowerbound.explaining import explain
from lowerbound.folder import write_whole
from lowerbound.plots import make_figure, save
from lowerbound.report import write_report
from lowerbound.sweep_report import as_latex, as_markdown, summarize
from lowerbound.sweep_status import describe
from lowerbound.tracking import WandB

ESCAPE = "\x1b]0;mine\x07\x9b31m\x1b]52;c;aWQ=\x07"  # a terminal's title, its colour, its clipboard
IMAGES = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model is in closed form."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        small = ("model=ppca", "latent_dim=2", "~callbacks.pictures", "hydra.run.dir=run")
        assert commands.train(place, patch, *small) == 0
    return place / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which came from elsewhere."""
    return Path(copytree(finished, tmp_path / "stranger"))


def sweep(folder: Path, name: str = "seed", measure: str | None = None) -> Path:
    """Two runs, the second of which failed."""
    for seed in (1, 2):
        (folder / f"{seed}" / ".hydra").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create([f"{name}={seed}"]), folder / f"{seed}" / ".hydra" / "overrides.yaml")
    (folder / "1" / "results.json").write_text(json.dumps({"test/elbo": 1.0, "measure": measure}))
    (folder / "2" / "failure.txt").write_text(f"a fault{ESCAPE}\n")
    return folder


def configured(folder: Path, key: str, value: Any) -> None:
    """The folder with something else in a place of its configuration."""
    config = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))


# What is no data.


def gzipped(path: Path) -> None:
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(b"1,2\n3,4\n"))


def archive(flags: int = 0, method: int = 0) -> Callable[[Path], None]:
    """An ``.npz`` that says of itself that it is encrypted, or packed in a way that nobody knows."""

    def write(path: Path) -> None:
        file = BytesIO()
        np.savez(file, x=np.ones((4, 2)))
        content = bytearray(file.getvalue())
        entry = content.find(b"PK\x01\x02")
        content[6] |= flags
        content[entry + 8] |= flags
        if method:
            content[8] = content[entry + 10] = method
        path.write_bytes(content)

    return write


def packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("x.npy", b"\x93NUMPY")


NO_DATA: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cannot be read: No such file": ("x.csv", gzipped),
    "cannot be read: it is no file": ("x.csv", os.mkfifo),
    "cannot be read: it is no file.": ("x.npy", os.mkfifo),
    "is encrypted": ("x.npz", archive(flags=1)),
    "packed by method 99": ("x.npz", archive(method=99)),
    "packed by method 14": ("x.npz", packed),
    "field larger than field limit": ("x.csv", lambda path: path.write_text("1" * 200_000)),
    "from 2 to 1 at row 3": ("x.csv", lambda path: path.write_text("1,2\n\n3,4\n5\n")),
}


@pytest.mark.parametrize("said", NO_DATA)
def test_what_is_no_data_is_answered(said: str, tmp_path: Path) -> None:
    name, write = NO_DATA[said]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"data\.path=.*{name}.*{said.rstrip('.')}"):
        Table(path=str(tmp_path / name), dim=2).read()


def test_an_address_is_not_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("1,2\n")
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    for address in (f"file://localhost{tmp_path}/x.csv", "http://localhost:1/x.csv"):
        table = {"_target_": "lowerbound.data.Table", "path": address, "dim": 64, "prepare": {"_target_": "lowerbound.data.Preparation"}}
        with pytest.raises(ValueError, match=f"data.path={address} cannot be read: No such file"):
            Table(path=address, dim=2).read()
        configured(folder, "data", table)
        with pytest.raises(ValueError, match=f"data.path={address} cannot be read: No such file"):
            data_of(lowerbound.load(folder)).part("test")
    assert set(tmp_path.rglob("*")) == before


def test_labels_beside_an_npy_are_another(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with pytest.raises(ValueError, match="data.labels=/etc/passwd is no .npy"):
        Table(path=str(tmp_path / "x.npy"), labels="/etc/passwd", dim=2).read()


@pytest.mark.parametrize("download", [True, None])
def test_a_folder_that_is_evaluated_fetches_nothing(download: bool | None, folder: Path, tmp_path: Path) -> None:
    """Also where it does not say so, which is when such data are fetched."""
    images = {"_target_": "lowerbound.data.TorchvisionImages", "dataset": "MNIST", "dim": 64, "root": str(tmp_path / "elsewhere")}
    prepare = {"_target_": "lowerbound.data.Preparation", "levels": 256}
    configured(folder, "data", images | {"prepare": prepare} | ({} if download is None else {"download": download}))
    with pytest.raises(ValueError, match="MNIST is not in .*elsewhere"):
        data_of(lowerbound.load(folder)).part("test")
    assert not (tmp_path / "elsewhere").exists()


def test_images_that_are_none_are_answered(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IMAGES:
        (raw / name).write_bytes(bytes([0, 0, 99, 3]) + pack(">III", 1, 1, 1) + b"x")
    with pytest.raises(AssertionError):
        torchvision.datasets.MNIST(tmp_path)
    with pytest.raises(ValueError, match=r"MNIST is not in .* \(AssertionError\)"):
        TorchvisionImages(dataset="MNIST", root=str(tmp_path), download=False, dim=784).read()


# Damage.

DAMAGED: dict[str, tuple[Any, ...]] = {
    "results.json": (
        *([1], 3, {"test/elbo": "x"}, {"test/elbo": 10**400}, {"epochs": {}}, {"data": [1]}, {"data": {"train": "x"}}, {"seconds": "a"}),
        *({"data": {"preparation": 3}}, {"versions": [1]}, {"name": [1]}, {"remarks": 5}, {"devices": "a", "device": "b"}),
    ),
    "evaluation.json": ([1], {}, {"evidence": [1]}, {"evidence": [{}]}, {"evidence": [], "sentences": 5}, {"evidence": [], "latent": 5}),
    ".hydra/overrides.yaml": (5, {"a": 1}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_named(name: str, folder: Path) -> None:
    write_report(folder)
    for content in DAMAGED[name]:
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"{name} is damaged: ") as error:
            write_report(folder)
        assert len(str(error.value).splitlines()) <= 3


def saved(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """The folder with other weights."""
    checkpoint = torch.load(folder / "weights.ckpt", weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "weights.ckpt")


def cast(dtype: torch.dtype) -> Callable[[dict[str, Any]], object]:
    return lambda checkpoint: checkpoint.update(state_dict={key: value.to(dtype) for key, value in checkpoint["state_dict"].items()})


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format is 'x'": lambda checkpoint: checkpoint.update(format="x"),
    r"weights\.ckpt is ": lambda checkpoint: checkpoint.update({1: 2}),
    "state_dict is ": lambda checkpoint: checkpoint.update(state_dict=[1]),
    "state_dict is '{1": lambda checkpoint: checkpoint.update(state_dict={1: torch.zeros(1)}),
    r"state_dict: model\.x is '1'": lambda checkpoint: checkpoint["state_dict"].update({"model.x": 1}),
    "preparation is '3'": lambda checkpoint: checkpoint.update(preparation=3),
    r"preparation: steps\.0\.mean is '3'": lambda checkpoint: checkpoint.update(preparation={"steps.0.mean": 3}),
    r"config\.yaml is damaged: RuntimeError": lambda checkpoint: checkpoint.update(preparation={"nothing": torch.zeros(1)}),
    "is of torch.complex64": cast(torch.complex64),
    "is of torch.float8_e4m3fn": cast(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("said", CHECKPOINTS)
def test_a_checkpoint_of_another_shape_is_answered(said: str, folder: Path) -> None:
    saved(folder, CHECKPOINTS[said])
    with pytest.raises(ValueError, match=said) as error:
        lowerbound.load(folder)
    assert len(str(error.value).splitlines()) <= 3


TABLE = {"_target_": "lowerbound.data.Table", "path": "x.csv", "dim": 2}
PRIOR = {"_target_": "lowerbound.priors.StandardNormal", "latent_dim": 2}
CONFIGS = {
    "model of the run folder is a Table, and no LatentVariableModel": ("model", TABLE),
    "data.prepare of the run folder is a StandardNormal, and no Preparation": ("data.prepare", PRIOR),
    r"config.yaml is damaged: AttributeError": ("model.prior", PRIOR | {"_partial_": True}),
    r"likelihood.weight is \[64, 2\] and not \[1000000000000, 2\]": ("model.likelihood.data_dim", 10**12),
    r"config.yaml is damaged: |in model.likelihood": ("model.likelihood.data_dim", 10**30),
}


@pytest.mark.parametrize("said", CONFIGS)
def test_a_configuration_of_another_shape_is_answered(said: str, folder: Path) -> None:
    """Also of sizes that no machine has memory for."""
    configured(folder, *CONFIGS[said])
    with pytest.raises(ValueError, match=said) as error:
        lowerbound.load(folder)
    assert len(explain(error.value, [])) <= 3


def test_an_id_that_is_none_is_answered(tmp_path: Path) -> None:
    for told in ({"id": "../../evil", "step": 0}, {"id": "abc", "step": "x"}, {"id": 3, "step": 0}, {"step": 0}, 5):
        (tmp_path / ".wandb.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=r"\.wandb\.json is damaged"):
            WandB(tmp_path, mode="disabled")


def bomb() -> bytes:
    """A picture of 10^10 points without any."""
    file = BytesIO()
    for name, content in ((b"IHDR", pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")):
        PngImagePlugin.putchunk(file, name, content)
    return b"\x89PNG\r\n\x1a\n" + file.getvalue()


def test_pictures_that_are_none(folder: Path) -> None:
    (folder / "figures").mkdir()
    os.mkfifo(folder / "figures" / "pipe.png")
    assert write_report(folder), "which waits for none"
    (folder / "figures" / "x.png").write_bytes(bomb())
    with pytest.raises(ValueError, match=r"x\.png is no PNG picture: .*bomb"):
        write_report(folder)


# Sweeps.


def noted(folder: Path, *task: Any, hydra: Any = None) -> Path:
    """A sweep with Hydra's note of it."""
    sweep(folder)
    note = {"sweeper": {"_target_": "x.BasicSweeper", "params": None}, "overrides": {"task": list(task)}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra or note}))
    return folder


@pytest.mark.parametrize("hydra", [5, {"sweeper": 5}, {"sweeper": {"_target_": "x.BasicSweeper"}, "overrides": {"task": 5}}])
def test_a_damaged_note_of_a_sweep_is_named(hydra: Any, tmp_path: Path) -> None:
    noted(tmp_path, hydra=hydra)
    for read in (describe, summarize):
        with pytest.raises(ValueError, match=r"multirun\.yaml is damaged: "):
            list(read(tmp_path))


def test_a_failure_that_is_no_text_is_told(tmp_path: Path) -> None:
    (sweep(tmp_path) / "2" / "failure.txt").write_bytes(b"a fault \xff")
    assert "failed  seed=2: a fault \ufffd" in describe(tmp_path)
    assert "seed=2: failed: a fault \ufffd" in summarize(tmp_path)


def test_a_grid_is_not_taken_apart_before_it_is_known_how_large_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runs: 1 done, 1 failed, 2 not begun, of 4" in describe(noted(tmp_path / "grid", "seed=range(1,5)"))
    monkeypatch.setattr(runs.BasicSweeper, "split_arguments", lambda *_: pytest.fail("it is taken apart"))
    for i, task in enumerate((["seed=range(0,3000000000)"], ["a=range(0,1,1e-9)"], [f"{key}=range(0,3000)" for key in "abc"])):
        assert "runs: 1 done, 1 failed, of 2" in describe(noted(tmp_path / f"{i}", *task))


def test_no_line_commands_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of a report, nor of a status, nor of an answer."""
    folder = sweep(tmp_path / "mine", f"na{ESCAPE}me")
    sweep_status.status(OmegaConf.create({"folder": str(folder)}))
    sweep_report.report(OmegaConf.create({"folder": str(folder), "logger": None}))
    said = capsys.readouterr().out + "\n".join(explain(ValueError(f"model._target_={ESCAPE}\nx"), []))
    assert said.count("?]0;mine??31m?]52;c;aWQ=?") >= 4
    assert [c for c in said if not (c.isprintable() or c == "\n")] == []


def test_a_table_stays_a_table(tmp_path: Path) -> None:
    measure = "x\n\\input{/etc/passwd}\n%"
    folder = sweep(tmp_path, "=HYPERLINK(0)|<b>", measure)
    assert "/etc/passwd" in "\n".join(summarize(folder))
    found = summary.tables(runs.read_runs(folder))
    first, *_ = as_latex(found)
    assert first.startswith(r"% x \textbackslash{}input\{/etc/passwd\} \%, means over seeds")
    assert (folder / "table.tex").read_text().splitlines()[1].startswith(r"\begin{tabular}")
    first, *_, line, _, _ = as_markdown(found)
    assert first == measure.replace("\n", " ")
    assert line.startswith(r"| =HYPERLINK(0)\|\<b>=1 ")
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows[1:]] == ["'=HYPERLINK(0)|<b>=1", "'=HYPERLINK(0)|<b>=2"]
    assert rows[1][5] == "1.0", "a number is none"


# What is written.


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's, which stays as it is."""
    path = tmp_path / "thesis"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def test_nothing_is_written_through_a_second_name(others: Path, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "mine")
    for name in ("report.html", "table.csv", "table.md", "table.tex", "x.part", "x.png", "x.ckpt.part"):
        os.link(others, folder / name)
    save(make_figure(1, 1, "")[0], folder / "x.png")
    list(summarize(folder))
    write_whole(folder / "x", "new")
    DurableCheckpoints().save_checkpoint({}, folder / "x.ckpt")
    assert (folder / "x").read_text() == "new"
    assert Image.open(folder / "x.png").width


def test_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.part")
    write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


def test_what_is_there_to_be_copied_does_what_it_says(finished: Path, tmp_path: Path) -> None:
    name = "x\"); import os; os.system('id') #"
    folder = Path(copytree(finished, tmp_path / name))
    path = write_report(folder)
    assert path is not None
    page = unescape(path.read_text())
    (line,) = (line for line in page.splitlines() if "lowerbound.load(" in line)
    assert line.startswith(f"run = lowerbound.load({f'path/to/{name}'!r})  #")
    assert "lowerbound-train model=ppca" in page
    assert "only if it is yours" not in page
    for word in ("+callbacks.x={_target_: os.system}", "name=a\x1b[31m", "hydra.run.dir=/", "x=[", "-m"):
        OmegaConf.save(OmegaConf.create(["model=ppca", word]), folder / ".hydra" / "overrides.yaml")
        write_report(folder)
        page = path.read_text()
        assert "lowerbound-train model=ppca" not in page or "only if it is yours" in page
        assert "\x1b" not in page
