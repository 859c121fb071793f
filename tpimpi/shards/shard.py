"""One rank's HDF5 file: whose it is, where its tensors lie, and whether it is whole."""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.errors import MachineError, UserError
from tpimpi.model.encoding import ENCODINGS
from tpimpi.progress import Progress
from tpimpi.shards.layout import Identity, StoredTensor
from tpimpi.shards.seal import MEND, OtherFormatError, check_seal

WRITTEN = 1 << 32  # added to a CRC-32, so that 0 always means "not written"
_LOCK_SECONDS = 5.0  # a lock that lasts longer is not that of a writer about to close


@dataclass(frozen=True)
class Layout:
    """What a shard says of itself: for whom it is, its tensors in tape order, its tables."""

    identity: Identity
    tensors: list[StoredTensor]
    checksums: int  # offset of `/checksums`: [n] uint64
    sources: int  # offset of `/sources`: [n, HASH_BYTES] uint8

    @property
    def tables(self) -> list[tuple[int, int]]:
        """The offset and the bytes of both tables."""
        count = len(self.tensors)
        return [(self.checksums, 8 * count), (self.sources, HASH_BYTES * count)]


def read_layout(path: Path, finished: bool = True) -> Layout:
    """Return what a shard says of itself, after its seal has been found whole.

    Raises UserError or MachineError.
    """
    # A pipe would keep the process waiting for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        seal = check_seal(fd, path)
    finally:
        os.close(fd)
    if finished and seal.written is None:
        raise MachineError(f"{path} was not written to its end; {MEND}")
    return parse(path)


def parse(path: Path) -> Layout:
    """Return what a shard says of itself, where it is known to be whole."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            identity = Identity(
                fingerprint=_text(file.attrs["fingerprint"]),
                partition=_text(file.attrs["partition"]),
                rank=int(file.attrs["rank"]),
                size=int(file.attrs["size"]),
                config=_text(file.attrs["config"]),
            )
            tensors = [_stored(file, _text(name)) for name in file["tape"][...]]
            checksums, sources = (file[name].id.get_offset() for name in ("checksums", "sources"))
            return Layout(identity, tensors, checksums, sources)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        detail = str(error).strip("'\"").splitlines()[0]
        raise MachineError(f"{path} is damaged or no shard ({detail}); {MEND}") from error


def _text(value: bytes) -> str:
    # Of fixed length: HDF5 keeps the lengths of others in a heap that has no checksum.
    return bytes(value).decode()


def _stored(file: h5py.File, name: str) -> StoredTensor:
    dataset = file[name]
    encoding, in_panels = _text(dataset.attrs["encoding"]), "rows" in dataset.attrs
    shape = tuple(dataset.shape)
    if in_panels:
        shape = (int(dataset.attrs["rows"]), int(dataset.attrs["columns"]))
    tensor = StoredTensor(name, encoding, shape, 0, in_panels)
    return replace(tensor, offset=dataset.id.get_offset()) if tensor.nbytes else tensor


def crc_of(fd: int, tensor: StoredTensor, bar: Progress, nbytes: int | None = None) -> int:
    """Return the CRC-32 of a tensor's bytes in an open file, or of its first `nbytes`.

    -1 if the file ends too early.
    """
    crc, at = 0, tensor.offset
    end = at + (tensor.nbytes if nbytes is None else nbytes)
    while at < end:
        data = os.pread(fd, min(8 << 20, end - at), at)
        if not data:
            return -1
        crc, at = zlib.crc32(data, crc), at + len(data)
        bar.update(len(data))
    return crc


def read_tables(fd: int, layout: Layout) -> tuple[np.ndarray, list[bytes]]:
    """Return each tensor's checksum [n], and the hash of what it was cut from."""
    count = len(layout.tensors)
    sums = np.frombuffer(os.pread(fd, 8 * count, layout.checksums), np.uint64)
    data = os.pread(fd, HASH_BYTES * count, layout.sources)
    return sums, [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


class Shard:
    """A finished shard, open for reading: `tensors` in tape order, by name in `[...]`.

    `sources` are the hashes of the tensors they were cut from. While it is open nobody removes it
    from the cache. Raises UserError or MachineError.
    """

    def __init__(self, path: Path):
        self.path = path
        while not self._opened():
            os.close(self.fd)  # another was put in its place meanwhile
        self._by_name = {t.name: t for t in self.tensors}
        _mark_used(path)

    def _opened(self) -> bool:
        """Open and read what the path names; tell whether that is still the same at the end."""
        self.fd = _open_shared(self.path)
        try:
            layout = read_layout(self.path)
            self.identity, self.tensors = layout.identity, layout.tensors
            self._sums, self.sources = read_tables(self.fd, layout)
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except BaseException:
            os.close(self.fd)
            raise

    def __getitem__(self, name: str) -> StoredTensor:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def check(self, wanted: Identity) -> None:
        """Refuse a shard made for another model or cut, with what differs."""
        difference = self.identity.difference(wanted)
        if difference:
            raise UserError(f"{self.path} {difference}; {MEND}")

    def damaged(self, bar: Progress) -> Iterator[tuple[StoredTensor, bool]]:
        """Recompute every checksum; yield each tensor and whether it is damaged."""
        for tensor, expected in zip(self.tensors, self._sums, strict=True):
            yield tensor, int(expected) != WRITTEN + crc_of(self.fd, tensor, bar)

    def verify(self, speaks: bool = False) -> None:
        """Recompute every checksum and raise at the first that differs; tell how far it is."""
        state = _state(os.fstat(self.fd))
        total = sum(tensor.nbytes for tensor in self.tensors)
        with Progress("verifying the shard", total, speaks=speaks) as bar:
            for tensor, bad in self.damaged(bar):
                if bad:
                    raise MachineError(
                        f"{self.path}: the checksum of {tensor.name} is wrong; {MEND}"
                    )
        _stamp(self.path, state)

    def verify_if_touched(self, speaks: bool = False) -> None:
        """Verify a file that changed since its last verification; else trust it."""
        try:
            known = json.loads(stamp_path(self.path).read_text())
        except (OSError, ValueError):
            known = None
        if known != _state(os.fstat(self.fd)):
            self.verify(speaks)

    def widened(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Read a tensor, or rows of one that lies in rows, as float32 (norms, embedding rows)."""
        tensor = self._by_name[name]
        encoding = ENCODINGS[tensor.encoding]
        if tensor.panels:
            data = self._bytes(tensor, 0, tensor.nbytes)
            panels = np.frombuffer(data, np.uint8).reshape(tensor.panels, tensor.panel_bytes)
            return encoding.widen(encoding.unpack(panels, *tensor.shape))
        at, shape = 0, tensor.shape
        if rows is not None:
            at = rows.start * encoding.nbytes(shape[1])
            shape = (rows.stop - rows.start, shape[1])
        data = self._bytes(tensor, at, encoding.nbytes(*shape))
        return encoding.widen(encoding.raw(data, shape))

    def _bytes(self, tensor: StoredTensor, at: int, nbytes: int) -> bytes:
        data = os.pread(self.fd, nbytes, tensor.offset + at)
        if len(data) != nbytes:
            raise MachineError(f"{self.path} is cut short at {tensor.name}; {MEND}")
        return data


def open_shard(path: Path, identity: Identity, replace: bool) -> Shard | None:
    """Return the shard that is there, None if there is none that could do.

    With `replace` one of another format counts as missing; else it is refused.
    """
    try:
        shard = Shard(path)
    except FileNotFoundError:  # also where it was removed while this waited for its lock
        return None
    except OtherFormatError:
        if replace:
            return None
        raise
    try:
        shard.check(identity)
    except UserError:
        shard.close()
        raise
    return shard


def _open_shared(path: Path) -> int:
    """Open a shard and keep it from being removed while it is in use."""
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError as error:
            if time.monotonic() > end:
                os.close(fd)
                raise MachineError(
                    f"{path} is being written or removed by another tpimpi; run this one again then"
                ) from error
        except FileNotFoundError:
            os.close(fd)
            raise
        except OSError:
            return fd  # this file system has no locks, so it knows no use either
        os.close(fd)
        time.sleep(0.05)


def _state(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def stamp_path(path: Path) -> Path:
    """Return where a shard's verified state is noted; its time tells when it was last used."""
    return path.with_suffix(".verified")


def stamp(path: Path, fd: int) -> None:
    """Note the state of an open shard, which is known to be whole now."""
    _stamp(path, _state(os.fstat(fd)))


def _stamp(path: Path, state: list[int]) -> None:
    try:
        stamp_path(path).write_text(json.dumps(state))
    except OSError:
        return  # a read-only folder: the shard is verified at each start instead


def _mark_used(path: Path) -> None:
    try:
        os.utime(stamp_path(path))
    except OSError:
        return  # a read-only folder, or a shard from elsewhere that has no stamp yet
