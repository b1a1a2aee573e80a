"""What the package declares that it needs."""

import re
import tomllib
from itertools import chain
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


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
