"""Whether all ranks run the same program: another version's numbers would mix without a word."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata

import tpimpi
import tpimpi.kernels
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.errors import UserError

LIBRARIES = ("numpy", "numba", "llvmlite", "h5py", "mpi4py")


def agree_on_code(group: Group) -> None:
    """Refuse ranks whose sources differ, and warn of other libraries (collective).

    Raises UserError on all ranks.
    """
    if group.size == 1:
        return
    code, libraries = differences(group)
    if code:
        with group.together():
            raise UserError(code)
    if group.rank == 0:
        for sentence in libraries:
            say(sentence)


def differences(group: Group) -> tuple[str | None, list[str]]:
    """Return in words how code differs (None: nowhere), and libraries, on any rank (collective)."""
    sources = _sources()
    mine = (
        group.host,
        tpimpi.__version__,
        _digest(repr(sources).encode()),
        versions_of_libraries(),
    )
    everyone = group.comm.allgather(mine)
    hosts, programs = [one[0] for one in everyone], [one[1:3] for one in everyone]
    code, libraries = None, []
    other = _first_other(programs)
    if other:
        files = group.comm.allgather(sources)  # all ranks see the difference, so all are here
        code = (
            f"rank 0 on {hosts[0]} and rank {other} on {hosts[other]} run different code: "
            f"{_difference(everyone[0][1], everyone[other][1], files[0], files[other])}; "
            "install the same tpimpi on all machines"
        )
    for name in everyone[0][3]:
        versions = [one[3].get(name) for one in everyone]
        other = _first_other(versions)
        if other:
            libraries.append(
                f"{name} is {versions[0]} on {hosts[0]} and {versions[other]} on "
                f"{hosts[other]} (rank {other}): results may differ from those of one version"
            )
    return code, libraries


def code_digest() -> str:
    """Return a digest of all source files."""
    return _digest(repr(_sources()).encode())


def _first_other(values: list) -> int:
    """Return the first rank whose value is another than rank 0's; 0 where there is none."""
    return next((rank for rank, value in enumerate(values) if value != values[0]), 0)


def _difference(here: str, there: str, ours: dict[str, str], theirs: dict[str, str]) -> str:
    if here != there:
        return f"tpimpi {here} and {there}"
    names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"tpimpi {here} on both, but {names[0]}{more} differ{'' if more else 's'}"


def _sources() -> dict[str, str]:
    """Return a digest of each source file by its name in the program."""
    found = {}
    kernels = tpimpi.kernels.__path__[0]  # in the package, or beside it in a working copy
    for name, root in (("tpimpi", os.path.dirname(tpimpi.__file__)), ("kernels", kernels)):
        for folder, below, files in os.walk(root):
            below[:] = sorted(b for b in below if os.path.join(folder, b) != kernels)
            for file in sorted(files):
                if file.endswith(".py"):
                    path = os.path.join(folder, file)
                    with open(path, "rb") as source:
                        found[f"{name}{path[len(root) :]}"] = _digest(source.read())
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def versions_of_libraries() -> dict[str, str]:
    """Return the versions of Python and of what numbers may depend on."""
    versions = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # installed in another way than from a package
            versions[name] = "of an unknown version"
    return versions
