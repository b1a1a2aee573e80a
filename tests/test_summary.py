"""The table of a sweep: means over seeds, their intervals, what is best and what may be compared; and its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from scipy import stats

import commands
from lowerbound import cli
from lowerbound.runs import read_runs
from lowerbound.summary import Cell, rises, tables
from lowerbound.sweep_report import summarize

DENSITY: dict[str, Any] = {"measure": "densities of real data", "data": {"kind": "Digits"}, "seconds": 1.0, "monitor": "val/elbo"}


def write(folder: Path, overrides: list[str], results: dict[str, Any] | None) -> Path:
    place = folder / ",".join(overrides)
    (place / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), place / ".hydra" / "overrides.yaml")
    if results is not None:
        (place / "results.json").write_text(json.dumps(results))
    return place


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two values of beta with three seeds each, of which one failed."""
    folder = tmp_path / "a_b%"
    for beta, elbos in (("1", (10.0, 11.0, 13.0)), ("4", (20.0, 21.0))):
        for seed, elbo in enumerate(elbos):
            numbers = {"test/elbo": elbo, "test/kl": 5.0 + seed, "test/reconstruction": elbo + 5.0 + seed, "test/loss": -elbo}
            place = write(folder, [f"objective.beta={beta}", f"seed={seed}"], DENSITY | numbers)
            OmegaConf.save(OmegaConf.create({"objective": {"beta": float(beta)}}), place / "config.yaml")
    failed = write(folder, ["objective.beta=4", "seed=2"], None)
    (failed / "failure.txt").write_text("ValueError: the loss is nan\nand more\n")
    return folder


def test_the_interval_is_that_of_students_t() -> None:
    values = [10.0, 11.0, 13.0]
    cell = Cell.of(values)
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx((low, high), rel=1e-12)  # type: ignore[operator]
    assert Cell.of([2.0]).half_width is None


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (12.34567, 0.0234, "12.346 ± 0.023"),
        (1234.5, 67.0, "1234 ± 67"),
        (-0.5, 2.0, "-0.5 ± 2.0"),
        (3.0, None, "3"),
        (0.9734, 0.0, "0.9734 ± 0"),
    ],
)
def test_a_cell_has_the_decimals_that_its_interval_can_bear(mean: float, half_width: float | None, text: str) -> None:
    assert str(Cell(mean, half_width, 2)) == text


def test_a_line_is_a_configuration_over_its_seeds(sweep: Path) -> None:
    (table,) = tables(read_runs(sweep))
    first, second = table.lines
    assert (first.name, second.name) == ("objective.beta=1", "objective.beta=4")
    assert first.cells["test/elbo"].mean == pytest.approx(34 / 3)
    assert (second.cells["test/elbo"].count, len(second.failed)) == (2, 1)
    assert table.columns == ["test/elbo", "test/reconstruction", "test/kl", "test/loss", "seconds"]


def test_only_what_says_how_good_a_model_is_has_a_best(sweep: Path) -> None:
    (table,) = tables(read_runs(sweep))
    assert [line.best for line in table.lines] == [frozenset(), frozenset({"test/elbo"})]
    assert [rises(f"test/{name}") for name in ("log_evidence", "imputation_rmse", "reconstruction", "kl", "loss")] == [
        True,
        False,
        None,
        None,
        None,
    ]
    assert rises("evidence/IWAE-5000 of 10,000 data") is True
    assert rises("study/data_accuracy") is None, "a study may measure the data"
    assert rises("seconds") is None


def test_a_density_that_only_its_floor_limits_is_marked_and_not_ranked(sweep: Path) -> None:
    best = next(run for run in read_runs(sweep) if run.number("test/elbo") == 21.0)
    (best.folder / "results.json").write_text(json.dumps(best.results | {"is_floored": True}))  # type: ignore[operator]
    (table,) = tables(read_runs(sweep))
    assert [line.best for line in table.lines] == [frozenset(), frozenset()], "of two lines one is left, which is no ranking"
    assert "2 (1 failed, 1 at the variance floor)" in "\n".join(summarize(sweep))


def test_densities_and_probabilities_never_share_a_ranking(sweep: Path) -> None:
    write(
        sweep,
        ["likelihood=bernoulli", "objective.beta=1", "seed=0"],
        DENSITY | {"measure": "probabilities of discrete data", "test/elbo": -90.0},
    )
    other = write(
        sweep, ["data.prepare.levels=9", "objective.beta=1", "seed=0"], DENSITY | {"data": {"kind": "Digits", "preparation": ["x"]}}
    )
    found = tables(read_runs(sweep))
    assert sorted(len(table.lines) for table in found) == [1, 1, 2]
    assert {table.measure for table in found} == {"densities of real data", "probabilities of discrete data"}
    assert other.name


def test_a_failed_run_stands_with_the_others_of_its_configuration(sweep: Path) -> None:
    """Its own folder cannot say of what kind its densities would have been."""
    write(sweep, ["likelihood=bernoulli", "seed=0"], DENSITY | {"measure": "probabilities of discrete data"})
    write(sweep, ["likelihood=bernoulli", "seed=1"], None)
    _, bits = sorted(tables(read_runs(sweep)), key=lambda table: table.measure)
    (line,) = bits.lines
    assert (len(line.runs), len(line.failed)) == (2, 1)


def test_evidence_is_a_column_where_it_was_evaluated(sweep: Path) -> None:
    units = {"latent": {"units": {"active": 7}}}
    found = (("IWAE-100", 2.0, 1000), ("IWAE-10", 1.0, 1000), ("IWAE-100", 7.0, 50))
    others = {"standard_error": 0.1, "is_bound": True, "bits_per_dimension": None, "effective": None, "seconds": 1.0}
    rows = [{"quantity": name, "mean": mean, "num_data": count} | others for name, mean, count in found]
    run = read_runs(sweep)[0]
    (run.folder / "evaluation.json").write_text(json.dumps({"evidence": rows} | units))
    (table,) = tables(read_runs(sweep))
    evidence = [key for key in table.columns if key.startswith("evidence")]
    assert evidence == ["evidence/IWAE-10 of 1,000 data", "evidence/IWAE-100 of 1,000 data", "evidence/IWAE-100 of 50 data"]
    assert table.lines[0].cells["latent/active_units"].mean == 7
    assert table.lines[0].cells["evidence/IWAE-100 of 1,000 data"] == Cell(2.0, None, 1), "other rows are another column"


def test_a_seed_that_diverged_is_told_and_makes_no_configuration_the_best(sweep: Path) -> None:
    """Left out without a word, it would make the mean of the others the best."""
    run = next(run for run in read_runs(sweep) if run.number("test/elbo") == 20.0)
    (run.folder / "results.json").write_text(json.dumps(run.results | {"test/elbo": float("nan")}))  # type: ignore[operator]
    (table,) = tables(read_runs(sweep))
    assert table.lines[1].cells["test/elbo"] == Cell(21.0, None, 1)
    assert [line.best for line in table.lines] == [frozenset(), frozenset()]
    assert "2 (1 failed, 1 with numbers that are not finite)" in "\n".join(summarize(sweep))


def test_of_an_error_the_least_is_the_best(tmp_path: Path) -> None:
    for fraction, error in (("1", 0.3), ("2", 0.1)):
        write(tmp_path, [f"latent_dim={fraction}", "seed=0"], DENSITY | {"test/imputation_rmse": error})
    (table,) = tables(read_runs(tmp_path))
    assert [line.best for line in table.lines] == [frozenset(), frozenset({"test/imputation_rmse"})]


def test_other_data_stand_in_another_table_and_other_batches_do_not(tmp_path: Path) -> None:
    """What was configured decides, since counts and dimensions may be alike."""
    for i, data in enumerate(({"path": "a.csv"}, {"path": "b.csv"}, {"path": "b.csv", "batch_size": 7, "seed": 3})):
        place = write(tmp_path, [f"k={i}"], DENSITY | {"test/elbo": float(i)})
        OmegaConf.save(OmegaConf.create({"data": data}), place / "config.yaml")
    assert [[line.name for line in table.lines] for table in tables(read_runs(tmp_path))] == [["k=0"], ["k=1", "k=2"]]


def test_another_split_is_no_other_seed(sweep: Path) -> None:
    """The test rows are others: it is a configuration of its own."""
    write(sweep, ["objective.beta=1", "seed=0", "data.split_seed=5"], DENSITY | {"test/elbo": 1.0})
    assert "data.split_seed=5" in {line.name.split()[-1] for table in tables(read_runs(sweep)) for line in table.lines}


def test_damaged_files_are_told_and_take_no_report_down(sweep: Path) -> None:
    first, second, *_ = read_runs(sweep)
    (first.folder / "results.json").write_text('{"test/elb')
    (second.folder / "evaluation.json").write_text("{")
    (second.folder / "metrics.csv").write_text("step,val/elbo\n1,2.5\n2,3.5\n3")
    failed = next(run for run in read_runs(sweep) if "failed" in run.state)
    (failed.folder / "failure.txt").write_text("")
    out = list(summarize(sweep))
    assert f"{first.name}: results.json is damaged" in out
    assert f"{failed.name}: failed: it does not say why" in out
    assert "4 of 6 runs finished" in out
    assert (sweep / "learning_curves.png").is_file()


def test_what_failed_after_it_had_results_has_failed(sweep: Path) -> None:
    run = read_runs(sweep)[0]
    (run.folder / "failure.txt").write_text("ValueError: later\n")
    assert read_runs(sweep)[0].state == "failed: ValueError: later"


def test_names_that_mean_something_to_others_are_told_as_they_are(tmp_path: Path) -> None:
    for name in ("a$b^$", "x|y", "<i>"):
        place = write(tmp_path, [f"data.path={name}", "seed=0"], DENSITY | {"test/elbo": 1.0})
        (place / "metrics.csv").write_text("step,val/elbo\n1,2.5\n2,3.5\n")
    list(summarize(tmp_path))
    assert r"data.path=x\|y" in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "<i>" not in page
    assert 'data-sort="1.0"' in page, "columns sort by their means"


def test_the_files_for_a_paper(sweep: Path) -> None:
    printed = list(summarize(sweep))
    assert printed[-3:-1] == ["objective.beta=4 seed=2: failed: ValueError: the loss is nan", "5 of 6 runs finished"]
    assert printed[-1].endswith("report.html")
    rows = list(csv.DictReader((sweep / "table.csv").open()))
    assert [(row["configuration"], row["runs"], row["failed"]) for row in rows] == [
        ("objective.beta=1", "3", "0"),
        ("objective.beta=4", "3", "1"),
    ]
    assert float(rows[0]["test/elbo"]) == pytest.approx(34 / 3, rel=1e-15)
    half_width = 4.302652729749464 * stats.tstd([10, 11, 13]) / 3**0.5  # t of 2 degrees of freedom
    assert float(rows[0]["test/elbo ± 95%"]) == pytest.approx(half_width, rel=1e-9)
    markdown = (sweep / "table.md").read_text()
    assert "**20.5 ± 6.4**" in markdown
    assert "2 (1 failed)" in markdown
    latex = (sweep / "table.tex").read_text()
    assert r"\textbf{20.5 $\pm$ 6.4}" in latex
    assert latex.count(r"\\") == 3
    assert "objective.beta=1" in latex


def test_what_means_something_to_tex_is_escaped(tmp_path: Path) -> None:
    for name in ("50%_a&b", "c"):
        write(tmp_path, [f"name_of={name}"], DENSITY | {"test/elbo": 1.0})
    list(summarize(tmp_path))
    assert r"name\_of=50\%\_a\&b" in (tmp_path / "table.tex").read_text()


def test_the_same_tables_and_pictures_go_to_wandb(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = commands.called("lowerbound-report", cli.report, sweep.parent, monkeypatch, capsys)
    code, out, _ = command("a_b%", "logger=wandb")
    assert code == 0
    assert "**20.5 ± 6.4**" in out
    (table,) = sweep.glob("wandb/*/files/media/table/**/*.table.json")
    assert json.loads(table.read_text())["data"][1][:3] == ["objective.beta=4", "2 (1 failed)", "20.5 ± 6.4"]
    assert list(sweep.glob("wandb/*/files/media/images/figures/rate_distortion_*.png"))


def test_a_folder_that_is_no_sweep_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = commands.called("lowerbound-report", cli.report, tmp_path, monkeypatch, capsys)
    (tmp_path / "empty").mkdir()
    code, _, err = command("empty")
    assert (code, len(err.splitlines())) == (2, 2)
    assert "there is no run in it" in err
    code, _, err = command()
    assert code == 2
    assert "folder" in err
    code, _, err = command("empty", "absent")
    assert code == 2
    assert "give one folder, not several" in err
    code, _, err = command("absent")
    assert code == 2
    assert "there is no such folder" in err


def test_a_folder_without_runs_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run in it"):
        list(summarize(tmp_path))
