"""A shard's first page: what must be known to be whole before HDF5 reads the file.

HDF5 leaves the beginning of a file to its user (the user block), so that the file stays an ordinary
one. There stand, in a line of JSON with a checksum of its own, the file's size and a checksum of
HDF5's own structures, which all lie before the first tensor. So damaged lengths and addresses never
reach the library, which may read for ever by them. Tensors have each a checksum in `/checksums`;
that table and `/sources` change while a shard is written, and are sealed when it is finished. What
fills the last page of a tensor is read by nobody.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from tpimpi.errors import MachineError, UserError
from tpimpi.shards.layout import FORMAT_VERSION, PAGE

MEND = "cut the shards anew with --split-bin of `tpimpi convert`, `generate` or `bench`"
_TITLE = "tpimpi shard, format "
_HDF5 = b"\x89HDF\r\n\x1a\n"


class OtherFormatError(UserError):
    """Say that a shard is of another format than this program's."""


@dataclass(frozen=True)
class Seal:
    """Where a shard's parts lie, and the checksums (CRC-32) of those that are no tensor."""

    size: int  # of the file
    first: int  # byte of the first tensor; HDF5's structures and the tables lie before it
    tables: tuple[tuple[int, int], ...]  # offset and bytes of /checksums and /sources
    structures: int  # checksum of all before `first` but the tables
    written: int | None  # checksum of the tables; None while the shard is being written


def write_seal(fd: int, size: int, first: int, tables, finished: bool) -> None:
    """Seal a shard as it is now."""
    tables = tuple(sorted(tables))
    structures, written = _checksums(fd, first, tables)
    seal = Seal(size, first, tables, structures, written if finished else None)
    text = f"{_TITLE}{FORMAT_VERSION}\n{json.dumps(asdict(seal))}\n".encode()
    page = text.ljust(PAGE - 4, b"\0")
    os.pwrite(fd, page + zlib.crc32(page).to_bytes(4, "little"), 0)


def check_seal(fd: int, path: Path) -> Seal:
    """Return the seal of an open shard; raise where the file is no shard, or damaged.

    Raises OtherFormatError or MachineError, both with the way out.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise MachineError(f"{path} is no file, so no shard; remove it or choose another folder")
    page = os.pread(fd, PAGE, 0)
    if page.startswith(_HDF5):
        raise OtherFormatError(
            f"{path} has an older format than version {FORMAT_VERSION}, or is no shard; {MEND}"
        )
    if len(page) < PAGE or zlib.crc32(page[:-4]) != int.from_bytes(page[-4:], "little"):
        raise MachineError(f"{path} is no shard, or its first page is damaged; {MEND}")
    title, text = page[:-4].rstrip(b"\0").decode().splitlines()
    version = title.removeprefix(_TITLE)
    if version != str(FORMAT_VERSION):
        raise OtherFormatError(
            f"{path} has format version {version}, but this run needs {FORMAT_VERSION}; {MEND}"
        )
    seal = Seal(**json.loads(text))
    if status.st_size != seal.size:
        raise MachineError(
            f"{path} is damaged or cut short: {status.st_size} bytes of {seal.size}; {MEND}"
        )
    structures, written = _checksums(fd, seal.first, seal.tables)
    if structures != seal.structures or seal.written not in (None, written):
        raise MachineError(f"{path} is damaged: what describes its tensors has changed; {MEND}")
    return seal


def _checksums(fd: int, first: int, tables) -> tuple[int, int]:
    """Return the checksums of what lies before the first tensor: without the tables; of them."""
    data = os.pread(fd, first, 0)
    structures, written, at = 0, 0, PAGE
    for offset, nbytes in tables:
        structures = zlib.crc32(data[at:offset], structures)
        at = offset + nbytes
        written = zlib.crc32(data[offset:at], written)
    return zlib.crc32(data[at:], structures), written
