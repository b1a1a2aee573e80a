"""The house: every file has a floor, imports do not go upstairs or in circles, and files and functions stay short."""

import ast
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lowerbound"

FLOORS = (
    "_scipy _torchvision errors kinds sizes instantiate distributions networks schedules randomness statistics conditioning answers seeding"
    " defaults wording preemption checkpoints durable devices one_folder local_queue own_files"
    " data.source data.steps data.prepare",
    "parts data.batches data.missing data.module",
    "priors likelihoods posteriors linear_gaussian covariances dense_covariances mixture data.images data.tables",
    "model models data.synthetic data.__init__",
    "objectives bounds annealing aggregate metrics starts axes linear_objectives equations",
    "fit gradient solve em plots em_plots ladder_plots linear_plots study_plots folder component_plots latent_plots sweep_plots ranks"
    " resuming claim trust nonfinite",
    "callbacks pictures tracking studies amortization decoding maximum_likelihood expectation codes imputing principal stories"
    " identities components circumstances report runs connection faults",
    "run loaded",
    "__init__ sweep rungs ladder_linear_vae ladder_rows ladder_checks ladder evidence baselines evaluation prediction"
    " latent_space summary sweep_report trials sweep_status jobs launcher estimator estimators",
    "commands explaining sweepers cli slurm",
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names.split()}
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(name: str) -> set[str]:
    """The files that importing or running this file imports: all but what only the type checker sees."""
    module = tree(name)
    for_types = {id(inner) for node in ast.walk(module) if is_type_checking(node) for inner in ast.walk(node)}
    found = names_in(node for node in ast.walk(module) if id(node) not in for_types)
    return {file_of(target) for target in found if target.split(".")[0] == "lowerbound"} - {name}


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The dotted names that the import statements among the nodes import."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{ast.unparse(node)}: an import relative to its own place"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def file_of(target: str) -> str:
    """The file that defines a dotted name: the longest beginning of the name that is a file, or a folder's ``__init__``."""
    segments = target.split(".")[1:]
    for end in range(len(segments), -1, -1):
        for name in (".".join(segments[:end]), ".".join([*segments[:end], "__init__"])):
            if name in FILES:
                return name
    raise AssertionError(f"{target} is no file of ours")


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def functions() -> dict[str, int]:
    """The length of every function, by file and line."""
    return {
        f"{name}:{node.lineno} {node.name}": lines_of(node)
        for name in FILES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_file_has_a_floor_and_every_floor_its_files() -> None:
    assert set(FILES) == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_imports_do_not_go_upstairs(name: str) -> None:
    upstairs = {other: FLOOR[other] for other in imported(name) if FLOOR[other] > FLOOR[name]}
    assert not upstairs, f"{name} is on floor {FLOOR[name]}"


def test_imports_do_not_go_in_circles() -> None:
    order = list(TopologicalSorter({name: imported(name) for name in FILES}).static_order())
    assert len(order) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 300


def test_functions_are_short() -> None:
    lengths = functions()
    assert {where: length for where, length in lengths.items() if length > 45} == {}
    assert quantiles(lengths.values(), n=10)[-1] <= 30
    assert median(lengths.values()) <= 12


@cache
def at_once(name: str) -> set[str]:
    """The packages of others that importing this file imports, itself and by others of ours."""
    names = names_in(tree(name).body)
    ours = {target for target in names if target.split(".")[0] == "lowerbound"}
    return {target.split(".")[0] for target in names - ours}.union(*(at_once(file_of(target)) for target in ours))


def test_looking_at_a_sweep_does_not_wait_for_lightning() -> None:
    assert "torch" in at_once("sweep_status")
    assert not {"lightning", "torchmetrics", "matplotlib", "sklearn", "optuna"} & at_once("sweep_status")
    assert "lightning" in at_once("run")


def test_the_rules_see_what_they_forbid() -> None:
    assert imported("model") >= {"parts", "distributions"}
    assert "model" not in imported("parts"), "parts names the model for the type checker only"
    assert file_of("lowerbound.data.prepare.Preparation") == "data.prepare"
    assert file_of("lowerbound.data.Digits") == "data.__init__"
    source = 'def f():\n    "one\\\n    two"\n    a = 1\n    return a\n'
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert lines_of(function) == 3
