"""Limits of a device: memory, share of the CPU, rate of the disk; cgroup v1 and v2."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from bed.quantities import BedError

ROOT = Path("/sys/fs/cgroup")
_PERIOD = 10_000  # microseconds: a device is slowed evenly, not stopped for a tenth of a second
_LEAST_QUOTA, _LONGEST_PERIOD = 1000, 1_000_000  # microseconds that the kernel takes
_CONTROLLERS = {1: ("memory", "cpu", "blkio"), 2: ("memory", "cpu", "io")}


def version() -> int:
    """Return 1 or 2. Raises BedError where neither can be used."""
    if (ROOT / "cgroup.controllers").exists():
        return 2
    if (ROOT / "memory" / "cgroup.procs").exists():
        return 1
    raise BedError(f"{ROOT} has no memory controller, which limits the devices' memory")


class Cgroup:
    """The control groups of one device."""

    def __init__(self, bed: str, device: str):
        """Name them; nothing is made yet."""
        self.version = version()
        self._parent, self._name = f"tpimpi-testbed-{bed}", device

    def _folder(self, controller: str) -> Path:
        hierarchy = ROOT if self.version == 2 else ROOT / controller
        return hierarchy / self._parent / self._name

    def _folders(self) -> list[Path]:
        folders = [self._folder(controller) for controller in _CONTROLLERS[self.version]]
        return list(dict.fromkeys(f for f in folders if f.parent.parent.exists()))

    def create(self) -> None:
        """Make them."""
        try:
            for folder in self._folders():
                folder.mkdir(parents=True, exist_ok=True)
                if self.version == 2:
                    wanted = " ".join(f"+{name}" for name in _CONTROLLERS[2])
                    for above in (ROOT, folder.parent):
                        (above / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise BedError(
                f"control groups can't be made in {error.filename or ROOT} ({error.strerror}); "
                "a container must be started with the right to (such as --privileged)"
            ) from None

    def _set(self, controller: str, name: str, value: str) -> None:
        path = self._folder(controller) / name
        try:
            path.write_text(value)
        except OSError as error:
            raise BedError(f"{path} doesn't take {value!r}: {error.strerror}") from None

    def limit_memory(self, nbytes: int) -> None:
        """Let the device have so many bytes, page cache included and without swap."""
        if self.version == 2:
            self._set("memory", "memory.max", str(nbytes))
            if (self._folder("memory") / "memory.swap.max").exists():
                self._set("memory", "memory.swap.max", "0")
            return
        self._set("memory", "memory.limit_in_bytes", str(nbytes))
        if (self._folder("memory") / "memory.memsw.limit_in_bytes").exists():
            self._set("memory", "memory.memsw.limit_in_bytes", str(nbytes))

    def limit_cpu(self, cores: float | None) -> None:
        """Let the device compute as fast as so many cores; None lifts it."""
        period, quota = _PERIOD, None
        if cores is not None:  # the least quota may be more than that: then it comes less often
            period = min(_LONGEST_PERIOD, max(_PERIOD, round(_LEAST_QUOTA / cores)))
            quota = max(_LEAST_QUOTA, round(cores * period))
        if self.version == 2:
            self._set("cpu", "cpu.max", f"{'max' if quota is None else quota} {period}")
            return
        self._set("cpu", "cpu.cfs_quota_us", "-1")
        self._set("cpu", "cpu.cfs_period_us", str(period))
        self._set("cpu", "cpu.cfs_quota_us", str(-1 if quota is None else quota))

    def limit_disk(self, folder: Path, rate: int | None) -> None:
        """Let the device read and write so many bytes a second on the disk of a folder."""
        disk = disk_of(folder)
        if self.version == 2:
            limit = "max" if rate is None else rate
            self._set("io", "io.max", f"{disk} rbps={limit} wbps={limit}")
            return
        for way in ("read", "write"):
            self._set("blkio", f"blkio.throttle.{way}_bps_device", f"{disk} {rate or 0}")

    def join(self) -> None:
        """Put the calling process, and all it starts, under the limits."""
        for folder in self._folders():
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def members(self) -> set[int]:
        """Return the numbers of the processes of the device."""
        found = set()
        for folder in self._folders():
            procs = folder / "cgroup.procs"
            found.update(map(int, procs.read_text().split()) if procs.exists() else ())
        return found

    def memory_used(self) -> int:
        """Return the bytes that are charged to the device."""
        name = {1: "memory.usage_in_bytes", 2: "memory.current"}[self.version]
        return int((self._folder("memory") / name).read_text())

    def remove(self) -> None:
        """Remove them once the last process is gone, the bed's with the last device."""
        for folder in self._folders():
            _remove(folder)
            if folder.parent.exists() and not any(p.is_dir() for p in folder.parent.iterdir()):
                _remove(folder.parent)


def _remove(folder: Path) -> None:
    for _ in range(200):  # a process that was killed is gone a moment later
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.02)
        else:
            return
    raise BedError(f"{folder} still has processes that can't be killed")


def disk_of(folder: Path) -> str:
    """Return MAJOR:MINOR of the whole disk that a folder lies on."""
    device = os.stat(folder).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    link = Path("/sys/dev/block") / name
    if not link.exists():
        raise BedError(f"{folder} is not on a disk whose rate can be limited; see --folder")
    if (link / "partition").exists():
        name = (link.resolve().parent / "dev").read_text().strip()
    return name
