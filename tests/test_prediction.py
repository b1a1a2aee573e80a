"""`lowerbound-predict`: every output as a file, in the data's own units, against the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import commands
import lowerbound
from lowerbound.cli import predict

Predict = Callable[..., tuple[int, str, str]]
INTEGERS = load_digits().data[:20]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Probabilistic PCA of the digits, dequantized."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        assert commands.train(place, patch, "model=ppca", "latent_dim=3", "~callbacks.pictures", "name=small") == 0
    (folder,) = (place / "outputs" / "small").iterdir()
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    return commands.called("lowerbound-predict", predict, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("output", ["encode", "reconstruct", "log_prob", "impute"])
def test_what_is_written_is_what_the_model_says(output: str, run: Path, command: Predict, tmp_path: Path) -> None:
    raw = INTEGERS.copy()
    if output == "impute":
        raw[3, 20:30] = np.nan
    np.save(tmp_path / "rows.npy", raw)
    code, out, _ = command(f"run={run}", f"output={output}", "rows=rows.npy", f"file={output}.npy")
    assert code == 0
    assert f"{output}.npy" in out
    found, loaded = np.load(tmp_path / f"{output}.npy"), lowerbound.load(run)
    x = loaded.prepare(torch.tensor(raw), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = {
            "encode": loaded.model.encode,
            "log_prob": loaded.model.log_prob,
            "reconstruct": lambda x: loaded.prepare.inverse(loaded.model.reconstruct(x)),
            "impute": lambda x: loaded.prepare.inverse(loaded.model.impute(x).mean),
        }[output](x)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-10)
    for rows, kind in ((raw, np.ndarray), (torch.tensor(raw), torch.Tensor)):
        answer = getattr(loaded, output)(rows)
        assert isinstance(answer, kind)
        assert np.array_equal(found, answer), "the same bits from Python"
    if output == "impute":
        assert np.isfinite(found).all()
        seen = ~np.isnan(raw)
        np.testing.assert_allclose(found[seen], raw[seen], rtol=0, atol=1e-3, err_msg="what was observed comes back")


def test_a_code_is_decoded_to_what_its_row_is_reconstructed_to(run: Path) -> None:
    loaded = lowerbound.load(run)
    np.testing.assert_array_equal(loaded.decode(loaded.encode(INTEGERS)), loaded.reconstruct(INTEGERS))
    assert isinstance(loaded.decode(torch.zeros(2, 3)), torch.Tensor)
    with pytest.raises(ValueError, match=r"codes of shape \(2, 4\), and the model's are \[N, 3\]"):
        loaded.decode(np.zeros((2, 4)))


def test_samples_are_in_the_units_of_the_data(run: Path, command: Predict, tmp_path: Path) -> None:
    command(f"run={run}", "output=sample", "num_samples=500", "file=some.csv")
    found = np.loadtxt(tmp_path / "some.csv", delimiter=",")
    assert found.shape == (500, 64)
    mean = load_digits().data.mean()
    assert found.mean() == pytest.approx(mean, abs=1.0)


def test_without_a_file_the_rows_are_those_of_the_test(run: Path, command: Predict) -> None:
    assert command(f"run={run}")[0] == 0
    assert np.load(run / "encode.npy").shape == (359, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("output=decode",), "output=decode is none of encode"),
        (("file=codes.txt",), "file=codes.txt is none of .npy, .csv"),
        (("rows=absent.npy",), "rows=absent.npy cannot be read"),
        (("rows=high.npy",), "rows=high.npy: the data are integers in [0, 99]"),
        (("rows=narrow.npy",), "has 3 columns"),
    ],
)
def test_what_does_not_fit_is_said(arguments: tuple[str, ...], words: str, run: Path, command: Predict, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((4, 3)))
    np.save(tmp_path / "high.npy", np.tile([0, 99], (4, 32)))
    code, _, err = command(f"run={run}", *arguments)
    assert code == 2
    assert words in err
    assert "Set data." not in err, "no option of the training is advised"


def test_rows_that_the_model_cannot_take_are_refused_and_not_answered_with_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("latent_dim=2", "network.encoder.sizes=[8]", "trainer.max_epochs=1", "~callbacks.pictures", "hydra.run.dir=run")
    assert commands.train(tmp_path, monkeypatch, *small) == 0
    loaded, raw = lowerbound.load(tmp_path / "run"), INTEGERS.copy()
    raw[3:5, 20] = np.nan
    for ask in (loaded.encode, loaded.log_prob, loaded.reconstruct, loaded.impute):
        with pytest.raises(ValueError, match="rows: NaN in 2 of 20, which the model does not marginalise:\nchoose .*masked_mlp"):
            ask(raw)
    with pytest.raises(ValueError, match=r"not rows \[N, D\]"):
        loaded.encode(raw[0])
    for count in (-1, 2.5):
        with pytest.raises(ValueError, match=f"num_data={count}"):
            loaded.sample(count)
