"""Files from others cannot run code: real attacks, each seen to succeed in the naive way and to be refused with nothing done."""

from __future__ import annotations

import copy
import os
import pickle
import pydoc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import commands
import lowerbound
import zoo
from lowerbound import claim, cli
from lowerbound.callbacks import BestWeights
from lowerbound.checkpoints import damage, newest_whole
from lowerbound.data import Table
from lowerbound.evaluation import data_of
from lowerbound.folder import read_config, read_overrides, require_own
from lowerbound.report import opened, write_report
from lowerbound.runs import read_runs
from lowerbound.trust import check_words, safe_instantiate

KEY = "0123456789abcdef" * 2 + "ofatest0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model is in closed form, trained where there is a key of W&B; beside it is what it printed."""
    place = tmp_path_factory.mktemp("finished")
    small = ("model=ppca", "latent_dim=2", "~callbacks.pictures", "hydra.run.dir=run", "logger=wandb", "logger.wandb.mode=offline")
    with pytest.MonkeyPatch.context() as patch, (place / "printed.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        patch.setenv("WANDB_API_KEY", KEY)
        assert commands.train(place, patch, *small) == 0
    return place / "run"


@pytest.fixture(scope="module")
def config(finished: Path) -> DictConfig:
    """Its configuration."""
    return read_config(finished / "config.yaml")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, which came from elsewhere."""
    return Path(copytree(finished, tmp_path / "stranger"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What an attack that succeeds leaves behind."""
    return tmp_path / "marker"


# Targets: `write` says how code is run that writes the marker.

Node = dict[str, Any]


def python(marker: Path) -> str:
    """An expression that writes it."""
    return f"open({str(marker)!r}, 'w')"


class Pickled:
    """What runs when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def hub(marker: Path) -> Node:
    (marker.parent / "hubconf.py").write_text(f"def entry():\n    {python(marker)}\n")
    return {"_target_": "torch.hub.load", "repo_or_dir": str(marker.parent), "source": "local", "model": "entry"}


def unpickled(marker: Path) -> Node:
    (marker.parent / "x.pkl").write_bytes(pickle.dumps(Pickled(marker)))
    return {"_target_": "torch.load", "f": str(marker.parent / "x.pkl"), "weights_only": False}


def compiled(marker: Path) -> Node:
    """It writes its source beside the library, before there is a compiler."""
    sources = {"cpp_sources": "", "build_directory": str(marker.parent), "name": "x"}
    return {"_target_": "torch.utils.cpp_extension.load_inline", **sources}


def imported(marker: Path) -> Node:
    (marker.parent / "stranger_module.py").write_text(f"{python(marker)}\nclass Thing:\n    pass\n")
    return {"_target_": "stranger_module.Thing"}


def deferred(marker: Path) -> Node:
    method = {"_target_": "hydra.utils.get_method", "path": "builtins.eval"}
    return {"_target_": "operator.call", "_args_": [{"_target_": "functools.partial", "_args_": [method, python(marker)]}]}


def path_to(marker: Path) -> Node:
    return {"_target_": "pathlib.Path", "_args_": [str(marker)]}


SHELL: dict[str, Callable[[Path], Node]] = {
    name: lambda marker, name=name: {"_target_": name, "_args_": [f"touch {marker}"]}
    for name in ("os.system", "posix.system", "logging.os.system", "lowerbound.cli.os.system", "subprocess.getoutput")
}
ATTACKS: dict[str, Callable[[Path], Node]] = SHELL | {
    "builtins.eval": lambda marker: {"_target_": "builtins.eval", "_args_": [python(marker)]},
    "builtins.exec": lambda marker: {"_target_": "builtins.exec", "_args_": [python(marker)]},
    "functools.partial": deferred,
    "hydra.utils.get_method": lambda marker: {
        "_target_": "operator.call",
        "_args_": [{"_target_": "hydra.utils.get_method", "path": "builtins.eval"}, python(marker)],
    },
    "torch.hub.load": hub,
    "torch.load": unpickled,
    "torch.utils.cpp_extension.load_inline": compiled,
    "pathlib.Path.write_text": lambda marker: {"_target_": "pathlib.Path.write_text", "_args_": [path_to(marker), "x"]},
    "a class that writes": lambda marker: {"_target_": "logging.FileHandler", "filename": str(marker)},
    "an import that writes": imported,
    "a function of ours": lambda marker: {"_target_": "lowerbound.folder.write_whole", "path": path_to(marker), "content": "x"},
    "another's class by our name": lambda marker: {"_target_": "lowerbound.run.Path.touch", "self": path_to(marker)},
    "a logger of ours": lambda marker: {"_target_": "lowerbound.tracking.WandB", "save_dir": str(marker), "mode": "disabled"},
}


def naive(node: Any) -> Any:
    """Whatever a dotted name leads to, called innermost first: what a configuration means where nobody looks."""
    if isinstance(node, list):
        return [naive(value) for value in node]
    if not isinstance(node, dict):
        return node
    built = {name: naive(value) for name, value in node.items() if name not in ("_target_", "_args_")}
    if "_target_" not in node:
        return built
    found = pydoc.locate(node["_target_"])
    assert callable(found), node["_target_"]
    return found(*naive(node.get("_args_", [])), **built)


@pytest.mark.parametrize("target", ["lowerbound.data.module.LightningDataModule", "lowerbound.run.Trainer", "lowerbound.run.Path"])
def test_a_class_of_others_is_none_of_ours_whatever_name_leads_to_it(target: str) -> None:
    with pytest.raises(ValueError, match=f"model._target_={target}: that is no class of lowerbound"):
        safe_instantiate(OmegaConf.create({"model": {"_target_": target}}), "model")


def has_run(marker: Path) -> bool:
    """Whether the attack has left its mark; what is compiled leaves its source."""
    return marker.exists() or (marker.parent / "main.cpp").exists()


def clean(marker: Path) -> None:
    for path in (marker, marker.parent / "main.cpp"):
        if path.is_file():
            path.unlink()
    sys.modules.pop("stranger_module", None)
    if marker.is_dir():
        marker.rename(marker.with_name("moved"))


def placed(config: DictConfig, key: str, value: Any) -> DictConfig:
    """The configuration with something else in a place."""
    config = copy.deepcopy(config)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def written(folder: Path, config: DictConfig) -> Path:
    """The folder with another configuration."""
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_no_target_runs_code(name: str, folder: Path, config: DictConfig, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(marker.parent)
    monkeypatch.setattr("torch.hub._get_torch_home", lambda: str(marker.parent))
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.cpp_extension.is_ninja_available", lambda: False)
        node = ATTACKS[name](marker)
        try:
            naive(node)
        except Exception as error:  # what comes after the deed
            print(error)
    assert has_run(marker), "the attack is none"
    clean(marker)
    target = node["_target_"]
    own = () if name == "an import that writes" else (target.partition(".")[0],)
    for key, value in (("model", node), ("model.likelihood.sizes", [{"deep": node}]), ("data.prepare", node), ("data.missing", node)):
        attacked = placed(config, key, value)
        for trust in ((), own):  # who trusts the package still gets parts of models only
            with pytest.raises(ValueError, match=re.escape(key) + rf".*_target_={re.escape(target)}"):
                safe_instantiate(attacked, key.partition(".")[0], trust)
    with pytest.raises(ValueError, match=rf"data\.prepare\S*_target_={re.escape(target)}"):
        lowerbound.load(written(folder, placed(config, "data.prepare", node)))
    loaded = lowerbound.load(written(folder, placed(config, "data.missing", node)))
    with pytest.raises(ValueError, match=rf"data\.missing\S*_target_={re.escape(target)}"):
        data_of(loaded)
    assert not has_run(marker)


MINE = """
from pathlib import Path
from lowerbound.likelihoods import Gaussian
from lowerbound.priors import StandardNormal

Path(__file__).with_name("marker").touch()


class Mine(StandardNormal):
    def __init__(self, latent_dim):
        super().__init__(latent_dim)
        Path(__file__).with_name("built").touch()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A prior of the user's own, in a file that says when it is imported and when it is built."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"_target_": "mine.Mine", "latent_dim": 2}
    sys.modules.pop("mine", None)


def test_a_package_of_the_users_own_is_one_that_the_caller_names(
    mine: Node, folder: Path, config: DictConfig, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(folder, placed(placed(config, "model.prior", mine), "trust", ["mine"]))
    predict = commands.called("lowerbound-predict", cli.predict, marker.parent, monkeypatch, capsys)
    with pytest.raises(ValueError, match=r"model\.prior\._target_=mine\.Mine.*\n.*trust=\[mine\], or lowerbound\.load\(folder, "):
        lowerbound.load(folder)
    code, _, said = predict(str(folder), "output=sample")
    assert code == 2
    assert "trust=[mine]" in said
    assert not marker.exists()
    assert predict(str(folder), "output=sample", "trust=[mine]")[0] == 0
    assert marker.exists()
    assert type(lowerbound.load(folder, trust="mine").model.prior).__name__ == "Mine"
    with pytest.raises(ValueError, match="trust=os;id is the name of no package"):
        lowerbound.load(folder, trust=["os;id"])


def test_nothing_is_built_before_all_of_it_is_known(mine: Node, config: DictConfig, marker: Path) -> None:
    built = marker.with_name("built")
    safe_instantiate(placed(config, "model.prior", mine), "model", "mine")
    assert built.exists()
    built.unlink()
    with pytest.raises(ValueError, match="os.system"):
        safe_instantiate(placed(placed(config, "model.prior", mine), "model.posterior", {"_target_": "os.system"}), "model", "mine")
    assert not built.exists()


def test_a_folders_trainer_logger_and_callbacks_are_not_built(folder: Path, config: DictConfig, marker: Path) -> None:
    node = ATTACKS["os.system"](marker)
    for key in ("trainer", "logger.csv", "callbacks.last", "fit", "objective", "hydra"):
        config = placed(config, key, node)
    data_of(lowerbound.load(written(folder, config)))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_", "_mode_", 3])
def test_no_other_key_of_hydras(key: Any, config: DictConfig) -> None:
    node = {"_target_": "lowerbound.priors.StandardNormal", "latent_dim": 2, key: []}
    with pytest.raises(ValueError, match=rf"prior\.{key}: a run folder describes calls by _target_ and _partial_ only"):
        safe_instantiate(OmegaConf.create({"prior": node}), "prior")


@pytest.mark.parametrize("target", ["", ".", "lowerbound", "lowerbound.", ".lowerbound.parts", "lowerbound..parts", "a b.c", 3, None, []])
def test_what_is_no_name_of_a_class(target: Any) -> None:
    with pytest.raises(ValueError, match=r"prior\._target_="):
        safe_instantiate(OmegaConf.create({"prior": {"_target_": target}}), "prior")


def test_a_package_is_no_beginning_of_a_name() -> None:
    with pytest.raises(ValueError, match="builds classes of lowerbound only"):
        safe_instantiate(OmegaConf.create({"x": {"_target_": "lowerbound_evil.Thing"}}), "x")


# Interpolations and aliases: in whatever of a folder's files is read.


def test_no_interpolation_reads_a_secret(folder: Path, config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the house")
    secret = "${oc.env:SECRET}"
    written(folder, placed(config, "data.seed", secret))
    assert OmegaConf.load(folder / "config.yaml").data.seed == "of the house", "the attack is none"
    for read in (lowerbound.load, write_report, lambda place: claim.require_same(place, config)):
        with pytest.raises(ValueError, match=r"config\.yaml holds an interpolation"):
            read(folder)
    with pytest.raises(ValueError, match=r"model\.prior=.*is not followed"):
        safe_instantiate(OmegaConf.create({"model": {"prior": secret}}), "model")
    (folder / "overrides.yaml").write_text(f"- name={secret}\n")
    assert read_overrides(folder, "overrides.yaml") == [f"name={secret}"]
    for node in ({"x": {"_target_": "lowerbound.priors.Flat", "latent_dim": secret}}, {"x": [secret]}):
        with pytest.raises(ValueError, match="not followed"):
            safe_instantiate(OmegaConf.create(node), "x")


def test_aliases_that_grow_are_not_followed(folder: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40))]
    (folder / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"config\.yaml is damaged: there is an alias"):
        lowerbound.load(folder)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "a: 1\na: 2", "!!python/object/apply:os.system ['true']", "[" * 600, "a: ${b"])
def test_what_is_no_configuration(text: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml|names no class"):
        lowerbound.load(folder)


# Pickles.


@pytest.mark.parametrize("is_archive", [True, False])
def test_no_checkpoint_runs_code(is_archive: bool, folder: Path, marker: Path) -> None:
    for name in ("weights.ckpt", "last.ckpt"):
        torch.save({"state_dict": {}, "x": Pickled(marker)}, folder / name, _use_new_zipfile_serialization=is_archive)
        torch.load(folder / name, weights_only=False)
        assert marker.exists(), "the attack is none"
        marker.unlink()
    with pytest.raises(ValueError, match=r"weights\.ckpt is damaged, or no checkpoint: ") as caught:
        lowerbound.load(folder)
    assert "weights_only" not in str(caught.value), "torch's own advice is to run it"
    assert damage(folder / "last.ckpt")
    assert newest_whole(folder / "last.ckpt")[0] is None
    assert not marker.exists()


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_no_table_runs_code(ending: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / f"rows{ending}"
    save = np.save if ending == ".npy" else np.savez
    save(path, np.array([[Pickled(marker)]], dtype=object))
    found = np.load(path, allow_pickle=True)
    _ = found if ending == ".npy" else found["arr_0"]
    assert marker.exists(), "the attack is none"
    marker.unlink()
    with pytest.raises(ValueError, match=rf"data\.path=.*rows{ending}"):
        Table(path=str(path), dim=1).read()
    path.write_bytes(pickle.dumps(Pickled(marker)))
    with pytest.raises(ValueError, match=rf"data\.path=.*rows{ending}"):
        Table(path=str(path), dim=1).read()
    assert not marker.exists()


# Paths.

LINKED = ("config.yaml", "weights.ckpt", "evaluation.json", "report.html", "results.json.part", ".lock", "encode.npy")
LINKED += ("figures", "figures/x.png", ".hydra", ".hydra/overrides.yaml", "sub/events", "sub/deeper/hparams.yaml")


@pytest.mark.parametrize("name", LINKED)
def test_no_link_leads_out_of_a_folder(name: str, folder: Path, config: DictConfig, marker: Path) -> None:
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(marker)
    else:
        marker.write_text("untouched")
    link.symlink_to(marker)
    before = marker.stat()
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "dangling").symlink_to(marker.with_name("new"))  # nor is a file made by it
    with pytest.raises(ValueError, match=r"is a link to .*(marker|new), out of its folder"):
        require_own(folder)
    (folder / "sub" / "dangling").unlink()
    uses = (lowerbound.load, lambda place: claim.require_same(place, config), read_runs, lambda place: claim.claimed(place).__enter__())
    for use in uses:
        with pytest.raises(ValueError, match=rf"{re.escape(name)} is a link to .*marker, out of its folder"):
            use(folder)
    assert (before.st_mtime_ns, before.st_size) == (marker.stat().st_mtime_ns, marker.stat().st_size)


def test_a_run_of_a_sweep_is_no_link_out_of_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "run").symlink_to(folder)
    with pytest.raises(ValueError, match="run is a link to"):
        read_runs(tmp_path / "sweep")


def test_links_within_a_folder_and_to_it_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "weights.ckpt").rename(folder / "best.ckpt")
    (folder / "weights.ckpt").symlink_to("best.ckpt")
    log = folder / "wandb" / "run-1" / "logs" / "debug-core.log"
    log.parent.mkdir(parents=True)
    log.symlink_to(tmp_path / "cache" / "core.log")  # as W&B leaves it in a run that was killed
    (tmp_path / "short").symlink_to(folder)
    assert lowerbound.load(tmp_path / "short").model.latent_dim == 2


@pytest.mark.parametrize("name", ["victim", "../victim", "..", "a/..", "", "figures", "/"])
def test_no_path_of_a_checkpoint_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    """Lightning deletes what was the best, once there is a better one, and what is in it if it is a folder."""
    victim, mine = str(tmp_path / name), str(tmp_path / "mine")
    state = {"dirpath": mine, "best_model_score": None, "kth_value": None, "best_model_path": victim, "kth_best_model_path": name}
    state |= {"best_k_models": {victim: 1.0, name: 2.0}, "last_model_path": victim}
    theirs, ours = ModelCheckpoint(dirpath=mine), BestWeights()
    theirs.load_state_dict(copy.deepcopy(state))
    assert theirs.best_model_path == theirs.last_model_path == victim, "the attack is none"
    ours.dirpath = mine
    ours.load_state_dict(state)
    for path in (ours.best_model_path, ours.kth_best_model_path, *ours.best_k_models):
        assert Path(path) == Path(mine, "weights.ckpt")
    assert ours.last_model_path == ""
    assert {Path(path).name for path in (ours.state_dict()["best_model_path"], *ours.state_dict()["best_k_models"])} == {"weights.ckpt"}


def test_a_picture_is_a_png_whatever_it_is_called(tmp_path: Path) -> None:
    """PostScript is a program, which Pillow would give to another one."""
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert Image.open(path).format == "EPS", "the attack is none"
    with pytest.raises(ValueError, match=r"x\.png is no PNG"):
        opened(path)


# Words, with which `resume=FOLDER` goes on.

WORDS = (
    "hydra.searchpath=[file:///tmp]",
    "+hydra.callbacks.x._target_=os.system",
    "hydra/launcher=slurm",
    "~hydra.callbacks",
    "callbacks@hydra.callbacks=default",
    "--config-dir=/tmp",
    "-m",
    "seed=1,2",
    "model=../../evil",
    "model=/tmp/evil",
    "callbacks=[default,../evil]",
    "likelihood._target_=os.system",
    "+callbacks.x={_target_: os.system, command: touch x}",
    "+callbacks.x.y={z: [{_target_: torch.hub.load}]}",
    "fit.optimizer._target_=torch.hub.load",
    "likelihood._target_=mine.Mine",
    "+model._recursive_=false",
    "name=${oc.env:SECRET}",
    "+data.x={a: '${oc.env:SECRET}'}",
    "+logger.wandb.settings.base_url=http://elsewhere",
    "logger={wandb: {settings: {base_url: elsewhere}}}",
    "logger.tensorboard.name=../elsewhere",
    "+logger.x={_target_: lowerbound.tracking.WandB}",
    "logger.tensorboard.name=$WANDB_API_KEY",
    "logger.tensorboard.version='~root'",
    "+logger@data.x=wandb",
    "logger@callbacks=wandb",
    "callbacks@_global_=default",
    "+trainer.profiler=simple",
    "++trainer.fast_dev_run=true",
    "+trainer={profiler: simple}",
    "trainer.strategy=ddp_spawn",
)
PLAIN = ("model=vae", "latent_dim=2", "~callbacks.pictures", "logger=[csv,wandb]", "logger=wandb", "data.path=../rows.npy", "name=a b")
PLAIN += ("logger.wandb.project=mine", "logger.wandb.tags=[a,b]", "trainer=ddp", "trainer.devices=2", "trainer.strategy.timeout.minutes=5")
PLAIN += ("fit.optimizer._target_=torch.optim.SGD", "+fit.optimizer.momentum=0.9", "network.encoder.sizes=[8]")


@pytest.mark.parametrize("word", WORDS)
def test_words_of_a_folder_only_choose_and_set(word: str) -> None:
    check_words(PLAIN)
    with pytest.raises(ValueError, match=re.escape(repr(word))):
        check_words([*PLAIN, word])


def test_a_choice_that_leads_out_of_conf_is_read_by_hydra(tmp_path: Path) -> None:
    """So that the words have to be looked at."""
    (tmp_path / "evil.yaml").write_text("_target_: os.system\ncommand: touch marker\n")
    way = os.path.relpath(tmp_path / "evil", zoo.CONF / "callbacks")
    assert zoo.composed(f"callbacks={way}").callbacks._target_ == "os.system"
    with pytest.raises(ValueError, match=r"leads out of conf/"):
        check_words([f"callbacks={way}"])


def test_a_word_that_the_user_says_again_is_the_users(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = commands.called("lowerbound-train", cli.main, folder.parent, monkeypatch, capsys)
    word = "likelihood._target_=mine.Mine"
    (folder / "overrides.yaml").write_text(OmegaConf.to_yaml([*(read_overrides(folder, "overrides.yaml") or []), word]))
    code, _, said = train("resume=stranger")
    assert code == 2
    assert f"resume=stranger: its word {word!r} is not taken from the folder" in said
    code, _, said = train("resume=stranger", word)
    assert code == 2
    assert "holds a run of another configuration" in said, "the word was taken"


# A key of W&B.


def test_no_key_is_kept_with_a_run_or_printed(finished: Path) -> None:
    files = [path for path in finished.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert "report:" in (finished.parent / "printed.txt").read_text()
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("word", ["+logger.wandb.settings.api_key=secret", "+logger.wandb.settings={api_key: secret}"])
def test_no_key_is_taken_from_the_command_line(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.train(tmp_path, monkeypatch, "logger=wandb", word) == 2
    assert "WANDB_API_KEY" in (said := capsys.readouterr().err)
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []
