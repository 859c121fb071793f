"""The folder where a rank's shard will lie: whether it can be written, and its disk's rates."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpimpi.errors import MachineError, describe
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.paths import free_disk
from tpimpi.shards.layout import StoredTensor
from tpimpi.tape.tape import Tape

MARK = ".tpimpi-doctor-"  # how the names of probes begin
PIECE_BYTES, MOST_PIECES = 2 << 20, 24  # written one by one, each to the disk itself
RING_BYTES = 16 << 20  # of a probe's tape
COLUMNS = 1024  # of the tensor that a probe stands for

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs",
           "gpfs", "fuse.sshfs", "fuse.glusterfs", "virtiofs")  # fmt: skip
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Folder:
    """Where a rank's shard will lie. `trouble` says why it can't; None where it can."""

    path: str = ""
    trouble: str | None = None
    free_bytes: int = 0
    disk: int = 0  # the same for folders of one machine that share what is free
    file_system: str = ""


class Probe:
    """A file of random numbers in a folder, read like a shard of one tensor."""

    def __init__(self, folder: Path, seconds: float):
        """Write for about `seconds`. Raises OSError, and MachineError where there is no room."""
        folder = there(folder)
        if free_disk(folder) < 4 * PIECE_BYTES:
            raise MachineError("no space left for a file to time")
        file, name = tempfile.mkstemp(prefix=MARK, dir=folder)
        self.path, self.fd = Path(name), file
        piece = np.random.default_rng(0).bytes(PIECE_BYTES)  # zeros may be stored as nothing
        pieces, start = 0, time.perf_counter()
        try:
            while pieces < MOST_PIECES and time.perf_counter() - start < seconds:
                os.write(file, piece)
                os.fsync(file)
                pieces += 1
        except OSError:
            self.close()
            raise
        self.write_rate = pieces * PIECE_BYTES / (time.perf_counter() - start)
        panels = pieces * PIECE_BYTES // ENCODINGS["f32"].panel_bytes(COLUMNS)
        self._tensor = StoredTensor("probe", "f32", (panels * ROWS, COLUMNS), 0, in_panels=True)

    def __getitem__(self, _name: str) -> StoredTensor:
        return self._tensor

    def read_rate(self, seconds: float) -> float:
        """Return the bytes/s of a tape's readers over some `seconds`. Raises MachineError."""
        tape = Tape(self, ["probe"], {}, RING_BYTES)
        try:
            read, start = 0, time.perf_counter()
            while (took := time.perf_counter() - start) < seconds:
                for _, weights in tape.take("probe"):
                    read += weights.nbytes
            return read / took
        finally:
            tape.close()

    def close(self) -> None:
        """Close and remove the file."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


def there(folder: Path) -> Path:
    """Return a folder, or the one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def look_at(folder: Path) -> Folder:
    """Find out whether a shard can be written to a folder, which need not exist yet."""
    above = there(folder)
    trouble = None
    try:
        if not above.is_dir():
            raise NotADirectoryError(20, "it is a file", str(above))
        with tempfile.NamedTemporaryFile(prefix=MARK, dir=above):
            pass  # tried: what rights allow, the file system or the user's quota may not
    except OSError as error:
        trouble = f"{error.strerror}: {above}" if error.strerror else describe(error)
    return Folder(str(folder), trouble, free_disk(above), above.stat().st_dev, file_system(above))


def file_system(path: Path, proc: Path = Path("/proc")) -> str:
    """Return the type of the file system that a path lies on; empty where the system keeps it."""
    try:
        lines = (proc / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        return ""
    best, kind = Path(), ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = Path(left.split(" ")[4].replace("\\040", " "))
        if mount in (path.resolve(), *path.resolve().parents) and len(mount.parts) >= len(
            best.parts
        ):
            best, kind = mount, right.split(" ")[0]
    return kind
