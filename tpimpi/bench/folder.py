"""The folder where a rank's shard will lie: whether it can be written, and on what disk it is."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tpimpi.errors import describe
from tpimpi.paths import free_disk, there
from tpimpi.tape.probe import MARK

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
