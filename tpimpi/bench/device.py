"""What one rank's device is: its host, cores and memory, the program that it runs."""

from __future__ import annotations

import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tpimpi import __version__, cgroups, launch
from tpimpi.bench.folder import Folder, look_at
from tpimpi.bench.result import machine
from tpimpi.comm.versions import code_digest, versions_of_libraries
from tpimpi.errors import UserError
from tpimpi.memory.process import free_memory
from tpimpi.paths import cache_directory


@dataclass(frozen=True)
class Device:
    """What a rank reports before anything is measured.

    Another version's report may lack a part of it, or say more.
    """

    rank: int = 0
    host: str = ""
    machine: str = ""  # the same for virtual devices of one machine
    processor: str = ""
    cores: tuple[int, ...] = ()  # the numbers of those that it may use
    machine_cores: int = 1
    quota: float | None = None  # cores that its cgroup lets it use at once
    threads: int = 1
    memory_bytes: int = 0  # that it can still have
    version: str = ""
    sources: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    mpi: str = ""
    slurm: bool = False
    folder: Folder = Folder()

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Device:
        """Return what another rank's text tells of it."""
        found = json.loads(text)
        known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
        folder = known.pop("folder", {})
        names = {one.name for one in fields(Folder)}
        folder = Folder(**{name: value for name, value in folder.items() if name in names})
        return cls(**known | {"folder": folder, "cores": tuple(known.get("cores", ()))})


def device_of(rank: int, threads: int, save_dir: str | None) -> Device:
    """Return what this process's device is; `save_dir` None stands for the cache."""
    from mpi4py import MPI

    free = free_memory()
    name = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0")
    return Device(
        rank=rank, host=socket.gethostname(), machine=_machine(), processor=machine()["processor"],
        cores=tuple(sorted(launch.allowed_cores())), machine_cores=os.cpu_count() or 1,
        quota=cgroups.cpu_quota(), threads=threads,
        memory_bytes=free.node if free.cgroup is None else min(free.node, free.cgroup),
        version=__version__, sources=code_digest(), libraries=versions_of_libraries(),
        mpi=" ".join(name.replace("Version:", "").split()), slurm="SLURM_JOB_ID" in os.environ,
        folder=_folder(save_dir),
    )  # fmt: skip


def _folder(save_dir: str | None) -> Folder:
    try:
        return look_at(Path(save_dir) if save_dir else cache_directory())
    except UserError as error:  # no home
        return Folder(trouble=str(error))


def _machine(proc: Path = Path("/proc")) -> str:
    """Return what all processes on this kernel agree on, and none on another's."""
    try:
        return (proc / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:  # not Linux
        return platform.node()
