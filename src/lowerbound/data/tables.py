"""Tables of numbers, with or without labels: from memory, or from ``.npy``, ``.npz`` and ``.csv`` files."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from lowerbound.data.module import TensorDataModule
from lowerbound.data.source import Source, as_labels, as_table
from lowerbound.errors import flag
from lowerbound.sizes import check_archive, check_array, require_room

_FORMATS = {
    ".npy": "An .npy holds one array of numbers, as numpy.save writes it.",
    ".npz": "An .npz holds arrays of numbers with names, as numpy.savez writes it.",
    ".csv": "A .csv holds a row in each line: numbers with commas between them, as many in each, in UTF-8.",
}


@dataclass(kw_only=True, eq=False, repr=False)
class InMemory(TensorDataModule):
    """Rows ``[N, D]`` or ``[N, ...]`` of an array or tensor, and their labels ``[N]`` if there are any; `dim` 0 is that of the rows."""

    x: ArrayLike | Tensor = field(kw_only=False)
    labels: ArrayLike | Tensor | None = None
    dim: int = 0

    def __post_init__(self) -> None:
        self.dim = self.dim or as_table(self.x).shape[1]
        super().__post_init__()

    def read(self) -> Source:
        """Take them as they are."""
        return Source(as_table(self.x), None if self.labels is None else as_labels(self.labels))


@dataclass(kw_only=True, eq=False, repr=False)
class Table(TensorDataModule):
    """A file of rows.

    ``.npy``: an array ``[N, ...]``; `labels` is the path of another; `memory_map` leaves it on disk, for files larger than memory.
    ``.npz``: `array` names the rows (None: the only array beside the labels), `labels` the labels.
    ``.csv``: the first line is a header if no field of it is a number, otherwise columns are named 0, 1, ...; `labels` names
    a column; an empty field is missing (NaN).
    """

    path: str
    array: str | None = None
    labels: str | None = None
    memory_map: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self.memory_map, "data.memory_map")
        if not isinstance(self.path, str):
            raise ValueError(f"data.path={self.path!r} must be the name of one file")
        self.array, self.labels = (None if name is None else str(name) for name in (self.array, self.labels))  # columns may be numbers

    def read(self) -> Source:
        """Read the file."""
        suffix = Path(self.path).suffix
        if suffix not in _FORMATS:
            raise ValueError(f"data.path={self.path} is none of {', '.join(_FORMATS)}")
        if suffix == ".npy" and self.labels is not None and Path(self.labels).suffix != ".npy":
            raise ValueError(f"data.labels={self.labels} is no .npy: the labels beside an .npy file are another")
        if self.memory_map and suffix != ".npy":
            raise ValueError(f"data.memory_map=true needs an .npy file, and data.path={self.path} is none")
        with _reading("data.path", self.path):
            rows, labels = {".npy": self._npy, ".npz": self._npz, ".csv": self._csv}[suffix]()
            table = as_table(rows)
        if self.labels is None:
            return Source(table, is_mapped=self.memory_map)
        with _reading("data.labels", self.labels if suffix == ".npy" else self.path):
            labels = _loaded(self.labels) if suffix == ".npy" else labels
            return Source(table, as_labels(labels), is_mapped=self.memory_map)

    def _npy(self) -> tuple[Any, None]:
        return _loaded(self.path, mmap_mode="c" if self.memory_map else None), None

    def _npz(self) -> tuple[Any, Any]:
        with _loaded(self.path) as arrays:
            others = [name for name in arrays.files if name != self.labels]
            name = self.array or (others[0] if len(others) == 1 else "")
            for option, wanted in (("array", name), ("labels", self.labels)):
                if wanted is not None and wanted not in arrays.files:
                    raise ValueError(f"set data.{option} to one of its arrays: {', '.join(arrays.files)}")
            return arrays[name], None if self.labels is None else arrays[self.labels]

    def _csv(self) -> tuple[Any, Any]:
        fields, count = _fields(self.path)
        has_header = not any(_is_number(field) for field in fields[:count])
        names = fields[:count] if has_header else [str(i) for i in range(count)]
        if self.labels is not None and self.labels not in names:
            raise ValueError(f"data.labels={self.labels} is none of its columns: {', '.join(names[:20])}")
        columns = [(name, fields[i + has_header * count :: count]) for i, name in enumerate(names)]
        labels = None if self.labels is None else columns.pop(names.index(self.labels))[1]
        if labels:
            require_room(self.path, 4 * len(labels) * max(map(len, labels)))  # numpy gives each the room of the longest
        return np.stack([_numbers(name, column) for name, column in columns], axis=1), labels


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(name: str, column: Sequence[str]) -> np.ndarray:
    column = [field if field.strip() else "nan" for field in column]
    try:
        return np.array(column, dtype=np.float64)
    except ValueError:
        text = next(field for field in column if not _is_number(field))
        raise ValueError(f"column {name} holds {text!r}, which is no number; data.labels={name} if these are the labels") from None


def _opened(path: str) -> IO[bytes]:
    """The file at a path, which is no address: numpy would fetch that, or unpack another file. A pipe would be waited for."""
    if Path(path).exists() and not Path(path).is_file():
        raise OSError("it is no file")
    return open(path, "rb")


def _loaded(path: str, mmap_mode: str | None = None) -> Any:
    """The array or arrays of a file of numpy's; of another numpy would say that it is a pickle, and how to load it unsafely."""
    with _opened(path) as file:
        begins = file.read(6)
    expected = {".npy": b"\x93NUMPY", ".npz": b"PK"}[Path(path).suffix]
    if not begins.startswith(expected):
        raise ValueError(f"it begins with {begins!r}, and not with {expected!r}" if begins else "it is empty")
    if expected == b"PK":
        check_archive(path)
    else:
        check_array(path, is_mapped=mmap_mode is not None)
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)  # pyright: ignore[reportArgumentType] a str


def _fields(path: str) -> tuple[list[str], int]:
    """The fields of a table in text, one line after the other, and how many are in each: as text, each takes its own room only."""
    fields: list[str] = []
    count = 0
    with TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as file:
        for line in filter(None, csv.reader(file)):
            count = count or len(line)
            if len(line) != count:
                raise ValueError(f"the number of columns changed from {count} to {len(line)} at row {len(fields) // count + 1}")
            fields += line
    if not fields:
        raise ValueError("it is empty")
    return fields, count


@contextmanager
def _reading(option: str, path: str) -> Iterator[None]:
    """Say which file and which option an error is about."""
    try:
        yield
    except OSError as error:
        where = "" if Path(path).is_absolute() else f" (in {Path.cwd()})"
        raise ValueError(
            f"{option}={path} cannot be read: {error.strerror or error}{where}\nSet {option} to a file that is there."
        ) from error
    except (ValueError, EOFError, BadZipFile, csv.Error, zlib.error) as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{option}={path}: {found}\n{_FORMATS[Path(path).suffix]}") from error
