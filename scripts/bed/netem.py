"""Delay and rate by the kernel's own netem, with veth pairs and bridges, where it has netem."""

from __future__ import annotations

import json
import subprocess

from bed import devices, kernel
from bed.links import Port, ip, tc
from bed.state import State
from bed.topology import Node

_SWITCH = Node("switch", 0)  # a namespace for the bridges
_LIMIT = 10000  # packets that are on the way or wait


class Netem:
    """The links of a bed as the kernel keeps them: the same face as Switch."""

    def __init__(self, state: State):
        """Take the bed that they belong to."""
        self._state = state

    @staticmethod
    def possible() -> bool:
        """Tell whether the kernel can delay packets itself."""
        tried = subprocess.run(
            ["unshare", "--net", "sh", "-c",
             "ip link set lo up && tc qdisc add dev lo root netem delay 1ms"],
            capture_output=True, check=False,
        )  # fmt: skip
        return tried.returncode == 0

    def create(self, ports: list[Port]) -> None:
        """Make a bridge for each network, a veth pair for each port, a netem at either end."""
        devices.start(self._state, _SWITCH, self._state.folder, [])
        for network in sorted({port.network for port in ports}):
            ip(self._inside(), [f"link add br{network} type bridge", f"link set br{network} up"])
        for number, port in enumerate(ports):
            ip(self._inside(), [
                f"link add p{number} type veth peer name {port.interface} "
                f"netns {self._state.process(port.node)}",
                f"link set p{number} master br{port.network} up",
            ])  # fmt: skip
            self._shape(number, port, "add")

    def _inside(self) -> int:
        return self._state.process(_SWITCH.name)

    def _shape(self, number: int, port: Port, verb: str) -> None:
        rates = (port.rate, 0 if port.wire else port.rate)
        ends = ((self._state.process(port.node), port.interface), (self._inside(), f"p{number}"))
        for (pid, name), rate in zip(ends, rates, strict=True):
            kept = f"delay {port.kept / 2 * 1e6:.0f}us limit {_LIMIT}"
            tc(pid, [f"qdisc {verb} dev {name} root netem {kept} rate {round(rate * 8)}bit"])

    def apply(self, number: int, port: Port) -> None:
        """Make a port what `port` says, while frames pass."""
        ip(self._inside(), [f"link set p{number} {'up' if port.up else 'down'}"])
        self._shape(number, port, "change")

    def traffic(self) -> list[dict[str, int]]:
        """Return the bytes from and to each port, and the frames dropped there."""
        told = subprocess.run(
            ["ip", "-json", "-statistics", "link"], capture_output=True, check=True,
            preexec_fn=lambda: kernel.enter(self._inside(), "net"),
        )  # fmt: skip
        counts = {link["ifname"]: link["stats64"] for link in json.loads(told.stdout)}
        ports = (counts[f"p{number}"] for number in range(len(counts)) if f"p{number}" in counts)
        return [
            {"sent": c["rx"]["bytes"], "received": c["tx"]["bytes"], "dropped": c["tx"]["dropped"]}
            for c in ports
        ]

    def warning(self) -> str | None:
        """Return what is wrong with the links; nothing that could be known."""
        return None
