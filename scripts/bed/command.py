"""The commands of scripts/testbed: what can be asked, and what is answered."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bed import assembly, devices, launch, quantities, selftest
from bed.cgroups import Cgroup
from bed.quantities import BedError, BedMistake, written_duration, written_rate
from bed.state import State, names
from bed.topology import SHAPES, Node


def main() -> int:
    """Do what the command line says; return the exit code."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parsed = _parser().parse_args(words[:cut])
    parsed.command = words[cut + 1 :]
    try:
        if parsed.takes_command != bool(parsed.command):
            example = f"`testbed {parsed.word} {'DEVICE ' * (parsed.word == 'exec')}-- COMMAND`"
            raise BedMistake(
                f"write {example}" if parsed.takes_command else "nothing goes after --"
            )
        parsed.do(State(parsed.name), parsed)
    except BedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on, as in `testbed status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"testbed: {where}{error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="testbed",
        description="Virtual devices with slow links between them on this machine, as root.",
    )
    name = os.environ.get("TPIMPI_TESTBED", "bed")
    parser.add_argument("--name", default=name, help="which bed, where there are several (bed)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(word: str, do, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(word, help=text, description=text)
        command.set_defaults(do=do, word=word, takes_command=word in ("run", "exec"))
        return command

    one = add("up", _up, "make the devices")
    one.add_argument("--devices", type=int, default=2, metavar="N")
    one.add_argument(
        "--topology",
        choices=SHAPES,
        default="switch",
        help="one switch, or a gateway for each device and one core router (switch)",
    )
    one.add_argument("--delay", default="0", help="one way, of each hop: 1ms, 100us (0)")
    one.add_argument(
        "--rate", default="0", help="of each link, both ways at once: 300mbit (0: no limit)"
    )
    one.add_argument("--memory", help="of each device: 3G (no limit)")
    one.add_argument(
        "--cpu",
        type=float,
        metavar="CORES",
        help="how many cores' worth each device may compute: 0.5 (no limit)",
    )
    one.add_argument(
        "--disk-rate", help="reading and writing past the page cache: 50MB/s (no limit)"
    )
    one.add_argument(
        "--private",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that is another, empty one on each device; repeatable",
    )
    one.add_argument(
        "--folder",
        default="/var/lib/tpimpi-testbed",
        help="where the devices' files lie, a disk (/var/lib/tpimpi-testbed)",
    )
    one.add_argument("--subnet", default="10.99.7.0/24", help="inside the bed (10.99.7.0/24)")

    add("down", _down, "end everything and remove it, also what a crash has left")
    add("lacks", _lacks, "exit 1 with a sentence where this machine can't have a bed")
    add("status", _status, "tell what is up, and the traffic of each link")

    one = add("run", _run, "mpirun over all devices: a rank a device, started on the first")
    one.add_argument("-np", type=int, metavar="N", help="ranks, if not one a device")
    one.add_argument("--mpi", choices=("mpich", "openmpi"), help="where there are both")
    one.add_argument(
        "--check",
        action="store_true",
        help="measure the links first (as `test` does), and refuse where they are off",
    )

    one = add("exec", _exec, "run a command on one device")
    one.add_argument("device")

    add("test", _test, "measure the links idle and under load; exit 1 where they are off by 10 %%")

    one = add("processes", _processes, "print the numbers of a device's processes")
    one.add_argument("device")

    one = add("login", _login, "what mpirun starts in place of ssh")
    one.add_argument("device")
    one.add_argument("line")

    one = add("link", _link, "cut a device's link, or mend it; change its delay or rate")
    one.add_argument("device")
    one.add_argument("state", nargs="?", choices=("up", "down"))
    one.add_argument("--delay")
    one.add_argument("--rate")

    one = add("slow", _slow, "let a device compute at a fraction of its speed; 100%% lifts it")
    one.add_argument("device")
    one.add_argument("share")
    return parser


def _up(state: State, parsed: argparse.Namespace) -> None:
    private = [str(Path(folder).resolve()) for folder in parsed.private]
    for folder in private:
        if not Path(folder).is_dir():
            raise BedMistake(f"--private {folder} is no folder")
    if parsed.cpu is not None and parsed.cpu < 0.1:
        raise BedMistake(f"--cpu {parsed.cpu} is below a tenth of a core")
    assembly.up(state, {
        "devices": parsed.devices, "topology": parsed.topology, "subnet": parsed.subnet,
        "delay": quantities.duration(parsed.delay), "rate": quantities.rate(parsed.rate),
        "memory": parsed.memory and quantities.size(parsed.memory), "cpu": parsed.cpu,
        "disk_rate": parsed.disk_rate and quantities.disk_rate(parsed.disk_rate),
        "private": private, "folder": str(Path(parsed.folder).resolve()), "slowed": {},
    })  # fmt: skip
    _status(state, parsed)


def _lacks(state: State, parsed: argparse.Namespace) -> None:
    assembly.require()


def _down(state: State, parsed: argparse.Namespace) -> None:
    if not state.exists():
        raise BedMistake(f"no bed {state.name!r} is up")
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
        parts.append(f"{cores:.2g} cores")
    parts.append(f"sent {traffic['sent']} B, received {traffic['received']} B")
    if traffic["dropped"]:
        parts.append(f"dropped {traffic['dropped']} frames")
    return ", ".join(parts)


def _node(state: State, wanted: str) -> Node:
    _, nodes = state.read()
    for node in nodes:
        if wanted in (node.name, str(node.number), node.address):
            return node
    raise BedMistake(f"{wanted!r} is none of the devices {nodes[0].name} to {nodes[-1].name}")


def _run(state: State, parsed: argparse.Namespace) -> None:
    options, nodes = state.read()
    ranks = options["devices"] if parsed.np is None else parsed.np
    if ranks < 1:
        raise BedMistake(f"-np {ranks} is not a number of ranks")
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
    print(*sorted(members))


def _link(state: State, parsed: argparse.Namespace) -> None:
    changes = {"up": parsed.state == "up"} if parsed.state else {}
    if parsed.delay is not None:
        changes["delay"] = quantities.duration(parsed.delay)
    if parsed.rate is not None:
        changes["rate"] = quantities.rate(parsed.rate)
    if not changes:
        raise BedMistake("say what the link shall be: up, down, --delay or --rate")
    assembly.change_link(state, _node(state, parsed.device), **changes)


def _slow(state: State, parsed: argparse.Namespace) -> None:
    node = _node(state, parsed.device)
    given = assembly.slow(state, node, quantities.share(parsed.share))
    print(f"{node.name}: {'no limit' if given is None else f'{given:.2g} cores'}")
