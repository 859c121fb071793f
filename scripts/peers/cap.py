"""A memory cap over all processes of a program together, page cache counted: a Linux cgroup.

Version 1: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, version 2:
https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from pathlib import Path


class CapUnavailable(Exception):
    """This machine lets this user make no memory cgroup; the message says why."""


class Cap:
    """A cgroup that holds its processes to `limit` bytes; on leaving, they are killed."""

    def __init__(self, limit: int, root: Path = Path("/sys/fs/cgroup"),
                 membership: Path = Path("/proc/self/cgroup")):  # fmt: skip
        self.limit = limit
        self._parents, self._version = _parents(root, membership)
        self._folder: Path | None = None

    def __enter__(self) -> Cap:
        reasons = []
        for parent in self._parents:
            folder = parent / f"tpimpi-peers-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError as error:
                reasons.append(f"{parent}: {error.strerror}")
                continue
            self._folder = folder
            try:
                self._set_limit()
                return self
            except OSError as error:
                reasons.append(f"{error.filename or folder}: {error.strerror}")
                self._remove()
        raise CapUnavailable("no memory cgroup can be made here (" + "; ".join(reasons) + ")")

    def __exit__(self, *_) -> None:
        self.kill()
        self._remove()

    def prefix(self) -> list[str]:
        """Return a command's beginning that makes it, and all it starts, members."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs")]

    def peak_bytes(self) -> int | None:
        """Return the most memory the members have had together; None where Linux doesn't tell."""
        names = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}  # the latter from Linux 5.19 on
        path = self._folder / names[self._version]
        return int(path.read_text()) if path.exists() else None

    def oom_kills(self) -> int:
        """Return how many members Linux has killed at the limit."""
        path = self._folder / {1: "memory.oom_control", 2: "memory.events"}[self._version]
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0

    def kill(self) -> None:
        """Kill every member."""
        for _ in range(200):
            members = (self._folder / "cgroup.procs").read_text().split()
            if not members:
                return
            for pid in members:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself
            time.sleep(0.05)

    def _set_limit(self) -> None:
        if self._version == 2:
            (self._folder / "memory.max").write_text(str(self.limit))
            extra, value = "memory.swap.max", "0"
        else:
            (self._folder / "memory.limit_in_bytes").write_text(str(self.limit))
            extra, value = "memory.memsw.limit_in_bytes", str(self.limit)
        if (self._folder / extra).exists():
            (self._folder / extra).write_text(value)  # swap would be memory beyond the cap

    def _remove(self) -> None:
        for _ in range(100):
            try:
                self._folder.rmdir()
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.05)  # a member's last moments
        raise OSError(errno.EBUSY, "this cgroup could not be removed", str(self._folder))


def _parents(root: Path, membership: Path) -> tuple[list[Path], int]:
    """Return the cgroups in which one for memory may be made, and the version."""
    own = {}
    if membership.exists():
        for line in membership.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            own["memory" if "memory" in controllers.split(",") else number] = path.lstrip("/")
    if (root / "memory" / "memory.limit_in_bytes").exists():
        base = root / "memory"
        return [base / own.get("memory", ""), base], 1
    if not (root / "cgroup.controllers").exists():
        raise CapUnavailable(f"{root} has no memory controller (Linux cgroups, version 1 or 2)")
    # Version 2 gives no limits to the children of a cgroup that has processes: look further up.
    mine = root / own.get("0", "")
    line = [p for p in (mine, *mine.parents) if p == root or root in p.parents]
    able = [p for p in line if "memory" in _words(p / "cgroup.subtree_control")]
    if not able:
        raise CapUnavailable(f"no cgroup above {mine} hands the memory controller down")
    return able, 2


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def forget_cached(paths: list[Path]) -> float:
    """Drop files from the page cache; return the share that is still there (mapped elsewhere).

    Pages that lie there already count for whoever read them first, and would be free for others.
    """
    seen = kept = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = path.stat().st_size
            for at in range(0, size, max(size // 64, 4096)):
                seen += 1
                try:
                    kept += os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT)
                except BlockingIOError:
                    continue  # not in the cache
    return kept / max(seen, 1)
