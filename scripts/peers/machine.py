"""One line that says on what, when and with which versions something was measured."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

from tpimpi.launch import available_cores

PACKAGES = ("tpimpi", "llama-cpp-python", "torch", "transformers", "accelerate", "numba", "mpi4py")


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


def describe() -> str:
    """Return CPU, cores, memory, system, date, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(filter(None, map(_version, PACKAGES)))
    return (
        f"{_cpu()}, {available_cores()} cores, {memory:.0f} GiB; {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}; "
        f"{versions}"
    )
