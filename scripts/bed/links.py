"""The links between devices, and what each keeps: delay, rate, up or down."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from bed import kernel
from bed.quantities import BedError
from bed.topology import Node, Shape

_SMALLEST = 67  # bytes of a frame with a byte of TCP


@dataclass
class Port:
    """A device's end of its link, and of the links behind that up to the middle of the network."""

    node: str
    delay: float  # seconds one way, of the device's link
    behind: float  # seconds one way, of the links behind it
    forwards: int  # how often a packet is received whole and sent on there
    rate: float  # bytes a second, 0 without limit
    up: bool = True
    own: float = 0.0  # seconds that this machine takes anyway, see calibration.py

    @property
    def side(self) -> float:
        """Seconds between the device and the middle; one switch is in the middle of one hop."""
        return self.delay + self.behind if self.forwards else self.delay / 2

    @property
    def byte(self) -> float:
        """Seconds that a byte of TCP takes on this side, one way: each node sends its frame."""
        return self.side + (self.forwards + 1) * (_SMALLEST / self.rate if self.rate else 0.0)

    @property
    def kept(self) -> float:
        """Seconds that a frame is to be kept for on this side."""
        return max(0.0, self.side - self.own)


def ports(nodes: list[Node], shape: Shape, delay: float, rate: float) -> list[Port]:
    """Return the port of each device."""
    behind = (shape.hops // 2 - 1) * delay if shape.forwards else 0.0
    return [Port(node.name, delay, behind, shape.forwards, rate) for node in nodes]


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
    parent = os.getpid()

    def enter() -> None:
        kernel.die_with_parent(parent)
        kernel.enter(pid, "net")

    try:
        done = subprocess.run(
            [program, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True,
            text=True, check=False, preexec_fn=enter,
        )  # fmt: skip
    except subprocess.SubprocessError:
        raise BedError(f"process {pid} of the bed is gone; `testbed down`, then `up`") from None
    if done.returncode:
        raise BedError(f"{program} failed: {' '.join(done.stderr.split())} ({'; '.join(lines)})")
