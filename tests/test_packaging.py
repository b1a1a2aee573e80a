"""The wheel: built, installed into an environment that has the dependencies and not this checkout, and run from a folder of its own."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[1]
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


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_dependency_that_the_tests_run_with_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in needed}
    assert names <= set(pins())


def test_the_pins_name_no_build_and_no_place() -> None:
    for version in pins().values():
        assert re.fullmatch(r"\d[\w.]*", version), "a local version or an address is of one machine only"
