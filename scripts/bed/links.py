"""The ends of the links between nodes, and what each keeps: delay, rate, up or down."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from bed import kernel
from bed.quantities import BedError
from bed.topology import Node


@dataclass
class Port:
    """One end of a link. A frame is kept for half the delay at either end."""

    node: str
    interface: str
    address: str
    network: int
    wire: bool  # a link between two: what has been sent on it needs no second serialization
    delay: float  # seconds one way, from this end to the next of its network
    rate: float  # bytes a second, 0 without limit
    up: bool = True
    own: float = 0.0  # seconds of each hop that this machine takes anyway, see calibration.py

    @property
    def kept(self) -> float:
        """The seconds that a frame is to be kept for."""
        return max(0.0, self.delay - self.own)


def ports(nodes: list[Node], delay: float, rate: float) -> list[Port]:
    """Return the ports of all nodes, those of devices first and in their order."""
    flat = [(node, interface) for node in nodes for interface in node.interfaces]
    sizes: dict[int, int] = {}
    for _, interface in flat:
        sizes[interface.network] = sizes.get(interface.network, 0) + 1
    routed = any(not node.number for node in nodes)
    return [
        Port(node.name, i.name, i.address, i.network, routed and sizes[i.network] == 2, delay, rate)
        for node, i in flat
    ]


def superframe(rate: float) -> int:
    """Return the bytes a device may hand over at once, to be cut into packets by its card.

    Half a millisecond's worth: more would make bursts that the real link has not, and fewer would
    cost the switch a waking for each packet.
    """
    return int(min(65536, max(1600, rate / 2000))) if rate else 65536


def ip(pid: int, lines: list[str]) -> None:
    """Run commands of ip(8) in the network namespace of a process."""
    _batch("ip", pid, lines)


def tc(pid: int, lines: list[str]) -> None:
    """Run commands of tc(8) in the network namespace of a process."""
    _batch("tc", pid, lines)


def _batch(program: str, pid: int, lines: list[str]) -> None:
    done = subprocess.run(
        [program, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True,
        check=False, preexec_fn=lambda: kernel.enter(pid, "net"),
    )  # fmt: skip
    if done.returncode:
        raise BedError(f"{program} failed: {' '.join(done.stderr.split())} ({'; '.join(lines)})")
