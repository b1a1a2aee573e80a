"""The first hour of a new user: `walk.sh` in an empty folder, with the installed wheel and the files that the README shows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from test_packaging import installed, wheel  # noqa: F401  fixtures
from test_readme import block

WALK = Path(__file__).with_name("walk.sh")
FILES = {
    "my_likelihood.py": "python",
    "my_objective.py": "python",
    "conf/likelihood/laplace.yaml": "yaml",
    "conf/objective/capacity.yaml": "yaml",
}
NOTEBOOK = (  # the README's lines, with the folder and the rows of the walk
    "import numpy as np\nraw = np.load('digits.npy')[:5]\n",
    "assert z.shape == (5, run.model.latent_dim) and isinstance(z, np.ndarray)\n",
)
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def walked(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder after the walk."""
    folder = tmp_path_factory.mktemp("walk")
    for name, language in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block(language, f"# {name}"))
    look = block("python", "import lowerbound\n\nrun = ").replace("outputs/vae_digits/2026-01-31_12-00-00", "first")
    (folder / "notebook.py").write_text(look.join(NOTEBOOK) + block("python", "from lowerbound.estimators"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HYDRA"))}
    environment = clean | {"PATH": f"{installed}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([WALK], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout)
    (folder / "errors").write_text(done.stderr)
    return folder


def test_the_users_own_rows_are_trained_on_and_coded(walked: Path) -> None:
    results = json.loads((walked / "first" / "results.json").read_text())
    assert results["test/elbo"] == pytest.approx(results["test/reconstruction"] - results["test/kl"], abs=1e-4)
    for name in ("config.yaml", "weights.ckpt", "last.ckpt", "metrics.csv", "report.html"):
        assert (walked / "first" / name).stat().st_size > 0, name
    with (walked / "codes.csv").open() as file:
        assert len(list(csv.reader(file))) == len(np.load(walked / "digits.npy"))


def test_the_users_own_parts_are_opened_by_whoever_trusts_them(walked: Path) -> None:
    assert "lowerbound.load(folder, trust=['my_likelihood'])" in (walked / "errors").read_text(), "refused where nobody says so"
    evidence = json.loads((walked / "mine" / "evaluation.json").read_text())["evidence"]
    assert all(np.isfinite(row["mean"]) for row in evidence)


def test_a_sweep_given_twice_is_run_once(walked: Path) -> None:
    assert len(list((walked / "outputs" / "sizes").glob("*/results.json"))) == 2
    assert (walked / "printed").read_text().count("has finished: nothing to run") == 2
