"""Good devices, speeds and links, but for changes, that the tests of `tpimpi doctor` tell it."""

from dataclasses import replace

from tpimpi.bench.device import Device
from tpimpi.bench.folder import Folder
from tpimpi.bench.speed import Speed
from tpimpi.comm.links import Link

GB = 1 << 30
LAN = Link(1e-3, 36e6)


def device(rank, **changes):
    """A quad-core of its own, without any trouble."""
    whole = Device(
        rank, f"dev{rank}", f"machine {rank}", "CPU", (0, 1, 2, 3), 4, None, 4, 8 * GB, "1.0", "ab",
        {"numba": "0.68"}, "MPICH 5.0", False, Folder("/home/me", None, 100 * GB, 7, "ext4"),
    )  # fmt: skip
    return replace(whole, **changes)


def speed(rank, **changes):
    return replace(Speed(100e9, 10e9, 1e9, 5e8, None, (rank,)), **changes)


def lan(count, **changes):
    """A matrix of equal links, but for those that `changes` name by `r0to1`."""
    named = {tuple(map(int, name[1:].split("to"))): link for name, link in changes.items()}
    return [
        [None if i == j else named.get((i, j), LAN) for j in range(count)] for i in range(count)
    ]
