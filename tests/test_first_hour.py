"""The wheel, and the first hour of a new user with it: `walk.sh` in an empty folder, with the files that the README shows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from test_readme import block

REPOSITORY = Path(__file__).parents[1]
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
ESTIMATORS = """
assert z.shape == (1797, search.best_params_["ppca__n_components"])
assert np.isfinite(bound).all() and bound.shape == (100,)
assert new.shape == (16, 64)
"""
REFUSED = """
try:
    lowerbound.load("mine")
except ValueError as error:
    print(error)
"""
pytestmark = pytest.mark.process


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def environment() -> dict[str, str]:
    """Without what would put the checkout on the path of Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HYDRA"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executables of a new environment with the wheel, which finds the dependencies in the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # read after, and without the .pth files in it
    return folder / "bin"


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    conf = {f"lowerbound/conf/{path.relative_to(REPOSITORY / 'conf').as_posix()}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    source = REPOSITORY / "src"
    files = [*source.rglob("*.py"), *source.glob("lowerbound/templates/*"), source / "lowerbound" / "py.typed"]
    code = {path.relative_to(source).as_posix() for path in files}
    assert "hydra_plugins/lowerbound.py" in code, "where Hydra finds the launchers and the sweeper"
    assert conf
    assert {name for name in names if ".dist-info/" not in name} == conf | code


@pytest.fixture(scope="module")
def walked(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after the walk."""
    folder = tmp_path_factory.mktemp("walk")
    for name, language in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block(language, f"# {name}"))
    look = block("python", "import lowerbound\n\nrun = ").replace("outputs/vae_digits/2026-01-31_12-00-00", "first")
    estimators = block("python", "from lowerbound.estimators").replace("max_epochs=20", "max_epochs=2")
    (folder / "notebook.py").write_text(look.join(NOTEBOOK) + estimators + ESTIMATORS + REFUSED)
    here = environment() | {"PATH": f"{installed}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([WALK], cwd=folder, env=here, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_users_own_rows_are_trained_on_and_coded(walked: Path) -> None:
    results = json.loads((walked / "first" / "results.json").read_text())
    assert results["test/elbo"] == pytest.approx(results["test/reconstruction"] - results["test/kl"], abs=1e-4)
    for name in ("config.yaml", "weights.ckpt", "last.ckpt", "metrics.csv", "report.html"):
        assert (walked / "first" / name).stat().st_size > 0, name
    with (walked / "codes.csv").open() as file:
        assert len(list(csv.reader(file))) == len(np.load(walked / "digits.npy"))


def test_the_users_own_parts_are_opened_by_whoever_trusts_them(walked: Path) -> None:
    assert "lowerbound.load(folder, trust=['my_likelihood'])" in (walked / "printed").read_text(), "refused where nobody says so"
    evidence = json.loads((walked / "mine" / "evaluation.json").read_text())["evidence"]
    assert all(np.isfinite(row["mean"]) for row in evidence)


def test_a_sweep_is_made_and_looked_at(walked: Path) -> None:
    assert len(list((walked / "outputs" / "sizes").glob("*/results.json"))) == 2
    assert "finished" in (walked / "printed").read_text()
