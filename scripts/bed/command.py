"""The commands of scripts/testbed: what can be asked, and what is answered."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bed import assembly, devices, flags, launch, private, quantities, selftest
from bed.cgroups import Cgroup
from bed.quantities import BedError, BedMistake, written_duration, written_rate
from bed.state import State, names
from bed.topology import MOST_DEVICES, SHAPES, Node

MOST_RANKS = 1024


def main() -> int:
    """Do what the command line says; return the exit code."""
    try:
        parsed = flags.read(sys.argv[1:], _COMMANDS)
        state = State(parsed.name)
        assembly.require_root()
        if not parsed.takes_command:  # a command has its own way to end
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
                    signal.signal(number, _ended)
        parsed.do(state, parsed)
    except BedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on, as in `testbed status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"testbed: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _ended(number: int, frame: object) -> NoReturn:
    """End as Ctrl-C does: what has been begun is removed."""
    sys.exit(128 + number)


def _up(state: State, parsed: argparse.Namespace) -> None:
    folder = Path(os.path.realpath(parsed.folder))
    assembly.up(state, {
        "devices": quantities.whole(parsed.devices, "--devices", 1, MOST_DEVICES),
        "topology": parsed.topology, "subnet": parsed.subnet,
        "delay": quantities.duration(parsed.delay), "rate": quantities.rate(parsed.rate),
        "memory": quantities.memory(parsed.memory),
        "cpu": None if parsed.cpu is None else quantities.cores(parsed.cpu),
        "disk_rate": quantities.disk_rate(parsed.disk_rate),
        "private": private.folders(parsed.private, folder / state.name),
        "folder": str(folder), "slowed": {},
    })  # fmt: skip
    _status(state, parsed)


def _lacks(state: State, parsed: argparse.Namespace) -> None:
    assembly.require()


def _down(state: State, parsed: argparse.Namespace) -> None:
    assembly.down(state)


def _status(state: State, parsed: argparse.Namespace) -> None:
    if not state.exists():
        up = ", ".join(names())
        raise BedMistake(f"no bed {state.name!r} is up{f'; there is {up}' if up else ''}")
    options, nodes = state.read()
    count = SHAPES[options["topology"]].hops
    print(
        f"{state.name}: {options['devices']} devices, {options['topology']}, "
        f"{written_duration(options['delay'])} a hop ({count} between two devices), "
        f"{written_rate(options['rate'])}, links by {options['engine']}"
    )
    engine = assembly.engine(state, options)
    for remark in engine.remarks():
        print(f"  {options['engine']}: {remark}")
    for node, port, traffic in zip(nodes, options["ports"], engine.traffic(), strict=False):
        print(f"  {node.name}  {_told(state, options, node, port, traffic)}")


def _told(state: State, options: dict, node: Node, port: dict, traffic: dict) -> str:
    parts = [node.address]
    if state.process(node.name) is None:
        parts.append("is gone")
    if not port["up"]:
        parts.append("link down")
    if (port["delay"], port["rate"]) != (options["delay"], options["rate"]):
        parts.append(f"{written_duration(port['delay'])}, {written_rate(port['rate'])}")
    used = Cgroup(state.name, node.name).memory_used() / 2**20
    whole = f" of {options['memory'] / 2**20:.0f}" if options["memory"] else ""
    parts.append(f"memory {used:.0f}{whole} MiB")
    cores = assembly.cores(options, node)
    if cores is not None:
        parts.append(f"{cores:.4g} cores")
    return ", ".join([*parts, _passed(traffic)])


def _passed(traffic: dict) -> str:
    dropped = f", dropped {traffic['dropped']} frames" if traffic["dropped"] else ""
    return f"sent {traffic['sent']} B, received {traffic['received']} B{dropped}"


def _node(state: State, wanted: str) -> Node:
    _, nodes = state.read()
    for node in nodes:
        if wanted in (node.name, str(node.number), node.address):
            return node
    raise BedMistake(f"{wanted!r} is none of the devices {nodes[0].name} to {nodes[-1].name}")


def _run(state: State, parsed: argparse.Namespace) -> None:
    options, nodes = state.read()
    ranks = len(nodes) if parsed.np is None else quantities.whole(parsed.np, "-np", 1, MOST_RANKS)
    assembly.engine(state, options).require_alive()
    for node in nodes:
        state.holder(node.name)  # else it would be the launcher that complains, at length
    mpirun, kind = launch.find(parsed.mpi)
    if parsed.check:
        selftest.check(state, quiet=True)
    words, pinned = launch.command(state, nodes, ranks, mpirun, kind, options["subnet"])
    devices.become(state, nodes[0])
    environment = devices.environment(state, dict(os.environ), pinned)
    devices.replace([*words, *parsed.command], environment)


def _test(state: State, parsed: argparse.Namespace) -> None:
    selftest.check(state)


def _exec(state: State, parsed: argparse.Namespace) -> None:
    devices.become(state, _node(state, parsed.device))
    devices.replace(parsed.command, devices.environment(state, dict(os.environ), {}))


def _login(state: State, parsed: argparse.Namespace) -> None:
    devices.become(state, _node(state, parsed.device))
    environment = devices.environment(state, devices.login(dict(os.environ)), {})
    devices.replace(["/bin/sh", "-c", parsed.line], environment)


def _processes(state: State, parsed: argparse.Namespace) -> None:
    node = _node(state, parsed.device)
    members = Cgroup(state.name, node.name).members() - {state.process(node.name)}
    if members:
        print(*sorted(members))


def _link(state: State, parsed: argparse.Namespace) -> None:
    changes = {"up": parsed.state == "up"} if parsed.state else {}
    if parsed.delay is not None:
        changes["delay"] = quantities.duration(parsed.delay)
    if parsed.rate is not None:
        changes["rate"] = quantities.rate(parsed.rate)
    node = _node(state, parsed.device)
    if changes:
        assembly.change_link(state, node, **changes)
        return
    options, _ = state.read()
    port = options["ports"][node.number - 1]
    traffic = assembly.engine(state, options).traffic()[node.number - 1]
    way = f"{written_duration(port['delay'])} a hop, {written_rate(port['rate'])}"
    print(f"{node.name}: {'up' if port['up'] else 'down'}, {way}, {_passed(traffic)}")


def _slow(state: State, parsed: argparse.Namespace) -> None:
    node = _node(state, parsed.device)
    given = assembly.slow(state, node, quantities.share(parsed.share))
    print(f"{node.name}: {'no limit' if given is None else f'{given:.4g} cores'}")


_COMMANDS: dict[str, Callable[[State, argparse.Namespace], None]] = {
    "up": _up, "down": _down, "lacks": _lacks, "status": _status, "run": _run, "exec": _exec,
    "test": _test, "processes": _processes, "login": _login, "link": _link, "slow": _slow,
}  # fmt: skip
