"""A device: namespaces that a sleeping process holds, a home of its own, and entering it.

What is not shared between devices: network, hostname, System V and POSIX shared memory, home,
cache, temporary files, memory and CPU limits. Processes see each other; so do files elsewhere.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from bed import kernel
from bed.cgroups import ROOT as CGROUPS
from bed.cgroups import Cgroup
from bed.quantities import BedError
from bed.state import State
from bed.topology import Node

_KINDS = ("net", "uts", "ipc", "mnt")
_TCP = Path("/proc/sys/net/ipv4")
_LOGIN = ("PATH", "LANG", "LC_ALL", "USER", "LOGNAME", "SHELL", "TERM")


def start(state: State, node: Node, folder: Path, private: list[str]) -> None:
    """Start the process that holds a node's namespaces; `folder` is where its files lie.

    Raises BedError with what the kernel refused.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.die_with_parent(parent)
            _hold(state, node, folder, private, writer)
        finally:
            os._exit(1)  # whatever has happened: what called us goes on in the parent alone
    os.close(writer)
    with open(reader) as pipe:
        refused = pipe.read()  # closed by exec
    if refused:
        os.waitpid(pid, 0)
        raise BedError(f"{node.name} can't be made: {refused}; are you root on this machine?")
    if state.process(node.name) is None:  # killed without a word, as for want of memory
        os.waitpid(pid, 0)
        raise BedError(f"{node.name} was killed while it was made; give it more --memory")


def detach() -> None:
    """Leave the terminal: no Ctrl-C, no output, as a process of another machine."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def _hold(state: State, node: Node, folder: Path, private: list[str], writer: int) -> None:
    try:
        detach()
        state.enlist(node.name)
        if node.number:
            Cgroup(state.name, node.name).join()
        kernel.unshare(*_KINDS)
        kernel.keep_mounts_private()
        socket.sethostname(node.name)
        _settings(node)
        if node.number:
            _mounts(state, folder, private)
        os.chdir("/")
        kernel.outlive_parent()  # it is enlisted: `down` finds it
        os.execvp("sleep", ["sleep", "infinity"])
    except (OSError, BedError) as error:
        os.write(writer, str(error).encode())


def _settings(node: Node) -> None:
    # BBR, where it is the default, paces by what it has measured of a path for seconds. Cubic is
    # what most machines use; but the host's administrator says what namespaces may.
    allowed = (_TCP / "tcp_allowed_congestion_control").read_text().split()
    (_TCP / "tcp_congestion_control").write_text("cubic" if "cubic" in allowed else "reno")
    for name in ("all", "default"):  # only IPv4 is planned: no other packets on the links
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if path.exists():
            path.write_text("1")


def _mounts(state: State, folder: Path, private: list[str]) -> None:
    # One path on all devices, as MPIs hand the first one's environment to the others.
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
        kernel.bind(str(folder / name), str(state.folder / name))
    kernel.bind(str(state.folder / "hosts"), "/etc/hosts")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs")
    # /sys names the interfaces of the namespace that mounted it.
    aside = folder / "cgroups"
    aside.mkdir(exist_ok=True)
    kernel.bind(str(CGROUPS), str(aside))
    kernel.mount("sysfs", "/sys", "sysfs")
    kernel.bind(str(aside), str(CGROUPS))
    for number, path in enumerate(private):
        (folder / f"private{number}").mkdir(exist_ok=True)
        kernel.bind(str(folder / f"private{number}"), path)


def environment(state: State, given: dict[str, str], pinned: dict[str, str]) -> dict[str, str]:
    """Return what a process on a device finds: the caller's, and a home of its own."""
    home = str(state.folder / "home")
    own = {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "TMPDIR": str(state.folder / "tmp")}
    return {**given, **pinned, **own, "TPIMPI_TESTBED": state.name}


def login(given: dict[str, str]) -> dict[str, str]:
    """Return what of an environment a login from another machine would find."""
    return {name: given[name] for name in _LOGIN if name in given}


def become(state: State, node: Node, limited: bool = True) -> None:
    """Move the calling process onto a device. Raises BedError where the device is gone."""
    holder = state.holder(node.name)
    here = os.getcwd()
    if limited and node.number:
        Cgroup(state.name, node.name).join()
    kernel.enter(holder, *_KINDS)
    kernel.wake_punctually()
    os.chdir(here)


def replace(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Become a command, so that signals and the exit code are its own."""
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise BedError(f"{command[0]} can't be run: {error.strerror}") from None
