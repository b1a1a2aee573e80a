"""What files say of their own size, looked at before anything is read: a few bytes can claim more than the machine has.

An archive (a checkpoint, an ``.npz``) names its members and their sizes in its table of contents; an ``.npy`` begins with the shape
and the type of its array, as does a member of an ``.npz`` whatever it is called.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from numpy.lib import format as npy

from lowerbound.errors import TooLargeError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def check_archive(path: str | Path) -> None:
    """Refuse a zip archive that holds more than there is memory for, names that lead out of it, or arrays that claim more than they hold.

    Raises:
        TooLargeError: its members are together larger than the available memory, by what it says itself.
        BadZipFile: it is no such archive, or is encrypted, or packed in another way than numpy and torch do.
        ValueError: as said; the message names the member.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            require_room(path, sum(member.file_size for member in members))
            for member in members:
                _check_member(path, archive, member)
    except RuntimeError as error:  # zipfile's, of what it cannot unpack
        raise BadZipFile(str(error)) from error


def check_array(path: str | Path, is_mapped: bool = False) -> None:
    """Refuse an ``.npy`` file that claims more than it holds, or, unless it stays on disk, holds more than there is memory for.

    Raises:
        TooLargeError: as said.
        ValueError: as said, or the file is none.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_header(str(path), file, size)
    if not is_mapped:
        require_room(path, size)


def require_room(path: str | Path, size: int) -> None:
    """Refuse what does not fit into the memory that is available.

    Raises:
        TooLargeError: as said.
    """
    if size > (available := available_memory()):
        raise TooLargeError(f"{path} holds {size:,} bytes by its own account, and {available:,} bytes of memory are available")


def available_memory() -> int:
    """Bytes that can be taken without swapping, as Linux estimates them; elsewhere all of the memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = dict(line.split(":") for line in lines)
    return int(facts["MemAvailable"].split()[0]) * 1024


def _check_member(path: str | Path, archive: ZipFile, member: ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{path} holds {member.filename}, a name that leads out of it")
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise BadZipFile(f"{member.filename} is packed by method {member.compress_type}, which nothing here writes")
    with archive.open(member) as file:
        is_array = name.suffix == ".npy" or file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
    if is_array:
        with archive.open(member) as file:
            _check_header(f"{path}: {member.filename}", file, member.file_size)


def _check_header(name: str, file: IO[bytes], size: int) -> None:
    try:
        shape, _, dtype = HEADERS[npy.read_magic(file)](file)
    except (ValueError, KeyError, TokenError, RecursionError, MemoryError) as error:  # the header is parsed as Python
        raise ValueError(f"{name} is no array of numbers (.npy): {error}") from error
    if not dtype.itemsize:
        raise ValueError(f"{name} claims an array {list(shape)} of entries that take no room ({dtype})")
    claimed = prod(shape) * dtype.itemsize
    if claimed > size - file.tell() and not dtype.hasobject:  # which is refused as such, wherever it is read
        raise ValueError(f"{name} claims {claimed:,} bytes, an array {list(shape)} of {dtype}, and holds {size - file.tell():,}")
