"""Bad input has a clear answer: at most three lines that say what is wrong, where it came from and what would fit, and an exit code."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from compositions import BRIEF, answered, composition, fault, outcome, write_tables
from lowerbound import load
from lowerbound.claim import claimed
from lowerbound.data import InMemory
from lowerbound.folder import FORMAT, existing, read_checkpoint
from processes import COMMAND, finished, forked

TRAIN, EVALUATE, PREDICT = "lowerbound-train", "lowerbound-evaluate", "lowerbound-predict"
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is absent cannot be asked for on a machine that has one")


class Row(NamedTuple):
    """A line, and patterns of which each must be found in the answer."""

    words: str
    patterns: tuple[str, ...]
    command: str = TRAIN


def rows(table: dict[str, tuple[str, ...]], begin: str = "", command: str = TRAIN) -> list[Row]:
    return [Row(f"{begin} {words}", patterns, command) for words, patterns in table.items()]


VAE = "data=table data.path=real.npy data.dim=16 network.encoder.sizes=[4] latent_dim=2"
PPCA = "model=ppca data=table data.path=real.npy data.dim=16 latent_dim=2"
CONFIGURATION = [
    *rows(
        {
            "fit.optimiser.lr=1": ("no key fit.optimiser.lr", r"Did you mean fit.optimizer.lr\?"),
            "objectve=elbo": ("no key objectve", "objective"),
            "likelihood=bernouli": ("likelihood=bernouli: there is no such choice", "likelihood=bernoulli", "one of bernoulli, "),
            "seed=abc": ("seed='abc'", "whole number of at least 0"),
            "name=null": ("name=None", "must be a word"),
            "debug=perhaps": ("debug='perhaps'", "true or false"),
            "latent_dim=-1": ("latent_dim=-1", "at least 1"),
            "latent_dim=two": ("latent_dim='two'", "whole number"),
            "objective.beta=-1": ("objective.beta=-1", "at least 0"),
            "objective.beta=abc": ("objective.beta='abc'", "a schedule: beta=warm_up"),
            "objective.num_samples=0": ("objective.num_samples=0", "at least 1"),
            "objective.kl=exact": ("objective.kl='exact'", "analytic or sampled"),
            "beta=warm_up objective.beta.fraction=null objective.beta.steps=99": (
                "warm-up of 99 optimizer steps",
                "run of 1",
                "lower steps",
            ),
            "fit.optimizer.lr=fast": ("fit.optimizer.lr='fast'", "number of at least 0"),
            "fit.optimizer.lr=-1": ("fit.optimizer.lr=-1", "at least 0"),
            "fit.optimizer._target_=torch.optim.Adamm": ("torch.optim.Adamm", "No module named", r"\(in fit.optimizer"),
            "fit.scheduler=cosine": ("fit.scheduler='cosine'", "_target_ names a class"),
            "fit.clip=-1": ("fit.clip", "=-1", "above 0"),
            "fit.steps_per_execution=0": ("fit.steps_per_execution=0", "at least 1"),
            "network.encoder.activation=sine": ("activation='sine'", "relu, tanh", "likelihood"),
            "noise.scale=-1": ("noise.scale", "=-1", "above 0.001"),
            "fit=em": ("fit=em has no M-step", "Gaussian", "choose fit=gradient"),
            "posterior=exact": ("ExactGaussian", "choose likelihood=linear_gaussian", r"\(in model\)"),
            "prior=flat": ("DiagonalGaussian", "Flat", "choose prior=standard_normal"),
            "callbacks=early_stopping callbacks.early_stopping.patience=-1": ("callbacks.early_stopping.patience=-1", "at least 1"),
            "callbacks.best=3": ("callbacks.best=3", "~callbacks.best"),
            "trainer.precision=8-bit": ("trainer.precision=8-bit", "32-true, bf16-mixed"),
            "trainer.check_val_every_n_epoch=0": ("trainer.check_val_every_n_epoch=0", "at least 1"),
            "trainer.limit_train_batches=0": ("trainer.limit_train_batches=0", "leave it null"),
        },
        VAE,
    ),
    *rows(
        {
            "latent_dim=40": ("latent_dim=40", "below data.dim=16"),
            "fit=em trainer.precision=bf16-mixed": ("trainer.precision=bf16-mixed", "EMFit", "32-true or 64-true"),
            "network=mlp": ("network=mlp", "with model=ppca", "no network to choose"),
            "posterior=diagonal_gaussian": ("posterior.network", "no network with model=ppca", "choose parts that fit"),
            "fit=em fit.num_samples=0": ("fit.num_samples=0", "at least 1"),
            "fit.method=magic": ("fit.method='magic'", "auto, eigen or svd"),
        },
        PPCA,
    ),
]
DATA = [
    *rows(
        {
            "data.path=nowhere/x.npy": ("data.path=nowhere/x.npy cannot be read", r"\(in /.*bad", "a file that is there"),
            "data.path=x.parquet": ("data.path=x.parquet", ".npy, .npz, .csv"),
            "data.path=[a.npy,b.npy]": ("data.path=", "one file"),
            "data.path=truncated.npy": ("data.path=truncated.npy", "claims 7,680 bytes", "An .npy holds one array"),
            "data.path=header.npy": ("data.path=header.npy", "An .npy holds one array"),
            "data.path=magic.npy": ("data.path=magic.npy", "begins with b'no num", "An .npy holds one array"),
            "data.path=empty.npy": ("data.path=empty.npy", "is empty"),
            "data.path=truncated.npz": ("data.path=truncated.npz", "not a zip file", "An .npz holds arrays"),
            "data.path=corrupt.npz data.array=x": ("data.path=corrupt.npz", "An .npz holds arrays"),
            "data.path=several.npz": ("data.path=several.npz", "set data.array", "x, y"),
            "data.path=empty.csv": ("data.path=empty.csv", "is empty"),
            "data.path=ragged.csv": ("data.path=ragged.csv", "from 4 to 2 at row 3", "as many in each"),
            "data.path=words.csv": ("data.path=words.csv", "column d holds 'x'", "data.labels=d"),
            "data.path=bytes.csv": ("data.path=bytes.csv", "UTF-8"),
            "data.path=no_rows.npy": ("data.path=no_rows.npy", r"\(0, 16\)", "no rows"),
            "data.path=no_columns.npy": ("data.path=no_columns.npy", r"\(60, 0\)", "no columns"),
            "data.path=one_row.npy": ("0 val rows", "of 1 in all", "give more data"),
            "data.path=strings.npy": ("data.path=strings.npy", "<U", "not numbers"),
            "data.path=pickled.npy": ("data.path=pickled.npy", "Object arrays", "An .npy holds one array of numbers"),
            "data.path=long.npy": ("data.path=long.npy", "float128|longdouble", "float64"),
            "data.path=holes.npy": ("NaN", "DiagonalGaussian", "network=masked_mlp"),
            "data.path=infinite.npy": ("inf", "a missing entry is NaN"),
            "data.path=huge.npy": ("infinite values", "larger unit"),
            "data.path=nothing.npy": ("no observed value",),
            "data.dim=5": ("16 columns", "data.dim=5", r"Set data.dim=16\."),
            "data.dim=15": ("16 columns", "data.dim=15", "Set data.dim=16, or data.labels to the column"),
            "data.dim=0": ("data.dim=0", "at least 1"),
            "data.shape=[1,4,5]": (r"data.shape=\[1, 4, 5\]", "20 entries", "data.dim=16"),
            "data.shape=8": ("data.shape=8", "list of whole numbers"),
            "data.batch_size=-3": ("data.batch_size=-3", "at least 1"),
            "data.val_fraction=1": ("data.val_fraction=1", "below 1"),
            "data.prepare.levels=5": (r"numbers in \[", "data.prepare.levels=5", "levels=null"),
            "data.prepare.levels=few": ("data.prepare.levels", "'few'", "at least 2"),
            "data.prepare.dequantize=maybe": ("data.prepare.dequantize='maybe'", "true or false"),
            "data.prepare=3": ("data.prepare=3", "must be a Preparation"),
            "data.memory_map=maybe": ("data.memory_map='maybe'", "true or false"),
            "data.missing.fraction=1": ("data.missing.fraction=1", "below 1"),
            "likelihood=bernoulli": (r"data in \[-", "0 and 1", "likelihood=gaussian"),
            "data.labels=short.npy": ("39 labels for 60 rows", "data.labels"),
            "data.labels=lost.npy": ("data.labels=lost.npy", "60 of 60 labels are NaN"),
            "data.labels=nowhere.npy": ("data.labels=nowhere.npy cannot be read", "a file that is there"),
        },
        VAE,
    ),
    *rows(
        {
            "model=mixture data=table data.path=real.npy data.dim=16 num_components=50": ("num_components=50", "42"),
            "data=linear_gaussian data.num_data=-1": ("data.num_data=-1", "at least 1"),
            "data=linear_gaussian data.noise_variance=loud": ("data.noise_variance='loud'", "at least 0"),
            "data=mixture data.num_components=0": ("data.num_components=0", "at least 1"),
            "data=mnist data.root=nowhere data.download=false": ("MNIST is not in", "data.root", "LOWERBOUND_DATA"),
        }
    ),
]
DEVICES = rows(
    {
        "trainer.accelerator=abacus": ("trainer.accelerator=abacus", "cpu, gpu"),
        "trainer.devices=0": ("trainer.devices", "=0", "at least 1"),
        "trainer.devices=all": ("trainer.devices", "'all'", "or auto"),
        "trainer.num_nodes=0": ("trainer.num_nodes=0", "at least 1"),
    },
    VAE,
)
ABSENT = rows(
    {
        "trainer=gpu": ("trainer.accelerator=gpu", "sees no GPU", "trainer=cpu"),
        "trainer=gpu trainer.devices=8": ("trainer.accelerator=gpu", "sees no GPU"),
        "trainer.precision=16-mixed": ("trainer.precision=16-mixed needs a GPU", "bf16-mixed or 32-true"),
    },
    VAE,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables that are as they should be, and with all kinds of others."""
    folder = tmp_path_factory.mktemp("bad")
    write_tables(folder)
    x = np.load(folder / "real.npy")
    tables = {
        "no_rows": x[:0],
        "no_columns": x[:, :0],
        "one_row": x[:1],
        "strings": x.astype(str),
        "long": x.astype(np.longdouble),
        "infinite": np.where(x > 1, np.inf, x),
        "huge": x * 1e300,
        "nothing": x * np.nan,
        "short": np.arange(39),
        "lost": x[:, 0] * np.nan,
    }
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table)
    np.save(folder / "pickled.npy", np.array([[print]], dtype=object), allow_pickle=True)
    np.savez(folder / "several.npz", x=x, y=x)
    archive, array = (folder / "several.npz").read_bytes(), (folder / "real.npy").read_bytes()
    contents: dict[str, bytes] = {
        "truncated.npy": array[:500],
        "header.npy": array[:20],
        "magic.npy": b"no numbers" + array[10:],
        "empty.npy": b"",
        "truncated.npz": archive[:300],
        "corrupt.npz": archive[:500] + bytes([archive[500] ^ 255]) + archive[501:],
        "empty.csv": b"",
        "ragged.csv": b"a,b,c,d\n1,2,3,4\n1,2\n",
        "words.csv": b"a,b,c,d\n" + b"1,2,3,x\n" * 40,
        "bytes.csv": b"a,b,c,d\n1,2,3,\xe9\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def check(row: Row, code: int | None, err: str) -> None:
    assert code == 2, err
    assert err.startswith(f"{row.command}: ")
    assert len(err.splitlines()) <= 3, err
    assert "Traceback" not in err
    for pattern in row.patterns:
        assert re.search(pattern, err), f"{pattern} is not in\n{err}"


def names(table: list[Row]) -> list[Any]:
    return [pytest.param(row, id=row.words.removeprefix(f"{VAE} ").removeprefix(f"{PPCA} ").strip()) for row in table]


@pytest.mark.parametrize(
    "row", [*names(CONFIGURATION + DATA + DEVICES), *(pytest.param(*one.values, marks=NO_GPU, id=one.id) for one in names(ABSENT))]
)
def test_what_does_not_fit_is_said_in_three_lines(row: Row, place: Path) -> None:
    answer = answered(place, row.command, *BRIEF, *row.words.split())
    check(row, answer.code, answer.err)


def keep(change: Callable[[dict[str, Any]], Any], name: str = "weights.ckpt") -> Callable[[Path], None]:
    """Write a checkpoint of a folder once more, changed."""

    def write(folder: Path) -> None:
        checkpoint = read_checkpoint(folder / name)
        torch.save(change(checkpoint) or checkpoint, folder / name)

    return write


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: {name: value for name, value in checkpoint.items() if name != key}


def widened(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["state_dict"]
    state["model.likelihood.weight"] = torch.zeros(16, 5)


def narrowed(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["model.likelihood.weight"]


def spoilt(name: str, cut: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(cut((folder / name).read_bytes())) and None


DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (spoilt("weights.ckpt", lambda whole: whole[:-900]), ("weights.ckpt is damaged", "whole copy")),
    "empty": (spoilt("weights.ckpt", lambda whole: b""), ("weights.ckpt is damaged", "whole copy")),
    "a flipped bit": (spoilt("weights.ckpt", lambda whole: whole.replace(b"state_dict", b"state_dicu")), ("weights.ckpt is damaged",)),
    "no checkpoint": (lambda folder: torch.save([1, 2], folder / "weights.ckpt"), ("holds a list", "the run's own")),
    "code": (lambda folder: torch.save({"state_dict": print}, folder / "weights.ckpt"), ("holds more than tensors and plain containers",)),
    "a missing key": (keep(without("state_dict")), ("weights.ckpt", "has no state_dict", "the run's own")),
    "a missing tensor": (keep(narrowed), ("likelihood.weight is missing",)),
    "another shape": (keep(widened), (r"likelihood.weight is \[16, 5\] and not \[16, 2\]", "the run's own")),
    "another model": (keep(lambda c: {**c, "state_dict": {"model.w": torch.ones(1)}}), ("is missing", "another model")),
    "a newer version": (keep(lambda c: {**c, "format": FORMAT + 1}), (f"format {FORMAT + 1}", f"up to {FORMAT}", "pip install")),
    "no configuration": (spoilt("config.yaml", lambda whole: b"model: [1,"), ("config.yaml is damaged",)),
    "another file as configuration": (spoilt("config.yaml", lambda whole: b"a: 1\n"), ("config.yaml", "model and data")),
}
GOING_ON: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a newer version": (keep(lambda c: {**c, "format": FORMAT + 1}, "last.ckpt"), (f"format {FORMAT + 1}", "pip install")),
    "a missing key": (keep(without("ranks"), "last.ckpt"), ("last.ckpt", "has no ranks", "another folder")),
    "weights alone": (lambda folder: copyfile(folder / "weights.ckpt", folder / "last.ckpt") and None, ("last.ckpt", "optimizer_states")),
    "another shape": (keep(widened, "last.ckpt"), (r"likelihood.weight is \[16, 5\]",)),
    "no configuration": (spoilt("config.yaml", lambda whole: b"model: [1,"), ("config.yaml is damaged",)),
}


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    answer = answered(place, TRAIN, *BRIEF, *PPCA.split(), "fit=em", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    return place / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(copytree(run, tmp_path / "copy"))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_is_not_as_it_was_is_not_loaded(name: str, copy: Path, place: Path) -> None:
    damage, patterns = DAMAGE[name]
    damage(copy)
    command, *others = (EVALUATE,) if name == "truncated" else (PREDICT, f"file={copy}/out.npy")
    answer = answered(place, command, f"run={copy}", *others)
    check(Row("", patterns, command), answer.code, answer.err)
    with pytest.raises(ValueError, match=patterns[0]):
        load(copy)


@pytest.mark.parametrize("name", GOING_ON)
def test_a_folder_that_is_not_as_it_was_is_not_gone_on_with(name: str, copy: Path, place: Path) -> None:
    damage, patterns = GOING_ON[name]
    (copy / "results.json").unlink()
    damage(copy)
    answer = answered(place, TRAIN, f"resume={copy}")
    check(Row("", patterns), answer.code, answer.err)


def test_checkpoints_of_this_version_and_of_one_before_formats_were_counted_are_read(copy: Path) -> None:
    assert read_checkpoint(copy / "weights.ckpt")["format"] == FORMAT
    z = torch.zeros(3, 16, dtype=torch.float64)
    expected = load(copy).model.log_prob(z)
    keep(without("format"))(copy)
    assert torch.equal(load(copy).model.log_prob(z), expected)


def test_what_is_no_run_folder_is_said_with_what_it_is(copy: Path) -> None:
    with pytest.raises(ValueError, match="weights.ckpt is missing. There are run folders in it, as .*/copy"):
        read_checkpoint(existing(copy.parent, "weights.ckpt"))
    (copy / "weights.ckpt").unlink()
    (copy / "failure.txt").write_text("ValueError: no luck\n")
    with pytest.raises(ValueError, match="weights.ckpt is missing. The run has failed: failure.txt in it says why"):
        load(copy)


def test_a_second_run_in_a_folder_waits_for_nobody(place: Path, tmp_path: Path) -> None:
    with claimed(tmp_path):
        answer = answered(place, TRAIN, *BRIEF, *PPCA.split(), f"hydra.run.dir={tmp_path}")
    check(Row("", (f"{tmp_path.name} is being written by process {os.getpid()}", "wait for its end")), answer.code, answer.err)


def test_a_port_in_use_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        main = port - 5000 if port > 10000 else port + 5000
        around = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**around, "MASTER_PORT": str(main)}.items():
            monkeypatch.setenv(name, value)
        answer = answered(place, TRAIN, *BRIEF, *PPCA.split(), "trainer=ddp", "trainer.accelerator=cpu")
        check(Row("", (f"MASTER_PORT={main}", f"port {port}", "another MASTER_PORT")), answer.code, answer.err)


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_a_variable_that_is_no_number_is_named(variable: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "x" if name == variable else "0")
    answer = answered(place, TRAIN, *BRIEF, *PPCA.split())
    check(Row("", (f"{variable}='x'", "whole number")), answer.code, answer.err)


def test_debug_shows_the_traceback(place: Path) -> None:
    answer = answered(place, TRAIN, *BRIEF, *PPCA.split(), "seed=abc", "debug=true")
    assert "Traceback" in answer.err
    assert "seed='abc'" in answer.err


END_TO_END = {
    "a typo": ("fit.optimiser.lr=1", "Did you mean"),
    "a file": ("data=table data.path=magic.npy data.dim=16 model=ppca", "data.path=magic.npy"),
    "a pair": ("model=vae fit=em network.encoder.sizes=[4]", "choose fit=gradient"),
    "a device": ("trainer.accelerator=abacus", "cpu, gpu"),
    "a size": ("latent_dim=-1", "latent_dim=-1"),
}


@pytest.mark.process
@pytest.mark.parametrize("name", END_TO_END)
def test_in_a_process_of_its_own(name: str, place: Path, processes: Any, tmp_path: Path) -> None:
    """One of them with all that a start writes; the others without its seconds."""
    words, pattern = END_TO_END[name]
    line = (*BRIEF, *words.split())
    code, out = finished(place, *COMMAND, *line) if name == "a device" else forked(processes, place, tmp_path / "log", *line).ended()
    check(Row(words, (pattern,)), code, out)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compositions")
    write_tables(folder)
    return folder


@settings(max_examples=8, derandomize=True, deadline=None, database=None, phases=[Phase.generate])  # a smaller one takes minutes to find
@given(data=st.data())
def test_whatever_is_composed_trains_or_is_refused(data: st.DataObject, tables: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    words = composition(lambda options: data.draw(st.sampled_from(options)))
    folder = tmp_path_factory.mktemp("run")
    answer = answered(tables, TRAIN, f"hydra.run.dir={folder}", *words)
    assert outcome(answer, folder) in ("trained", "refused", "diverged"), answer.err


def test_the_check_of_compositions_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tables: Path) -> None:
    def broken(path: str, *_: Any) -> Any:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("lowerbound.data.tables._loaded", broken)
    answer = answered(tables, TRAIN, *BRIEF, *PPCA.split())
    assert "an error that nobody foresaw" in str(fault(answer))


KINDS = ("f2", "<f4", "<f8", ">f4", ">f8", "u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", "<u4", "<i8", ">i8", "<u8", "?")
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "columns first": np.asfortranarray,
    "backwards": lambda x: x[::-1].copy()[::-1],
    "mirrored": lambda x: x[:, ::-1].copy()[:, ::-1],
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "a field of records": lambda x: np.array([(0, row) for row in x], dtype=[("a", "i1"), ("x", x.dtype, x.shape[1:])])["x"],
}


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(sorted(LAYOUTS)),
    shape=st.tuples(st.integers(3, 40), st.integers(1, 5), st.integers(1, 3)),
    is_flat=st.booleans(),
    is_writable=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_storage_of_an_array_changes_nothing(
    kind: str, layout: str, shape: tuple[int, ...], is_flat: bool, is_writable: bool, seed: int
) -> None:
    """Against the same numbers as a plain float64 array; all of them are small enough for float32 and float16 to hold."""
    numbers = np.random.default_rng(seed).integers(0, 100, shape[:2] if is_flat else shape)
    expected = InMemory(numbers.astype(kind).astype("<f8"), val_fraction=0.34, test_fraction=0.34)
    array = LAYOUTS[layout](numbers.astype(kind))
    array.flags.writeable = is_writable
    found = InMemory(array, val_fraction=0.34, test_fraction=0.34)
    for part in ("train", "val", "test"):
        assert torch.equal(found.part(part).x, expected.part(part).x)
    assert found.dim == numbers[0].size


@pytest.mark.parametrize("shape", [(3,), (0, 2), (3, 0)])
@pytest.mark.parametrize("kind", ["f8", "c16", "U3", "O"])
def test_what_is_no_table_is_refused_from_python_too(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ValueError, match="the data are"):
        InMemory(np.zeros(shape, kind))
