"""What this process takes of memory, and what its node and its cgroup can still give."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from tpimpi import cgroups

# A part of a file that this process has mapped and may not write to.
_READ_ONLY = re.compile(
    r"(?P<first>[0-9a-f]+)-(?P<last>[0-9a-f]+) r-[x-]p \S+ \S+ \S+ +(?P<path>.*)"
)
_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")  # of what /proc/self/smaps tells of a part

_NO_LIMIT = 1 << 60  # bytes; version 1 of cgroups writes some such number


def _status(field: str, proc: Path) -> int | None:
    """Return a line of /proc/self/status in bytes; None where there is none (not Linux)."""
    try:
        for line in (proc / "self" / "status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def peak_bytes(proc: Path = Path("/proc")) -> int:
    """Return the largest resident memory that this process has had (VmHWM)."""
    peak = _status("VmHWM", proc)
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024
    return peak


def resident_bytes(proc: Path = Path("/proc")) -> int:
    """Return the resident memory of this process; its peak where the system doesn't tell."""
    current = _status("VmRSS", proc)
    return peak_bytes(proc) if current is None else current


def unwritten_parts(library: str, proc: Path = Path("/proc")) -> list[tuple[int, int]]:
    """Return address and length of what of a library is as on its disk, and will stay so.

    Relocated data is not: it is private to the process, in memory or swapped out. Nothing is
    returned where the system doesn't tell (not Linux).
    """
    try:
        lines = (proc / "self" / "smaps").read_text().splitlines()
    except OSError:
        return []
    found, mapping, private = [], None, 0
    for line in [*lines, "0-0 "]:
        if _HEAD.match(line):
            if mapping and library in mapping["path"] and not private:
                first, last = int(mapping["first"], 16), int(mapping["last"], 16)
                found.append((first, last - first))
            mapping, private = _READ_ONLY.match(line), 0
        elif mapping and line.startswith(("Anonymous:", "Swap:")):
            private += int(line.split()[1])
    return found


def release(parts: list[tuple[int, int]]) -> None:
    """Give back the memory of a library's unwritten parts: what is used again is read again."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, length in parts:
        madvise(address, length, mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that can still be had: on the node, and in the tightest cgroup (None: no limit)."""

    node: int
    cgroup: int | None
    cgroup_path: str  # processes with the same path share that limit


def free_memory(proc: Path = Path("/proc"), root: Path = Path("/")) -> FreeMemory:
    """Return what the node and the process's cgroups (versions 1 and 2) can still give."""
    tightest, path = None, ""
    for folder, version in cgroups.folders("memory", proc, root):
        left = _cgroup_left(folder, version)
        if left is not None and (tightest is None or left < tightest):
            tightest, path = left, str(folder)
    return FreeMemory(_node_available(proc), tightest, path)


def _node_available(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the estimate below
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup_left(folder: Path, version: int) -> int | None:
    """Return what a cgroup may still take: its limit, less what it holds and can't drop.

    Page cache can be dropped, also where it lies on the active list. Beyond `memory.high` a group's
    processes are slowed down to a crawl, so that this is a limit, too.
    """
    limits, usage, prefix = {
        1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
        2: (("memory.max", "memory.high"), "memory.current", ""),
    }[version]
    limit = min(_limit(folder / name) for name in limits)
    if limit >= _NO_LIMIT:
        return None
    try:
        used = int((folder / usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return None  # nothing is accounted here
    cache = (f"{prefix}inactive_file", f"{prefix}active_file")
    droppable = sum(int(line.split()[1]) for line in lines if line.split()[0] in cache)
    return max(limit - used + min(droppable, used), 0)


def _limit(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return _NO_LIMIT  # the root group has none
    return int(text) if text.isdigit() else _NO_LIMIT  # "max"
