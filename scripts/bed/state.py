"""What is known of a bed that is up: one folder in /run, files by name; also after a crash."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from bed.quantities import BedMistake
from bed.topology import Node

RUN = Path("/run/tpimpi-testbed")


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

    def processes(self) -> list[int]:
        """Return the numbers of the bed's own processes that live."""
        folder = self.folder / "processes"
        names = os.listdir(folder) if folder.exists() else []
        return [pid for name in names if (pid := self.process(name))]


def started(pid: int) -> str | None:
    """Return when a process was started, in ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def names() -> list[str]:
    """Return the names of the beds that are up."""
    return sorted(path.name for path in RUN.iterdir() if path.is_dir()) if RUN.exists() else []
