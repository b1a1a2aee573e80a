"""The command line: what composes, what it answers, and with which exit code."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from commands import Answer, Command, Training
from lowerbound import cli
from lowerbound.errors import NonFiniteError
from lowerbound.explaining import explain
from zoo import composed

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def command(without_training: Command) -> Command:
    """The command line, whose runs end at once."""

    def run(*arguments: str, train: Training = lambda cfg: 0.0) -> Answer:
        return without_training(*arguments, train=train)

    return run


def fail(error: Exception) -> Training:
    def train(cfg: DictConfig) -> float:
        raise error

    return train


def test_the_default_run(command: Command, tmp_path: Path) -> None:
    answer = command()
    assert answer.code == 0
    assert answer.runs[0].name == "vae_digits"
    (folder,) = (tmp_path / "outputs" / "vae_digits").iterdir()
    assert (folder / ".hydra" / "overrides.yaml").is_file()


def test_the_line_of_the_documentation_reads_naturally(command: Command) -> None:
    line = "model=vae likelihood=bernoulli network=conv data=mnist objective.beta=4 fit.optimizer.lr=3e-4 trainer=gpu logger=wandb seed=1"
    answer = command(*line.split())
    assert answer.err == ""
    (cfg,) = answer.runs
    assert (cfg.objective.beta, cfg.fit.optimizer.lr, cfg.seed, cfg.name) == (4, 3e-4, 1, "vae_mnist")
    assert cfg.model.likelihood == cfg.likelihood
    assert cfg.fit.objective == cfg.objective


@pytest.mark.parametrize(
    ("line", "first", "meant"),
    [
        ("lr=3", "lr=3: there is no key lr.", "fit.optimizer.lr?"),
        ("seed=1 trainer.max_epoch=3", "trainer.max_epoch=3: there is no key", "trainer.max_epochs?"),
        ("data.dimension=3", "data.dimension=3: there is no key", "dim"),
        ("hydra.sweep.dri=x", "hydra.sweep.dri=x: there is no key", "hydra.sweep.dir?"),
        ("hydra/lancher=x", "hydra/lancher=x: there is no key", "hydra/launcher"),
        ("posterior.loc=1 -m", "posterior.loc=1: there is no key", ""),
        ("model=vea", "model=vea: there is no such choice.", "model=vae?"),
        ("model=vae,vea -m", "model=vea: there is no such choice.", "model=vae?"),
        ("beta=warmup", "beta=warmup: there is no such choice.", "beta=warm_up?"),
        ("experiment=vae_mnsit", "experiment=vae_mnsit: there is no such choice.", "vae_mnist"),
        ("vae", "vae: there is no key", "model=vae?"),
        ("bernouli", "bernouli: there is no key", "likelihood=bernoulli"),
        ("name=a=b", "name=a=b: mismatched input", "quoted twice"),
        ("+lr=3", "+lr=3: there is no key lr.", "fit.optimizer.lr?"),
        ("++lr=3", "++lr=3: there is no key lr.", "fit.optimizer.lr?"),
        ("+seed=3", "Could not append", "seed=3"),
        ("~seeds", "Could not delete", ""),
        ("objective.beta=1,2", "Ambiguous value for argument 'objective.beta=1,2'", "--multirun"),
        ("objective.beta=4 beta=warm_up", "objective.beta=4 replaces the schedule beta=warm_up", ""),
    ],
)
def test_a_mistake_is_answered_in_three_lines(command: Command, line: str, first: str, meant: str) -> None:
    answer = command(*line.split())
    lines = answer.err.splitlines()
    assert answer.code == 2
    assert lines[0].startswith(f"{cli.PROGRAM}: {first}")
    assert any(meant in line for line in lines)
    assert len(lines) <= 3
    assert "+lr" not in " ".join(lines[1:]), "an added key would be ignored"
    assert answer.runs == []


def test_a_group_that_the_model_does_not_have(command: Command, tmp_path: Path) -> None:
    (tmp_path / "extra" / "model").mkdir(parents=True)
    (tmp_path / "extra" / "model" / "bare.yaml").write_text("_target_: lowerbound.model.LatentVariableModel\n")
    answer = command("model=bare", "network=mlp", "--config-dir", "extra")
    assert answer.code == 2
    assert answer.err.startswith(f"{cli.PROGRAM}: network=mlp: with model=bare there is no network to choose.\n")
    answer = command("likelihood=bernoulli", "noise=fixed")
    assert answer.err.startswith(f"{cli.PROGRAM}: noise=fixed: with model=vae, likelihood=bernoulli there is no noise to choose.\n")


def test_a_users_own_folder_of_configuration_is_searched_for_what_was_meant(command: Command, tmp_path: Path) -> None:
    (tmp_path / "extra" / "experiment").mkdir(parents=True)
    (tmp_path / "extra" / "experiment" / "mine.yaml").write_text("# @package _global_\nwidth: 3\n")
    assert command("--config-dir", "extra", "experiment=mine", "width=4").runs[0].width == 4
    assert "Did you mean width?" in command("--config-dir", "extra", "experiment=mine", "widht=4").err


def test_an_added_option_of_a_constructor_is_kept(command: Command) -> None:
    assert command("+fit.optimizer.amsgrad=true").runs[0].fit.optimizer.amsgrad is True


def test_a_value_may_be_taken_from_another(command: Command) -> None:
    assert command("latent_dim=3", "fit.optimizer.lr=${latent_dim}").runs[0].fit.optimizer.lr == 3


def test_a_schedule_may_be_shaped(command: Command) -> None:
    assert command("beta=warm_up", "objective.beta.end=4").runs[0].objective.beta.end == 4


def test_an_error_of_a_run_is_its_own_message(command: Command) -> None:
    answer = command(train=fail(ValueError("data.dim=3: the data have 64 columns.\nSet data.dim=64.")))
    assert answer.code == 2
    assert answer.err.splitlines() == [
        f"{cli.PROGRAM}: data.dim=3: the data have 64 columns.",
        "  Set data.dim=64.",
        "  debug=true shows the whole traceback.",
    ]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("", ["ValueError", "debug=true shows the whole traceback."]),
        ("one\n\ntwo\nthree", ["one", "two", "three"]),
        ("one\ntwo\nmore\nand more\nwhat to do", ["one", "two", "what to do"]),
    ],
)
def test_a_long_message_is_its_beginning_and_its_end(message: str, shown: list[str]) -> None:
    assert explain(ValueError(message), []) == shown


def test_a_loss_that_is_not_finite_is_no_mistake_of_the_command(command: Command) -> None:
    answer = command(train=fail(NonFiniteError("the loss is NaN at step 3")))
    assert answer.code == 1
    assert answer.err.startswith(f"{cli.PROGRAM}: the loss is NaN at step 3\n")


def test_an_interpolation_that_leads_nowhere_names_its_key(command: Command) -> None:
    answer = command("fit.optimizer.lr=${nothing}")
    assert (answer.code, answer.runs) == (2, [])
    assert answer.err == f"{cli.PROGRAM}: fit.optimizer.lr: Interpolation key 'nothing' not found\n"


def test_values_that_must_be_given_are_named_together(command: Command) -> None:
    answer = command("data=table")
    assert (answer.code, answer.runs) == (2, [])
    assert answer.err.splitlines() == [f"{cli.PROGRAM}: No value is set for data.path and data.dim.", "  Add data.path=... data.dim=..."]


def test_debug_raises(command: Command) -> None:
    with pytest.raises(ValueError, match="inside"):
        command("debug=true", train=fail(ValueError("inside")))
    with pytest.raises(Exception, match="Could not override 'lr'"):
        command("debug=true", "lr=3")


def test_a_fault_of_the_program_is_not_hidden(command: Command) -> None:
    answer = command("hydra.run.dir=run", train=fail(RuntimeError("a fault")))
    assert answer.code == 1
    first, _, third = answer.err.splitlines()
    assert first.startswith(f"{cli.PROGRAM}: RuntimeError: a fault (tests/test_cli.py, line ")
    assert third.strip().endswith("failure.txt; debug=true shows it.")
    assert "Traceback (most recent call last)" in Path("run/failure.txt").read_text()
    with pytest.raises(RuntimeError, match="a fault"):
        command("debug=true", train=fail(RuntimeError("a fault")))


def test_a_sweep_runs_what_it_can_and_fails_at_the_end(command: Command) -> None:
    def train(cfg: DictConfig) -> float:
        if cfg.seed == 0:
            raise ValueError("seed=0 was unlucky")
        return 0.0

    answer = command("-m", "seed=0,1", train=train)
    assert answer.code == 1
    assert len(answer.runs) == 2
    assert "seed=0 was unlucky" in answer.err


def test_the_runs_of_a_sweep_are_named_by_their_overrides(command: Command, tmp_path: Path) -> None:
    answer = command(
        "-m", "sweep=mine", "model=vae,autoencoder", "seed=1", "data.root=../a b" if "root" in digits() else "data.batch_size=64"
    )
    assert answer.code == 1, "the stand-in for the training leaves no results"
    names = sorted(folder.name for folder in (tmp_path / "outputs" / "mine").iterdir() if folder.is_dir())
    assert len(names) == 2
    assert all(name.endswith("seed=1") for name in names)
    assert {name.split(",")[1] for name in names} == {"model=vae", "model=autoencoder"}


def digits() -> DictConfig:
    cfg = OmegaConf.load(CONF / "data" / "digits.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def test_short_names() -> None:
    assert cli.short("model=vae,seed=1") == "model=vae,seed=1"
    assert cli.short("sizes=[1,2]") == "sizes=[1,2]"
    long = [",".join(f"a.long.key{i}={j}" for i in range(40)) for j in range(2)]
    paths = ["data.path=a/b", "data.path=a-b", "data.path=a b", "data.path=../b"]
    names = {overrides: cli.short(overrides) for overrides in [*long, *paths, "é=1" * 60]}
    assert len(set(names.values())) == len(names)
    assert all(len(name) <= 100 and "/" not in name and " " not in name for name in names.values())
    assert cli.short("") == "defaults"


def test_the_working_folder_comes_last_and_only_for_files_of_the_users(command: Command, tmp_path: Path) -> None:
    """A library that tries to import what is not installed finds nothing there otherwise."""
    (tmp_path / "my_parts.py").write_text("import beside_my_parts\nclass Mine: ...\n")
    (tmp_path / "beside_my_parts.py").touch()
    (tmp_path / "conf").mkdir()

    def imports_mine(cfg: DictConfig) -> float:
        import_module(cfg.likelihood._target_.rpartition(".")[0])
        return 0.0

    assert command("likelihood._target_=torch.nn.Identity", "+callbacks.x._target_=nobody.Nowhere").code == 0
    assert str(tmp_path) not in sys.path
    assert command("likelihood._target_=my_parts.Mine", train=imports_mine).code == 0
    assert sys.path.pop() == str(tmp_path)
    command("--config-dir", "conf", "--help")
    assert sys.path[-1] == str(tmp_path)
    for name in ("my_parts", "beside_my_parts"):
        del sys.modules[name]


def test_help_explains_every_group(command: Command) -> None:
    answer = command("--help")
    explained = answer.out.partition("Choices\n")[0]
    assert answer.code == 0
    for group in sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"):
        assert f"\n  {group} " in explained
        assert f"\n{group}: " in answer.out


def test_the_examples_of_the_help_compose(command: Command) -> None:
    examples = command("--help").out.partition("Examples\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 5
    for example in examples:
        answer = command(*example.split()[1:])
        assert answer.err == "", example
        assert answer.runs, example


def test_the_sweeps_of_the_help_compose(command: Command) -> None:
    lines = command("--help").out.partition("and searches\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        assert composed(*[re.sub(",.*", "", word) for word in line.split()[1:] if not word.startswith("-")]), line


def test_a_launcher_of_the_users_own_begins_with_ours(command: Command, tmp_path: Path) -> None:
    own = tmp_path / "conf" / "hydra" / "launcher" / "my_cluster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [slurm]\npartition: gpu\n")
    answer = command("--config-dir", "conf", "hydra/launcher=my_cluster", "--cfg", "hydra", "--package", "hydra.launcher")
    assert "_target_: hydra_plugins.lowerbound.SlurmLauncher" in answer.out, answer.err
    assert "partition: gpu" in answer.out
    assert "signal_delay_s: 120" in answer.out


@pytest.mark.process
def test_the_script_is_the_command_whose_mistakes_do_not_wait_for_lightning(tmp_path: Path) -> None:
    script = CONF.parent / "scripts" / "train.py"
    words = [sys.executable, "-X", "importtime", script, "lr=3"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "Did you mean fit.optimizer.lr?" in result.stderr
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", result.stderr, re.MULTILINE))
    assert "lowerbound.cli" in imported
    assert not {"lightning", "torchmetrics", "wandb", "matplotlib", "sklearn"} & imported
    assert list(tmp_path.iterdir()) == []
