"""Delay and rate by the kernel's own netem, with veth pairs and bridges, where it has netem."""

from __future__ import annotations

import json
import subprocess

from bed import devices, kernel
from bed.links import Port, ip, tc
from bed.state import State
from bed.topology import INTERFACE, Node

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
        """Make a bridge, a veth pair for each device, a netem at either end."""
        devices.start(self._state, _SWITCH, self._state.folder, [])
        ip(self._inside(), ["link add br0 type bridge", "link set br0 up"])
        for number, port in enumerate(ports):
            ip(self._inside(), [
                f"link add p{number} type veth peer name {INTERFACE} "
                f"netns {self._state.holder(port.node)}",
                f"link set p{number} master br0 up",
            ])  # fmt: skip
            self._shape(number, port, "add")

    def _inside(self) -> int:
        return self._state.holder(_SWITCH.name)

    def _shape(self, number: int, port: Port, verb: str) -> None:
        kept = f"delay {port.kept * 1e6:.0f}us limit {_LIMIT} rate {round(port.rate * 8)}bit"
        for pid, name in (
            (self._state.holder(port.node), INTERFACE),
            (self._inside(), f"p{number}"),
        ):
            tc(pid, [f"qdisc {verb} dev {name} root netem {kept}"])

    def apply(self, number: int, port: Port) -> None:
        """Make a port what `port` says, while frames pass."""
        ip(self._inside(), [f"link set p{number} {'up' if port.up else 'down'}"])
        self._shape(number, port, "change")

    def require_alive(self) -> None:
        """Raise BedError where the bridges are gone."""
        self._inside()

    def traffic(self) -> list[dict[str, int]]:
        """Return the bytes from and to each port, and the frames dropped there."""
        pid = self._inside()
        told = subprocess.run(
            ["ip", "-json", "-statistics", "link"], capture_output=True, check=True,
            preexec_fn=lambda: kernel.enter(pid, "net"),
        )  # fmt: skip
        counts = {link["ifname"]: link["stats64"] for link in json.loads(told.stdout)}
        ports = (counts[f"p{number}"] for number in range(len(counts)) if f"p{number}" in counts)
        return [
            {"sent": c["rx"]["bytes"], "received": c["tx"]["bytes"], "dropped": c["tx"]["dropped"]}
            for c in ports
        ]

    def remarks(self) -> list[str]:
        """Return what the links have to say: nothing is known."""
        return []
