"""Whether the system killed a process for lack of memory, as its counters tell."""

from __future__ import annotations

from pathlib import Path

from tpimpi import cgroups


class OutOfMemory:
    """The kernel's counters of such kills, of this machine and of this process's cgroup."""

    def __init__(self) -> None:
        self._files = [Path("/proc/vmstat"), *_of_cgroup()]
        self._before = self._counts()

    def happened(self) -> bool:
        """Whether the system has killed a process since this object was made."""
        return self._counts() != self._before

    def _counts(self) -> list[str]:
        lines = []
        for path in self._files:
            try:
                text = path.read_text()
            except OSError:  # not on this system
                continue
            lines += [line for line in text.splitlines() if line.startswith("oom_kill ")]
        return lines


def _of_cgroup() -> list[Path]:
    names = {1: "memory.oom_control", 2: "memory.events"}
    return [folder / names[version] for folder, version in cgroups.folders("memory")]
