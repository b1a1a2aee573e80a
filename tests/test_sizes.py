"""Bombs: files that say that they hold more than there is memory for, or than they do, are refused before they are read."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from lowerbound import sizes
from lowerbound.checkpoints import newest_whole
from lowerbound.data import BernoulliMixtureData, LinearGaussianData, MixtureData, Table
from lowerbound.errors import TooLargeError
from lowerbound.folder import read_checkpoint

ENDLESS = 10**15


def claiming(shape: tuple[int, ...], content: bytes = b"12345678", dtype: str = "<f8") -> bytes:
    """An ``.npy`` whose header says that it is of a shape."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def test_a_bomb_is_not_let_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that are small on disk, on a machine with less memory than they would take."""
    size = 8 * 10**6
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 1000)))
    torch.save({"state_dict": {"x": torch.zeros(1000, 1000, dtype=torch.float64)}}, tmp_path / "x.ckpt")
    assert (tmp_path / "x.npz").stat().st_size < size / 100
    reads: list[tuple[str, Callable[[], object]]] = [
        ("x.npz", lambda: Table(path=str(tmp_path / "x.npz"), dim=1000).read()),
        ("x.ckpt", lambda: read_checkpoint(tmp_path / "x.ckpt")),
        ("x.ckpt", lambda: newest_whole(tmp_path / "x.ckpt")),  # it is not called damaged, and the run begun again
    ]
    for _, read in reads:
        read()
    monkeypatch.setattr(sizes, "available_memory", lambda: size - 1)
    for reader in ("numpy.lib.npyio.NpzFile.__getitem__", "torch.load"):
        monkeypatch.setattr(reader, pytest.fail)
    for name, read in reads:
        with pytest.raises(ValueError, match=rf"{name}.* holds 8,\d{{3}},\d{{3}} bytes by its own account, and 7,999,999 bytes"):
            read()


def test_a_table_larger_than_memory_may_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 10)))
    monkeypatch.setattr(sizes, "available_memory", lambda: 100)
    assert Table(path=str(tmp_path / "x.npy"), dim=10, memory_map=True).read().train.shape == (100, 10)
    with pytest.raises(TooLargeError):
        sizes.check_array(tmp_path / "x.npy")


@pytest.mark.parametrize("shape", [(ENDLESS, 1), (1, 2), (-ENDLESS, -1)])
@pytest.mark.parametrize("member", [None, "x.npy", "x"])
def test_no_array_claims_more_than_it_holds(
    shape: tuple[int, ...], member: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a member of an archive that is not called ``.npy``, which numpy reads as one all the same."""
    ending = ".npz" if member else ".npy"
    path = tmp_path / f"x{ending}"
    path.write_bytes(claiming(shape))
    if member:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, claiming(shape))
    monkeypatch.setattr(np, "load", pytest.fail)
    with pytest.raises(ValueError, match=rf"data\.path=.*x{ending}.* claims [\d,]+ bytes.*and holds 8"):
        Table(path=str(path), dim=1).read()


@pytest.mark.parametrize("dtype", ["|S0", "<U0", "|V0"])
def test_no_entry_takes_no_room(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header alone could claim any number of them, of which numpy makes strings of one letter."""
    np.save(tmp_path / "x.npy", np.zeros((3, 1)))
    (tmp_path / "labels.npy").write_bytes(claiming((3 * 10**8,), b"", dtype))
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: pytest.fail(path) if "labels" in path else load(path, **options))
    with pytest.raises(ValueError, match=r"data\.labels=.* claims an array \[300000000\] of entries that take no room"):
        Table(path=str(tmp_path / "x.npy"), labels=str(tmp_path / "labels.npy"), dim=1).read()


def test_a_long_field_of_a_table_takes_its_own_room_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of each other field too, which is 1.6 GB of 60 kB."""
    (tmp_path / "x.csv").write_text("1\n" * 20000 + f"{'0' * 19999}1\n")
    tracemalloc.start()
    assert Table(path=str(tmp_path / "x.csv"), dim=1).read().train.sum() == 20001
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    (tmp_path / "x.csv").write_text("1,a\n" * 20000 + f"1,{'b' * 20000}\n")
    monkeypatch.setattr(sizes, "available_memory", lambda: 10**8)
    with pytest.raises(ValueError, match=r"x\.csv holds 1,600,080,000 bytes"):  # labels are one array
        Table(path=str(tmp_path / "x.csv"), labels="1", dim=1).read()


class Zeros:
    """What is pickled as a call that makes many zeros."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (3 * 10**7,)


CLAIMS: dict[str, Callable[[], object]] = {
    r"claims a tensor \[1000000000000\]": lambda: torch.zeros(1, dtype=torch.float64).expand(10**12),
    "meta": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.zeros(3).to_sparse(),
    "more than tensors": Zeros,
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_tensor_of_a_checkpoint_claims_more_than_it_holds(claim: str, tmp_path: Path) -> None:
    path, deep = tmp_path / "x.ckpt", [torch.zeros(1)]
    for _ in range(100):
        deep = [deep, deep]  # which takes for ever to go through one by one
    torch.save({"state_dict": {"x": torch.zeros(4)[:2]}, "deep": deep}, path)
    read_checkpoint(path)
    torch.save({"state_dict": {}, "preparation": {"steps.2.mean": CLAIMS[claim]()}, "deep": deep}, path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"x\.ckpt is damaged.*{claim}"):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    assert newest_whole(path)[0] is None


@pytest.mark.parametrize("kind", [LinearGaussianData, MixtureData, BernoulliMixtureData])
def test_data_that_are_drawn_fit_into_memory(kind: Callable[..., object]) -> None:
    for counts in ({"num_data": 10**12}, {"dim": 10**12}):
        with pytest.raises(TooLargeError, match=r"data\.dim=.*, data\.num_data=.* bytes of memory are available"):
            kind(**counts)


def test_what_does_not_claim_too_much_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(claiming((1, 1)))
    assert Table(path=str(tmp_path / "x.npy"), dim=1).read().train.shape == (1, 1)


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy"])
def test_no_name_in_an_archive_leads_out_of_it(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "x.npz", tmp_path / "x.ckpt"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, claiming((1, 1)))
    with pytest.raises(ValueError, match=r"x\.npz.*holds .*leads out of it"):
        Table(path=str(tmp_path / "x.npz"), dim=1).read()
    with pytest.raises(ValueError, match=r"x\.ckpt.*holds .*leads out of it"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_the_memory_is_that_of_the_machine() -> None:
    assert 0 < sizes.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
