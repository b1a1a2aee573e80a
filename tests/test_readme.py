"""The README is run: its commands train, those for other machines compose, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from compositions import answered
from lowerbound.data import InMemory
from zoo import CONF, composed

README = (CONF.parent / "README.md").read_text(encoding="utf-8")
SHELL = [line.partition("#")[0].strip() for line in re.findall(r"^\$ (.*)$", README, re.MULTILINE)]
COMMANDS = [line for line in SHELL if line.startswith("lowerbound-train") and "resume=" not in line]
COMMANDS += [
    re.sub(r".*(lowerbound-train|submit.sh)", "lowerbound-train", line) for line in SHELL if re.match("torchrun.*-train|sbatch", line)
]
COMMANDS += re.findall(r"`(lowerbound-train [^`]*=[^`]*)`", README)

# What trains in a second. Experiments, parts of one's own, several devices and searches are run by the tests of each; here is no GPU.
PLAIN = [command for command in COMMANDS if not re.search("experiment=|trainer=|hydra/|--config-dir", command)]
QUICK = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "~callbacks.pictures", "hydra.run.dir=run")


def block(language: str, first: str) -> str:
    """The code block whose first line is `first`."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if text.startswith(first))


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config-dir" not in command and command not in PLAIN])
def test_every_other_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if not re.match(r"-|\S+=(tag|choice)\(", word)]
    assert composed(*[re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in words]), "of a sweep, its first values"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name."""
    folder, rng = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    np.save(folder / "faces.npy", rng.random((60, 560)))
    names = [f"x{i}" for i in range(13)]
    rows = [[*map(str, row), str(i % 3)] for i, row in enumerate(rng.random((60, 13)))]
    (folder / "table.csv").write_text("\n".join(",".join(row) for row in [[*names, "class"], *rows]))
    return folder


@pytest.mark.parametrize("command", PLAIN)
def test_every_command_trains(command: str, place: Path) -> None:
    words = [re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in shlex.split(command)[1:] if word != "--multirun"]
    has_sizes = OmegaConf.select(composed(*words), "network.encoder.sizes") is not None
    answer = answered(place, "lowerbound-train", *words, *QUICK, *(["network.encoder.sizes=[16]"] if has_sizes else []))
    assert answer.code == 0, answer.err
    assert (place / "run" / "results.json").is_file()
    rmtree(place / "run")


@pytest.mark.parametrize("line", re.findall(r"^\$ .*?lowerbound-((?:evaluate|predict|report) .*?)(?:  .*)?$", README, re.MULTILINE))
def test_every_command_on_run_folders_composes(line: str) -> None:
    name, folder, *words = shlex.split(line)
    key = "folder" if name == "report" else "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(name, [f"{key}={folder}", *words])[key] == folder


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With data made beforehand."""
    monkeypatch.chdir(tmp_path)
    example = block("python", "import lowerbound\nfrom lowerbound.objectives").replace("max_epochs=100", "max_epochs=1")
    example = example.replace("max_epochs=10)", "max_epochs=1)")
    x = np.random.default_rng(0).random((50, 784)).astype("float32")
    exec(example, {"my_datamodule": InMemory(x[:40].round()), "array": x[:, :6]})
