"""`lowerbound-evaluate`: what is known of log p(x), by several ways that must agree, from run folders, repeatably."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats

import commands
import lowerbound
from compositions import answered
from lowerbound import evaluation
from lowerbound.baselines import Baseline, baselines
from lowerbound.cli import evaluate
from lowerbound.covariances import Diagonal
from lowerbound.data import InMemory
from lowerbound.data.prepare import Preparation
from lowerbound.evaluation import data_of, verdict, warnings
from lowerbound.evidence import Annealing, Estimate, estimates, importance_weighted
from lowerbound.ranks import by_blocks
from processes import two_ranks

SIX = 6.0
COARSE = Annealing(num_data=100, num_temperatures=100, num_chains=4, leapfrogs=5)
Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small VAE with two latent dimensions, of which the evidence is known by quadrature."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        assert commands.train(place, patch, "latent_dim=2", "trainer.max_epochs=20", "~callbacks.pictures", "name=small") == 0
    (folder,) = (place / "outputs" / "small").iterdir()
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    return commands.called("lowerbound-evaluate", evaluate, tmp_path, monkeypatch, capsys)


SMALL = (
    "num_samples=[1,10,100]",
    "annealing.num_data=30",
    "annealing.num_temperatures=50",
    "annealing.num_chains=4",
    "annealing.leapfrogs=5",
)


class Evaluated(NamedTuple):
    """What the command did with the run: its exit code, what it wrote and the page, and what it found."""

    code: int
    out: str
    page: str
    found: dict[str, Any]


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """All rows, in a folder in which nothing is written."""
    place = tmp_path_factory.mktemp("empty")
    answer = answered(place, "lowerbound-evaluate", f"run={run}", *SMALL)
    assert not list(place.iterdir())
    return Evaluated(answer.code, answer.out, (run / "report.html").read_text(), json.loads((run / "evaluation.json").read_text()))


def by_quantity(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of all rows, and of the first ones what there is no other of."""
    return {row["quantity"]: row for row in reversed(found["evidence"])}


def test_a_run_is_evaluated_by_every_way_it_allows(run: Path, evaluated: Evaluated) -> None:
    code, out, page, found = evaluated
    assert code == 0
    rows = by_quantity(found)
    assert sorted(rows) == sorted(["quadrature", "IWAE-1", "IWAE-10", "IWAE-100", "AIS"])
    first = next(row for row in found["evidence"] if row["quantity"] == "IWAE-100" and row["num_data"] == 30)
    assert first["mean"] == pytest.approx(rows["AIS"]["mean"], abs=1.0), "the same rows as those of annealing, to compare with"
    values = [rows[name]["mean"] for name in ("IWAE-1", "IWAE-10", "IWAE-100", "quadrature")]
    assert values == sorted(values)
    assert rows["IWAE-1"]["mean"] == pytest.approx(json.loads((run / "results.json").read_text())["test/elbo"], abs=1.0)
    simulated = found["simulated"]
    assert simulated["gap"] == pytest.approx(simulated["above"] - simulated["below"])
    assert simulated["gap"] > -SIX * simulated["standard_error"]
    space = found["latent"]
    assert space["rate"]["mean"] == pytest.approx(json.loads((run / "results.json").read_text())["test/kl"], abs=0.3)
    assert space["units"]["active"] + space["units"]["collapsed"] <= space["units"]["latent_dim"] == 2
    assert space["labels"].keys() == {"knn_accuracy", "probe_accuracy", "pca_knn_accuracy", "pca_probe_accuracy"}
    assert {path.stem for path in (run / "figures").iterdir()} == {"importance_weighted_curve", "collapse"}
    assert all(f"{row['mean']:.3f}" in page for row in rows.values()), "the report is renewed"
    assert all(f"{row['mean']:.3f}" in out for row in rows.values())


@pytest.mark.parametrize("overrides", [("latent_dim=1",), ("model=mixture", "num_components=1"), ("model=autoencoder", "latent_dim=1")])
def test_the_smallest_models_and_fewest_rows_are_evaluated(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a table of one number is no number."""
    small = ("trainer.max_epochs=1", "~callbacks.pictures", "hydra.run.dir=run")
    sizes = () if "mixture" in overrides[0] else ("network.encoder.sizes=[8]",)
    assert commands.train(tmp_path, monkeypatch, *overrides, *small, *sizes) == 0
    monkeypatch.setattr(sys, "argv", ["lowerbound-evaluate", "run", *SMALL[2:], "num_samples=[1]", "num_data=2", "annealing.num_data=2"])
    assert evaluate() == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert all(row["num_data"] == 2 for row in found["evidence"])
    assert ("no p(x)" in (tmp_path / "run" / "report.html").read_text()) == ("autoencoder" in overrides[0])


def test_a_run_concluded_again_has_no_old_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its page would show the evidence of other weights; what is not ours stays, also where the run's folder is the working folder."""
    mine = tmp_path / "figures" / "mine.png"
    for time in range(2):
        arguments = ("trainer.max_epochs=1", "~callbacks.pictures", "hydra.run.dir=.", "network.encoder.sizes=[8]", "latent_dim=2")
        assert commands.train(tmp_path, monkeypatch, *arguments) == 0
        assert not (tmp_path / "evaluation.json").exists()
        assert not (tmp_path / "figures" / "collapse.png").exists()
        assert "Not evaluated yet" in (tmp_path / "report.html").read_text()
        if not time:
            monkeypatch.setattr(sys, "argv", ["lowerbound-evaluate", ".", "num_samples=[1]", "num_data=20", "annealing.num_data=0"])
            assert evaluate() == 0
            assert (tmp_path / "figures" / "collapse.png").exists()
            copyfile(tmp_path / "figures" / "collapse.png", mine)
            (tmp_path / "results.json").unlink()
    assert mine.exists()


def test_several_folders_are_several_runs(run: Path, command: Evaluate, tmp_path: Path) -> None:
    """Also where their names have = and , in them, as those of sweeps have."""
    names = [tmp_path / "a=1,b=[2]", tmp_path / "it's"]
    for name in names:
        copytree(run, name)
    code, out, _ = command(*map(str, names), "num_samples=1", "annealing.num_data=0", "num_data=20", "baselines=false")
    assert code == 0
    assert all(str(name) in out for name in names)
    code, _, err = command("outputs/nope")
    assert code == 2
    assert "there is no finished run" in err


def test_blocks_of_rows_have_noise_of_their_own(run: Path) -> None:
    """The same row a hundred times: with one noise for all blocks, rows in the same place would have the same bound."""
    loaded = lowerbound.load(run)
    x = data_of(loaded).part("test").x[:1].expand(40, -1)
    values = by_blocks(lambda rows: loaded.model.log_weight(x[rows]), (1, 40), 10, x.device, "")
    assert len(set(values[0].tolist())) == 40


SCRIPT = Path(sys.executable).parent / "lowerbound-evaluate"


def by_torchrun(folder: Path, *arguments: str) -> None:
    """The command in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, SCRIPT, f"run={folder}", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nats per datum |") == 1, "only one of them tells"


@pytest.mark.process
def test_two_processes_find_what_one_finds_to_the_last_bit(run: Path, command: Evaluate, processes: Any) -> None:
    """115 rows in blocks of 10 and 50 are shared out unevenly, and 9 rows leave the second without any."""
    for count in (115, 9):
        words = (*SMALL[:-3], "annealing.num_temperatures=20", "annealing.leapfrogs=2", f"num_data={count}", "baselines=false")
        command(f"run={run}", *words)
        one = json.loads((run / "evaluation.json").read_text())
        if count == 9:
            by_torchrun(run, *words)
        else:  # in the environment that torchrun gives
            two_ranks(processes, SCRIPT, f"run={run}", *words)
        two = json.loads((run / "evaluation.json").read_text())
        assert (one.pop("processes"), two.pop("processes")) == (1, 2)
        assert without_seconds(two) == without_seconds(one)


def without_seconds(node: Any) -> Any:
    """All numbers but those of the clock, written so that equal means equal bits."""
    if isinstance(node, dict):
        return {key: without_seconds(value) for key, value in node.items() if key not in ("seconds", "device")}
    return [without_seconds(value) for value in node] if isinstance(node, list) else float.hex(node) if isinstance(node, float) else node


def test_the_rows_of_a_batch_do_not_matter(run: Path, command: Evaluate) -> None:
    """A datum has the bound that it has beside any others, and of a run that was validated in other batches the same one."""

    def first_rows(count: int) -> Any:
        few = ("num_data=20", "num_temperatures=20", "num_chains=2", "leapfrogs=2")
        command(f"run={run}", "num_samples=[7]", *(f"annealing.{word}" for word in few), f"num_data={count}", "baselines=false")
        rows = json.loads((run / "evaluation.json").read_text())["evidence"]
        return without_seconds([row for row in rows if row["num_data"] == 20 and row["quantity"] != "quadrature"])

    found = first_rows(20)
    assert [row["quantity"] for row in found] == ["IWAE-7", "AIS"]
    assert first_rows(40) == found
    config = OmegaConf.load(run / "config.yaml")
    config.data.eval_batch_size = 7
    OmegaConf.save(config, run / "config.yaml")
    assert first_rows(40) == found


def test_bits_per_dimension_are_those_of_the_original_integers(evaluated: Evaluated) -> None:
    """x = (v + u) / 17: 64 log 17 nats, which is log2 17 bits for each dimension."""
    row = by_quantity(evaluated.found)["quadrature"]
    log_2, log_17 = torch.tensor([2.0, 17.0]).double().log().tolist()
    assert row["bits_per_dimension"] == pytest.approx((-row["mean"] / 64 + log_17) / log_2, abs=1e-9)


def test_a_folder_without_a_run_is_said_so(command: Evaluate, tmp_path: Path) -> None:
    code, _, err = command("run=nowhere")
    assert code == 2
    assert "run=nowhere: there is no finished run" in err


def test_the_runs_of_a_sweep_are_all_evaluated_and_those_on_the_same_data_share_their_simple_models(
    run: Path, command: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep over anything but the data they are learnt once, and each run has them."""
    asked: list[int] = []

    def counted(*arguments: Any) -> list[Baseline]:
        asked.append(1)
        return [Baseline(estimate("simple", -3.0), None)]

    monkeypatch.setattr(evaluation, "baselines", counted)
    for name, batch_size in (("a", None), ("b", None), ("c", 3)):
        copytree(run, tmp_path / name)
        if batch_size:
            config = OmegaConf.load(run / "config.yaml")
            config.data.batch_size = batch_size
            OmegaConf.save(config, tmp_path / name / "config.yaml")
    _, out, _ = command(str(tmp_path), "num_samples=[1]", "annealing.num_data=0", "num_data=20")
    assert "AIS" not in out
    assert len(asked) == 2
    for name in "abc":
        assert str(tmp_path / name) in out
        assert json.loads((tmp_path / name / "evaluation.json").read_text())["baselines"][0]["quantity"] == "simple"


def test_simple_models_of_the_same_data_stand_beside_it(evaluated: Evaluated) -> None:
    """Twenty epochs of two dimensions and one scale for all pixels lose against a mixture, and are told so."""
    _, out, _, found = evaluated
    rows = {row["quantity"]: row for row in found["baselines"]}
    assert list(rows) == ["independent Gaussians", "probabilistic PCA, L = 2", "mixture of 20 Gaussians"]
    assert rows["probabilistic PCA, L = 2"]["mean"] < rows["independent Gaussians"]["mean"] < rows["mixture of 20 Gaussians"]["mean"]
    assert "BELOW the best simple model, mixture of 20 Gaussians" in found["verdict"]
    assert found["verdict"] in out


@pytest.mark.parametrize("is_discrete", [True, False])
def test_simple_models_are_those_of_the_kind_of_data(is_discrete: bool) -> None:
    """Their means over test rows, against the frequencies and the variances of the training rows."""
    rng = np.random.default_rng(0)
    x = rng.random((400, 5)) * [1, 2, 3, 4, 5]
    x = (x > 0.7).astype(np.float64) if is_discrete else x
    data = InMemory(x, prepare=Preparation(levels=2, scale=False)) if is_discrete else InMemory(x)
    data.setup()
    train, test = data.part("train").x.double().numpy(), data.part("test").x
    first, *others = baselines(data, test, 2, is_discrete)
    if is_discrete:
        chance = (train.sum(0) + 0.5) / (len(train) + 1)  # one pseudo-count
        expected = stats.bernoulli(chance).logpmf(test.numpy()).sum(1)
    else:
        expected = stats.norm(train.mean(0), train.std(0)).logpdf(test.numpy()).sum(1)
    assert first.estimate.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert first.estimate.standard_error == pytest.approx(expected.std(ddof=1) / len(test) ** 0.5, abs=1e-6)
    assert len(others) == (1 if is_discrete else 2)


def estimate(quantity: str, mean: float, num_data: int = 100) -> Estimate:
    return Estimate(quantity, False, mean, 0.1, num_data, None, 0.0)


def test_the_verdict_is_of_the_tightest_bound_of_all_rows_and_of_sound_rivals() -> None:
    known = [estimate("IWAE-1", -5.0), estimate("IWAE-100", -4.0), estimate("AIS", -1.0, 20)]
    rivals = [Baseline(estimate("PPCA", -6.0), None), Baseline(estimate("mixture", 3.0), "at its floor")]
    assert verdict(known, rivals) == "log p(x) (IWAE-100) lies 2.000 nats above the best simple model, PPCA"
    assert verdict(known, rivals[1:]) is None
    assert verdict([], rivals) is None
    exactly = Estimate("exact", False, -4.5, 0.1, 100, None, 0.0)
    lucky = Estimate("IWAE-100", True, -4.4, 0.1, 100, 50.0, 0.0)
    assert verdict([exactly, lucky], rivals) == "log p(x) (exact) lies 1.500 nats above the best simple model, PPCA"
    assert verdict(known, rivals, floored="its scale is at its floor") is None
    assert warnings(known, rivals, "its scale is at its floor") == ["its scale is at its floor", "mixture: at its floor"]


def known(model: lowerbound.LatentVariableModel, x: torch.Tensor) -> dict[str, Estimate]:
    return {one.quantity: one for one in estimates(model, x, [1, 100], COARSE)}


def test_a_linear_model_has_its_evidence_beside_its_bounds() -> None:
    """Weights drawn at random: the posterior is a bad one, and every bound lies below what is exact."""
    torch.manual_seed(0)
    model = lowerbound.linear_vae(6, 3)
    x = model.sample(100, noise=True).detach()
    found = known(model, x)
    assert list(found) == ["exact", "IWAE-1", "IWAE-100", "AIS"]
    assert found["IWAE-1"].mean < found["IWAE-100"].mean < found["exact"].mean + 0.05
    assert found["AIS"].mean < found["exact"].mean + 0.05
    assert found["AIS"].mean == pytest.approx(found["exact"].mean, abs=0.5)


def test_few_effective_samples_are_warned_of() -> None:
    """Weights of a posterior that misses: one sample in a hundred counts."""
    torch.manual_seed(0)
    model = lowerbound.linear_vae(6, 3)
    with torch.no_grad():
        model.likelihood.weight.mul_(20)
    found = known(model, model.sample(100, noise=True).detach())
    assert found["IWAE-100"].warning is not None
    assert "effective samples" in found["IWAE-100"].warning
    assert found["IWAE-1"].warning is None
    assert found["exact"].warning is None


def test_an_exact_model_needs_no_bound_and_an_autoencoder_has_none() -> None:
    x = torch.rand(10, 6)
    assert list(known(lowerbound.gaussian_mixture(6, 2), x)) == ["exact"]
    assert list(known(lowerbound.autoencoder(6, 2), x)) == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("num_samples=[10,1]", "must increase"),
        ("num_samples=many", "num_samples='many'"),
        ("annealing.leapfrogs=0", "annealing.leapfrogs"),
        ("annealing.num_data=1", "at least 2 rows"),
        ("num_codes=0", "num_codes"),
        ("device=abacus", "device=abacus"),
    ],
)
def test_options_out_of_range_are_named(run: Path, command: Evaluate, argument: str, words: str) -> None:
    code, _, err = command(f"run={run}", *SMALL, argument, "num_data=20")
    assert code == 2
    assert words in err


def test_the_effective_sample_size_is_that_of_the_datum_in_the_middle() -> None:
    """Of one datum all hundred samples count, of two others one: the mean would hide that the two rest on a single sample."""

    class Weights:
        def log_weight(self, x: torch.Tensor, num_samples: int) -> torch.Tensor:
            log_weight = torch.zeros(num_samples, 3)
            log_weight[1:, 1:] = -100
            return log_weight

    model: Any = Weights()
    (found,) = importance_weighted(model, torch.zeros(3, 2), [100])
    assert found.effective == pytest.approx(1.0)
    assert found.warning is not None


def test_the_mixture_beside_a_model_has_learnt_to_its_end() -> None:
    """Three clusters, and a start that EM must leave: log p(x) is near that of the truth."""
    rng = np.random.default_rng(0)
    which = rng.integers(3, size=2000)
    x = np.array([[0, 0], [2.5, 0], [0, 2.5]])[which] + rng.normal(size=(2000, 2))
    data = InMemory(x)
    data.setup()
    test = data.part("test").x
    *_, mixture = baselines(data, test, 1, is_discrete=False)
    once = lowerbound.gaussian_mixture(2, 20, Diagonal(20, 2))
    torch.manual_seed(0)
    once.initialize(data.part("train").x.double(), 1400)
    with torch.no_grad():
        once.maximize(once.statistics(data.part("train").x.double()))
        after_one_step = once.log_prob(test.double()).mean().item()
    assert mixture.estimate.mean != pytest.approx(after_one_step, abs=1e-4)
    parts = [stats.multivariate_normal(mean).pdf(test.numpy()) / 3 for mean in ([0, 0], [2.5, 0], [0, 2.5])]
    assert mixture.estimate.mean == pytest.approx(np.log(sum(parts)).mean(), abs=0.1)
