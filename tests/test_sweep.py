"""Sweeps: one command, its runs side by side; a run that fails is a line of the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from commands import Answer, Command
from lowerbound.plots import pixels
from lowerbound.runs import not_begun, read_runs
from lowerbound.study_plots import bars, stacked
from lowerbound.sweep import RateDistortion, table


@pytest.fixture
def command(without_training: Command) -> Command:
    """The command line, whose runs write results of their beta."""

    def run(*arguments: str, fails: Callable[[DictConfig], bool] = lambda cfg: False) -> Answer:
        def train(cfg: DictConfig) -> float:
            if fails(cfg):
                raise ValueError("no luck with this one")
            beta = float(cfg.objective.beta)
            numbers = {"test/elbo": -beta - 10 / beta, "test/kl": 10 / beta, "test/reconstruction": -beta}
            folder = Path(HydraConfig.get().runtime.output_dir)
            (folder / "failure.txt").unlink(missing_ok=True)
            OmegaConf.save(cfg, folder / "config.yaml")
            (folder / "results.json").write_text(json.dumps(numbers))
            return 0.0

        return without_training(*arguments, train=train)

    return run


def betas(answer: Answer) -> list[float]:
    return [cfg.objective.beta for cfg in answer.runs]


def sweep_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "rate_distortion").iterdir()
    return folder


def test_an_experiment_that_is_a_sweep_needs_no_flag(command: Command, tmp_path: Path) -> None:
    answer = command("experiment=rate_distortion")
    assert answer.code == 0
    assert betas(answer) == [0.25, 0.5, 1, 2, 4]
    folder = sweep_folder(tmp_path)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {f"objective.beta={beta:g}" for beta in betas(answer)}
    assert (folder / "rate_distortion.png").is_file()
    assert "picture: outputs/rate_distortion/" in answer.out


@pytest.mark.parametrize(
    ("name", "varied", "values"), [("sweep_beta", "objective.beta", [0.25, 0.5, 1, 2, 4, 8]), ("sweep_seeds", "seed", [0, 1, 2, 3, 4])]
)
def test_a_sweep_under_a_name_has_one_folder_however_often_it_is_started(
    command: Command, tmp_path: Path, name: str, varied: str, values: list[float]
) -> None:
    for words, expected in (((), values), ((f"{varied}={values[0]},{values[1]}",), values[:2])):
        answer = command(f"experiment={name}", *words)
        assert [OmegaConf.select(cfg, varied) for cfg in answer.runs] == expected
    assert {run.folder.name for run in read_runs(tmp_path / "outputs" / name)} == {f"{varied}={value:g}" for value in values}


def test_what_the_user_sweeps_over_stands_over_the_experiments(command: Command) -> None:
    assert betas(command("experiment=rate_distortion", "objective.beta=8,1", "-m")) == [8, 1]
    both = command("experiment=rate_distortion", "objective.beta=3", "latent_dim=2,4", "seed=3")
    assert [(cfg.objective.beta, cfg.latent_dim, cfg.seed) for cfg in both.runs] == [(3, 2, 3), (3, 4, 3)]
    assert "picture: outputs/rate_distortion/" in both.out, "two curves of one point each"


def test_a_run_that_fails_is_a_line_of_the_table(command: Command, tmp_path: Path) -> None:
    answer = command("experiment=rate_distortion", "objective.beta=1,2,4", fails=lambda cfg: cfg.objective.beta == 2)
    assert answer.code == 1
    assert betas(answer) == [1, 2, 4], "the others go on"
    lines = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line.startswith("  objective.beta")}
    assert lines == {
        "objective.beta=1": ["-11", "10", "-1"],
        "objective.beta=2": ["failed"] * 3,
        "objective.beta=4": ["-6.5000", "2.5000", "-4"],
    }
    assert "objective.beta=2" in answer.err
    assert "no luck with this one" in answer.err
    assert (sweep_folder(tmp_path) / "rate_distortion.png").is_file()


def test_a_sweep_of_which_nothing_is_left_has_a_table_and_no_picture(command: Command, tmp_path: Path) -> None:
    answer = command("experiment=rate_distortion", "objective.beta=1,2", fails=lambda cfg: True)
    assert answer.code == 1
    assert answer.out.count("failed  failed") == 2
    assert not list(sweep_folder(tmp_path).glob("*.png"))


def test_any_sweep_ends_with_a_report(command: Command, tmp_path: Path) -> None:
    answer = command(
        "--multirun", "objective.beta=1,2", "seed=0,1", "sweep=mine", fails=lambda cfg: cfg.seed == 1 and cfg.objective.beta == 2
    )
    assert answer.code == 1
    assert len(answer.runs) == 4, "the others go on"
    assert answer.out.splitlines()[-1] == "report: outputs/mine/report.html"
    (failed,) = [run for run in read_runs(tmp_path / "outputs" / "mine") if run.results is None]
    assert failed.state == "failed: ValueError: no luck with this one"


def test_what_failed_once_and_then_ran_is_finished(command: Command, tmp_path: Path) -> None:
    for fails in (True, False):
        command("--multirun", "objective.beta=1", "sweep=mine", fails=lambda cfg, fails=fails: fails)
    (run,) = read_runs(tmp_path / "outputs" / "mine")
    assert run.state == "finished"


def test_runs_that_were_asked_for_and_have_no_folder_are_named(command: Command, tmp_path: Path) -> None:
    """A sweep that was stopped from outside: two of four runs have begun."""
    command("experiment=rate_distortion", "objective.beta=1,2", "seed=0,1", "sweep=cut", "latent_dim=3")
    folder = tmp_path / "outputs" / "cut"
    assert not_begun(folder, read_runs(folder)) == []
    for run in read_runs(folder):
        if run.overrides["seed"] == "1":
            rmtree(run.folder)
    assert not_begun(folder, read_runs(folder)) == ["objective.beta=1 seed=1", "objective.beta=2 seed=1"]


def test_debug_raises_in_a_sweep(command: Command) -> None:
    with pytest.raises(ValueError, match="no luck"):
        command("experiment=rate_distortion", "objective.beta=1", "debug=true", fails=lambda cfg: True)


def test_a_typo_in_a_sweep_is_answered_as_ever(command: Command) -> None:
    answer = command("experiment=rate_distortion", "objective.bet=1,2")
    assert answer.code == 2
    assert "objective.beta?" in answer.err
    assert answer.runs == []


@pytest.mark.parametrize("arguments", [("--help",), ("experiment=rate_distortion", "--cfg", "job")])
def test_whoever_only_asks_does_not_wait_for_the_comparison(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    for name in ("lowerbound.sweep", "lowerbound.study_plots"):
        monkeypatch.delitem(sys.modules, name)
    assert command(*arguments).code == 0
    assert "lowerbound.sweep" not in sys.modules


def test_the_same_images_are_prepared_for_each_decoder(command: Command) -> None:
    answer = command("experiment=bernoulli_or_gaussian")
    assert [cfg.data.prepare.binarize for cfg in answer.runs] == ["threshold", "none"]
    assert [cfg.data.prepare.dequantize for cfg in answer.runs] == [False, True]
    assert ["noise" in cfg for cfg in answer.runs] == [False, True]


def write_run(folder: Path, name: str, overrides: list[str], numbers: dict[str, float] | None) -> None:
    (folder / name / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / name / ".hydra" / "overrides.yaml")
    chosen = dict(line.split("=") for line in overrides)
    OmegaConf.save(OmegaConf.create({"objective": {"beta": float(chosen.get("objective.beta", 1))}}), folder / name / "config.yaml")
    if numbers is not None:
        (folder / name / "results.json").write_text(json.dumps(numbers))


def test_runs_are_ordered_by_the_numbers_swept_over(tmp_path: Path) -> None:
    for beta in ("10", "9", "0.5"):
        write_run(tmp_path, beta, ["experiment=e", f"objective.beta={beta}"], {"a": 1.0})
    write_run(tmp_path, "more", ["experiment=e", "objective.beta=9", "seed=1"], None)
    (tmp_path / "no_run").mkdir()
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["objective.beta=0.5", "objective.beta=9", "objective.beta=9 seed=1", "objective.beta=10"]
    assert [run.number("a") for run in runs] == [1.0, 1.0, None, 1.0]


def test_words_keep_the_order_of_the_runs(tmp_path: Path) -> None:
    for noise in ("shared", "fixed", "network"):
        write_run(tmp_path, noise, [f"noise={noise}"], {})
    assert [run.name for run in read_runs(tmp_path)] == ["noise=shared", "noise=fixed", "noise=network"]


def test_the_table_is_aligned(tmp_path: Path) -> None:
    write_run(tmp_path, "a", ["model=a"], {"x": 1.23456, "n": 8.0})
    write_run(tmp_path, "b", ["model=longer"], {"x": -1234.5})
    assert table(read_runs(tmp_path), {"value": "x", "count": "n"}) == [
        "                     value  count",
        "  model=a           1.2346      8",
        "  model=longer  -1234.5000      -",
    ]


def test_an_autoencoder_has_no_rate(tmp_path: Path) -> None:
    write_run(tmp_path, "a", ["objective.beta=1"], {"test/reconstruction": 1.0})
    with pytest.raises(ValueError, match="have a rate"):
        RateDistortion("name", {}).draw(read_runs(tmp_path))


def test_the_curve_is_that_of_the_results(tmp_path: Path) -> None:
    for beta, kl in ((4, 1.0), (1, 3.0)):
        write_run(tmp_path, str(beta), [f"objective.beta={beta}"], {"test/kl": kl, "test/reconstruction": -5 * kl})
    axes = RateDistortion("name", {}).draw(read_runs(tmp_path)).axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xydata()), [[3.0, 15.0], [1.0, 5.0]])


def test_beta_is_that_of_the_configuration_whoever_set_it(tmp_path: Path) -> None:
    """An experiment may have set it, and then the command line does not say."""
    write_run(tmp_path, "a", ["experiment=beta_vae_mnist"], {})
    for objective, beta in (({"beta": 4.0}, 4.0), ({}, 1.0), ({"beta": {"start": 0.0, "end": 0.5}}, 0.5), ({"beta": {"period": 3}}, None)):
        OmegaConf.save(OmegaConf.create({"objective": objective}), tmp_path / "a" / "config.yaml")
        assert read_runs(tmp_path)[0].beta == beta


def test_stacked_pictures_keep_their_pixels() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (20, 90, 3), np.uint8), rng.integers(0, 256, (30, 60, 3), np.uint8)
    found = pixels(stacked({"one": first, "two": second}))
    strip = (len(found) - 50) // 2
    np.testing.assert_array_equal(found[strip : strip + 20, :90], first)
    np.testing.assert_array_equal(found[2 * strip + 20 :, :60], second)


def test_bars_leave_out_what_a_run_does_not_have() -> None:
    figure = bars(["a", "b"], {"x": [1.0, None], "y": [-2.0, 3.0]})
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[1.0], [-2.0, 3.0]]
