"""What is known of a bed that is up: one folder in /run, files by name; also after a crash."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bed.quantities import BedError, BedMistake
from bed.topology import Node

RUN = Path("/run/tpimpi-testbed")
_PATIENCE = 5  # seconds to wait for another command that changes the bed


class State:
    """The folder of one bed: `plan.json`, and for each of its processes `processes/NAME`."""

    def __init__(self, name: str):
        """Take a bed's name, which files and cgroups are named after."""
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,19}", name):
            raise BedMistake(
                f"--name {name!r}: take up to 20 lower-case letters and digits, a letter first"
            )
        self.name = name
        self.folder = RUN / name
        self.control = self.folder / "switch.socket"
        self.log = self.folder / "switch.log"
        self._lock = RUN / ".locks" / name  # not in the folder, which `down` removes

    @contextlib.contextmanager
    def alone(self, doing: str) -> Iterator[None]:
        """Let no two commands change the bed at once; `doing` is what the other is told.

        Raises BedError where another doesn't end in a few seconds.
        """
        self._lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        end = time.monotonic() + _PATIENCE
        with open(os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644), "r+") as lock:
            while not _locked(lock.fileno()):
                if time.monotonic() > end:
                    raise self._busy(lock.read())
                time.sleep(0.02)
            lock.truncate()
            lock.write(f"{doing} {os.getpid()}")
            lock.flush()
            yield

    def _busy(self, told: str) -> BedError:
        doing, _, pid = told.partition(" ")
        return BedError(
            f"`testbed {doing}` of the bed {self.name!r} is at work (process {pid}); "
            "wait for it, or end it and then `testbed down`"
        )

    def gone(self, what: str) -> BedError:
        """Return what to raise where a part of the bed isn't there."""
        with contextlib.suppress(FileNotFoundError), open(self._lock) as lock:
            if not _locked(lock.fileno(), fcntl.LOCK_SH):
                told = lock.read()
                if told.split()[1:] != [str(os.getpid())]:
                    return self._busy(told)
        if not self.exists():
            return BedError(f"the bed {self.name!r} has been taken down")
        return BedError(f"{what} of the bed {self.name!r} is gone; `testbed down`, then `up`")

    def exists(self) -> bool:
        """Tell whether the bed is up, or half up."""
        return self.folder.exists()

    def create(self, options: dict, nodes: list[Node]) -> None:
        """Write down what shall be, before anything is made. Raises BedMistake when it is up."""
        RUN.mkdir(mode=0o755, exist_ok=True)
        try:
            self.folder.mkdir()
        except FileExistsError:
            raise BedMistake(
                f"the bed {self.name!r} is up; `testbed down` first, or name another with --name"
            ) from None
        (self.folder / "processes").mkdir()
        self.write(options, nodes)

    def write(self, options: dict, nodes: list[Node]) -> None:
        """Write the plan, whole or not at all."""
        text = json.dumps({"options": options, "nodes": [asdict(n) for n in nodes]}, indent=1)
        partial = self.folder / "plan.partial"
        partial.write_text(text)
        partial.replace(self.folder / "plan.json")

    def read(self) -> tuple[dict, list[Node]]:
        """Return the options and the nodes. Raises BedMistake when the bed isn't up."""
        try:
            plan = json.loads((self.folder / "plan.json").read_text())
        except FileNotFoundError:
            raise BedMistake(f"no bed {self.name!r} is up; `testbed up` makes one") from None
        return plan["options"], [Node(**node) for node in plan["nodes"]]

    def enlist(self, name: str) -> None:
        """Write down the calling process, by its number and the time of its start."""
        text = f"{os.getpid()} {started(os.getpid())}"
        (self.folder / "processes" / name).write_text(text)

    def process(self, name: str) -> int | None:
        """Return the number of a process of the bed; None where it is gone."""
        try:
            pid, start = (self.folder / "processes" / name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if started(int(pid)) == start else None

    def holder(self, name: str) -> int:
        """Return the number of a process of the bed. Raises BedError where it is gone."""
        pid = self.process(name)
        if pid is None:
            raise self.gone(name)
        return pid

    def processes(self) -> list[int]:
        """Return the numbers of the bed's own processes that live."""
        folder = self.folder / "processes"
        names = os.listdir(folder) if folder.exists() else []
        return [pid for name in names if (pid := self.process(name))]


def _locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def started(pid: int) -> str | None:
    """Return when a process was started, in ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def names() -> list[str]:
    """Return the names of the beds that are up."""
    if not RUN.exists():
        return []
    return sorted(p.name for p in RUN.iterdir() if p.is_dir() and not p.name.startswith("."))
