"""Put a bed up, change it, take it down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

from bed import calibration, devices, files, topology
from bed.cgroups import Cgroup, version
from bed.links import Port, ip, ports
from bed.netem import Netem
from bed.quantities import BedError, BedMistake
from bed.state import State
from bed.switch import Switch
from bed.topology import INTERFACE, SHAPES, Node

_ENGINES = {"netem": Netem, "switch": Switch}


def require_root() -> None:
    """Raise BedError where no bed can be made, changed or looked at."""
    if os.uname().sysname != "Linux":
        raise BedError("the test bed is made of Linux namespaces, and this is not Linux")
    if os.geteuid():
        raise BedError("the test bed makes namespaces and control groups: be root")


def require() -> None:
    """Raise BedError with what this machine lacks for a bed, where it lacks something."""
    require_root()
    for program in ("ip", "tc"):
        if not shutil.which(program):
            raise BedError(f"there is no {program} command (apt install iproute2)")
    version()
    if not Netem.possible():
        Switch.require()


def up(state: State, options: dict) -> None:
    """Make a bed as the options say; nothing is left of it where that fails."""
    require()
    nodes = topology.plan(options["devices"], options["subnet"])
    options["engine"] = "netem" if Netem.possible() else "switch"
    made = ports(nodes, SHAPES[options["topology"]], options["delay"], options["rate"])
    options["ports"] = [asdict(port) for port in made]
    with state.alone("up"):
        if not state.exists():
            files.require_free(place(state, options))
        state.create(options, nodes)
        try:
            _make(state, options, nodes, made)
            _calibrate(state, options, nodes, made)
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of it
            _clear(state)
            raise


def _make(state: State, options: dict, nodes: list[Node], made: list[Port]) -> None:
    for name in ("home", "tmp"):
        (state.folder / name).mkdir()
    hosts = [f"{node.address} {node.name}" for node in nodes]
    (state.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    files.claim(place(state, options))
    for node in nodes:
        folder = place(state, options) / node.name
        folder.mkdir()
        limit(state, options, node)
        devices.start(state, node, folder, options["private"])
    engine(state, options).create(made)
    for node in nodes:
        ip(state.holder(node.name), [
            "link set lo up", f"addr add {node.address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
        ])  # fmt: skip


def _calibrate(state: State, options: dict, nodes: list[Node], made: list[Port]) -> None:
    own = calibration.own_time(state, nodes, made)
    for number, port in enumerate(made):
        port.own = own
        engine(state, options).apply(number, port)
    options["ports"] = [asdict(port) for port in made]
    state.write(options, nodes)


def place(state: State, options: dict) -> Path:
    """Return the folder of the devices' files on the host."""
    return Path(options["folder"]) / state.name


def limit(state: State, options: dict, node: Node) -> None:
    """Make a device's control groups as the options say."""
    group = Cgroup(state.name, node.name)
    group.create()
    if options["memory"]:
        group.limit_memory(options["memory"])
    group.limit_cpu(cores(options, node))
    if options["disk_rate"]:
        group.limit_disk(place(state, options), options["disk_rate"])


def cores(options: dict, node: Node) -> float | None:
    """Return how many cores' worth a device may compute; None is without a limit."""
    share = options["slowed"].get(node.name)
    if options["cpu"] is None and share is None:
        return None
    whole = options["cpu"] or (os.cpu_count() or 1) / options["devices"]
    return whole * (share or 1)


def engine(state: State, options: dict) -> Switch | Netem:
    """Return what keeps the delays and rates of a bed."""
    return _ENGINES[options["engine"]](state)


def change_link(state: State, node: Node, **changes) -> None:
    """Change delay, rate or state of a device's link while the bed is up."""
    with state.alone("link"):
        options, nodes = state.read()
        port = options["ports"][node.number - 1]
        port.update(changes)
        engine(state, options).apply(node.number - 1, Port(**port))
        state.write(options, nodes)


def slow(state: State, node: Node, share: float) -> float | None:
    """Let a device compute at a fraction of its speed; return the cores' worth it has now."""
    with state.alone("slow"):
        options, nodes = state.read()
        options["slowed"][node.name] = share
        if share == 1:
            del options["slowed"][node.name]
        given = cores(options, node)
        Cgroup(state.name, node.name).limit_cpu(given)
        state.write(options, nodes)
    return given


def down(state: State) -> None:
    """End all processes of a bed and remove all that is left of it, in whatever state it is."""
    with state.alone("down"):
        if not state.exists():
            raise BedMistake(f"no bed {state.name!r} is up")
        _clear(state)


def _clear(state: State) -> None:
    try:
        options, nodes = state.read()
    except BedError:  # it died while the plan was written: nothing else has been made
        files.clear(state.folder)
        return
    groups = [Cgroup(state.name, node.name) for node in nodes]
    _end(state, groups)
    for group in groups:
        group.remove()
    files.remove(place(state, options))
    files.clear(state.folder)  # last: until then another `down` knows what to remove


def _end(state: State, groups: list[Cgroup]) -> None:
    """Kill until nothing is left: a process may start another meanwhile."""
    for _ in range(500):
        living = set(state.processes()).union(*(group.members() for group in groups))
        living.discard(os.getpid())
        if not living:
            return
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    raise BedError(f"processes {sorted(living)} of the bed {state.name!r} can't be killed")
