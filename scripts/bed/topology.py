"""Which nodes there are, how they are linked, what their addresses and routes are. Pure.

A hop is the way from one node to the next: with one switch the devices are one hop apart, in
Klonet's topology four (device, gateway, core, gateway, device), each link with its own delay.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from bed.quantities import BedMistake

MOST_DEVICES = 32  # a /24 in blocks of eight addresses


@dataclass(frozen=True)
class Interface:
    """One end of a link: its name in the node, its address with prefix, and its network."""

    name: str
    address: str
    network: int


@dataclass
class Node:
    """A device or a router."""

    name: str
    number: int  # of a device, from 1; 0 is a router
    interfaces: list[Interface] = field(default_factory=list)
    routes: list[tuple[str, str]] = field(default_factory=list)  # (destination, gateway)

    @property
    def address(self) -> str:
        """The address that others reach it by."""
        return self.interfaces[0].address.split("/")[0]


def plan(shape: str, devices: int, subnet: str) -> list[Node]:
    """Return the nodes, devices first. Raises BedMistake for what doesn't fit."""
    if not 1 <= devices <= MOST_DEVICES:
        raise BedMistake(f"--devices {devices} is not between 1 and {MOST_DEVICES}")
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        raise BedMistake(f"--subnet {subnet}: {error}") from None
    if network.prefixlen != 24:
        raise BedMistake(f"--subnet {subnet} is not a /24")
    return {"switch": _switch, "klonet": _klonet}[shape](devices, network)


def _switch(devices: int, network: ipaddress.IPv4Network) -> list[Node]:
    return [
        Node(f"dev{i}", i, [Interface("eth0", f"{network[i]}/24", 0)])
        for i in range(1, devices + 1)
    ]


def _klonet(devices: int, network: ipaddress.IPv4Network) -> list[Node]:
    nodes, gateways, core = [], [], Node("core", 0)
    for i in range(1, devices + 1):
        base = 8 * (i - 1)  # two /30: device and gateway, gateway and core
        to_device, to_core = 2 * (i - 1), 2 * (i - 1) + 1
        device = Node(f"dev{i}", i, [Interface("eth0", f"{network[base + 2]}/30", to_device)])
        gateway = Node(f"gw{i}", 0)
        gateway.interfaces += [
            Interface("eth0", f"{network[base + 1]}/30", to_device),
            Interface("eth1", f"{network[base + 5]}/30", to_core),
        ]
        core.interfaces.append(Interface(f"eth{i - 1}", f"{network[base + 6]}/30", to_core))
        device.routes.append((str(network), str(network[base + 1])))
        gateway.routes.append((str(network), str(network[base + 6])))
        core.routes.append((f"{network[base]}/30", str(network[base + 5])))
        nodes.append(device)
        gateways.append(gateway)
    return [*nodes, *gateways, core]


def hops(shape: str) -> int:
    """Return how many links lie between two devices."""
    return {"switch": 1, "klonet": 4}[shape]
