"""The README is run: its commands compose, its likelihood trains, its Python runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from zoo import CONF, composed

README = (CONF.parent / "README.md").read_text(encoding="utf-8")
SHELL = [line.partition("#")[0].strip() for line in re.findall(r"^\$ (.*)$", README, re.MULTILINE)]
COMMANDS = [line for line in SHELL if line.startswith("lowerbound-train") and "resume=" not in line]
COMMANDS += [
    re.sub(r".*(lowerbound-train|submit.sh)", "lowerbound-train", line) for line in SHELL if re.match("torchrun.*-train|sbatch", line)
]
COMMANDS += re.findall(r"`(lowerbound-train [^`]*=[^`]*)`", README)


def block(language: str, first: str) -> str:
    """The code block whose first line is `first`."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if text.startswith(first))


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config-dir" not in command])
def test_every_command_composes(command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if not re.match(r"-|\S+=(tag|choice)\(", word)]
    assert composed(*[re.sub(r"=([^\[{,]+),.*", r"=\1", word) for word in words]), "of a sweep, its first values"


@pytest.mark.parametrize("line", re.findall(r"^\$ .*?lowerbound-((?:evaluate|predict|report) .*?)(?:  .*)?$", README, re.MULTILINE))
def test_every_command_on_run_folders_composes(line: str) -> None:
    name, folder, *words = shlex.split(line)
    key = "folder" if name == "report" else "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(name, [f"{key}={folder}", *words])[key] == folder


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """With data, and with the run that it loads, made beforehand."""
    example = block("python", "import lowerbound\nfrom lowerbound.objectives").replace("max_epochs=100", "max_epochs=1")
    example = example.replace("max_epochs=10)", "max_epochs=1)")
    before = (
        "import lowerbound, torch\nfrom lowerbound.data import InMemory\n"
        "my_datamodule = InMemory(torch.rand(40, 784).round())\narray = torch.rand(50, 6)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", before + example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_estimators_of_the_readme_run() -> None:
    found: dict[str, Any] = {}
    exec(block("python", "from lowerbound.estimators").replace("max_epochs=20", "max_epochs=1"), found)
    assert np.shape(found["z"]) == (1797, found["search"].best_params_["ppca__n_components"])
    assert np.isfinite(found["bound"]).all()
    assert np.shape(found["new"]) == (16, 64)
