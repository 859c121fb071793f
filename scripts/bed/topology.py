"""Which devices there are, what they are called, and how many links lie between two. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from bed.quantities import BedMistake

MOST_DEVICES = 32
# This machine itself, links without a plan, groups, and what the kernel does not send to.
_SPECIAL = [
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")
]
INTERFACE = "eth0"  # of every device


@dataclass(frozen=True)
class Shape:
    """How devices are joined.

    A hop is the way from one node of the internet protocol to the next: one switch makes devices
    neighbours. In Klonet's topology each has a gateway, and the gateways one core router.
    """

    hops: int  # between two devices, each with its delay and its rate

    @property
    def forwards(self) -> int:
        """How often a packet is received whole and sent on, on either side of the middle."""
        return (self.hops - 1) // 2


SHAPES = {"switch": Shape(1), "klonet": Shape(4)}


@dataclass(frozen=True)
class Node:
    """A device; number 0 is a namespace of the bed's own."""

    name: str
    number: int
    address: str = ""


def plan(devices: int, subnet: str) -> list[Node]:
    """Return the devices. Raises BedMistake for what doesn't fit."""
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise BedMistake(f"--subnet {subnet}: {error}") from None
    if network.prefixlen != 24:
        raise BedMistake(f"--subnet {subnet} is not a /24")
    if any(network.subnet_of(special) for special in _SPECIAL):
        raise BedMistake(
            f"--subnet {subnet} has no addresses for devices; take one of 10.0.0.0/8, "
            "172.16.0.0/12 or 192.168.0.0/16, such as 10.99.8.0/24"
        )
    return [Node(f"dev{number}", number, str(network[number])) for number in range(1, devices + 1)]
