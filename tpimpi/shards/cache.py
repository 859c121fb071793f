"""The sets of shards in one machine's cache: what is there, and how one is removed.

A set is a folder of shards of one model for one number of ranks. Symbolic links are never followed
out of the cache: what one leads to is not the cache's.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tpimpi.errors import MachineError, UserError
from tpimpi.shards.layout import SHARDS
from tpimpi.shards.shard import read_layout, stamp_path

_SHARD = re.compile(r"shard-\d+-of-(\d+)\.h5(\.partial)?")


@dataclass(frozen=True)
class ShardSet:
    """One set of shards, as it lies on one machine."""

    name: str  # by which it is removed: "demo-0123abcd/2-ranks"
    model: str
    ranks: int  # that it was cut for
    shards: int  # of those that lie here
    nbytes: int  # that it takes of the disk
    unfinished: int  # bytes of it in shards that were not written to their end
    usable: bool  # whether this program's format
    last_use: float  # seconds since the epoch
    folder: Path
    mark: tuple[int, int]  # the same where two machines see one folder


def shard_sets(cache: Path) -> list[ShardSet]:
    """Return the sets in a cache, the latest used first."""
    found = []
    for above in (cache / SHARDS, cache):  # the first format's folders lay in the cache itself
        for model in _folders(above):
            found += [s for folder in _folders(model) if (s := _read(folder))]
    return sorted(found, key=lambda s: -s.last_use)


def disk_bytes(folder: Path) -> int:
    """Return what a folder and all in it take of the disk."""
    paths = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    return sum(_taken(status) for path in paths if (status := _status(path)))


def lock(found: Sequence[ShardSet], held: ExitStack) -> None:
    """Keep everybody from sets until `held` is closed. Raises UserError where one is in use."""
    for one in found:
        for path in _shards(one.folder):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            held.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{one.name} is in use by a running tpimpi; wait until that ends"
                ) from error
            except OSError:
                continue  # this file system has no locks, so it knows no use either


def remove(one: ShardSet) -> None:
    """Remove a set, and what is noted of its model once no other set of it is left."""
    shutil.rmtree(one.folder)
    above = one.folder.parent
    if not _folders(above):
        shutil.rmtree(above)


def _folders(above: Path) -> list[Path]:
    if not above.is_dir():
        return []
    return [Path(e.path) for e in os.scandir(above) if e.is_dir(follow_symlinks=False)]


def _shards(folder: Path) -> list[Path]:
    entries = [e for e in os.scandir(folder) if e.is_file(follow_symlinks=False)]
    return sorted(Path(e.path) for e in entries if _SHARD.fullmatch(e.name))


def _read(folder: Path) -> ShardSet | None:
    status = {path: s for path in _shards(folder) if (s := _status(path))}
    if not status:
        return None
    paths, partial = list(status), [path for path in status if path.suffix == ".partial"]
    stamps = [s for path in paths if (s := _status(stamp_path(path)))]
    used = [s.st_mtime for s in (*status.values(), *stamps)]
    model, usable = _model(paths)
    mark = folder.stat()
    return ShardSet(
        name=f"{_short(model, folder.parent.name) if usable else folder.parent.name}/{folder.name}",
        model=model,
        ranks=max(int(_SHARD.fullmatch(path.name)[1]) for path in paths),
        shards=len(paths) - len(partial),
        nbytes=disk_bytes(folder),
        unfinished=sum(_taken(status[path]) for path in partial),
        usable=usable,
        last_use=max(used),
        folder=folder,
        mark=(mark.st_ino, mark.st_mtime_ns),
    )


def _status(path: Path) -> os.stat_result | None:
    """Return a file's status, None where a conversion has renamed it meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _taken(status: os.stat_result) -> int:
    return 512 * status.st_blocks  # sparse files take less than their length


def _model(paths: list[Path]) -> tuple[str, bool]:
    """Return a set's model by its first shard that tells, and whether any does."""
    for path in paths:
        try:
            name = json.loads(read_layout(path, finished=False).identity.config)["name"]
        except (UserError, MachineError, FileNotFoundError):
            continue
        return "".join(c for c in str(name) if c.isprintable() and c != "/"), True
    return paths[0].parent.parent.name, False


def _short(model: str, fingerprint: str) -> str:
    """Return `demo-0123abcd`, or `tiny-random-0123abcd` for weights that are random."""
    kind, _, digits = fingerprint.rpartition("-")
    return "-".join(part for part in (model, kind, digits[:8]) if part)
