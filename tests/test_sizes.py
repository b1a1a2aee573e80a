"""Bombs: files that say that they hold more than there is memory for, or than they do, are refused before they are read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from lowerbound import sizes
from lowerbound.checkpoints import newest_whole
from lowerbound.data import Table
from lowerbound.errors import TooLargeError
from lowerbound.folder import read_checkpoint

ENDLESS = 10**15


def claiming(shape: tuple[int, ...], content: bytes = b"12345678") -> bytes:
    """An ``.npy`` whose header says that it is of a shape."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
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
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_no_array_claims_more_than_it_holds(shape: tuple[int, ...], ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(claiming(shape))
    if ending == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", claiming(shape))
    monkeypatch.setattr(np, "load", pytest.fail)
    with pytest.raises(ValueError, match=rf"data\.path=.*x{ending}.* claims [\d,]+ bytes.*and holds 8"):
        Table(path=str(path), dim=1).read()


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
