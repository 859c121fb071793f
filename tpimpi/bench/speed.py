"""How fast each rank's device is while all work at once: product, memory, disk; who shares a disk.

Every measurement lasts a given time, whatever the device's speed: ranks on one machine then share
its cores all along, and one whose share of a core is limited meets that limit several times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.errors import MachineError, describe
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.pages import huge_pages
from tpimpi.kernels.reading import read_memory
from tpimpi.memory.process import free_memory
from tpimpi.model.encoding import ENCODINGS
from tpimpi.paths import there
from tpimpi.tape.probe import NAME, Probe, reading_rate
from tpimpi.tape.tape import Tape

SECONDS = 0.4  # of each measurement: four periods of a cgroup's share of a core
PRODUCT = (192, 256, 512)  # T, N, K: weights and results stay in the caches
RING_BYTES = 16 << 20  # of a probe's tape
MEMORY_BYTES = 128 << 20  # read by the ranks of a node, where it has so much: more than caches hold


@dataclass(frozen=True)
class Speed:
    """What one rank can do a second while all others do the same."""

    flops: float
    memory: float  # bytes read
    disk: float | None  # bytes read past the page cache; None where no file can be made
    disk_write: float | None
    trouble: str | None  # what went wrong with the disk
    sees: tuple[int, ...]  # the ranks whose files are in its folder


def measure_speed(group: Group, threads: int, folder: Path | None, encoding: str) -> Speed:
    """Measure this rank while all others measure (collective); no disk without a folder.

    The kernels are loaded.
    """
    flops = _rate(group, *_product(threads, encoding))
    memory = _rate(group, *_reading(group, threads))
    probe, trouble, disk = None, None, None
    meet(group)
    try:
        probe = Probe(folder, SECONDS) if folder else None
    except (OSError, MachineError) as error:
        trouble = describe(error) if isinstance(error, OSError) else str(error)
    try:
        names = group.comm.allgather(probe.path.name if probe else "")
        sees = tuple(
            rank for rank, name in enumerate(names)
            if folder and name and (there(folder) / name).exists()
        )  # fmt: skip
        meet(group)
        if probe:
            try:
                disk = _disk(probe)
            except MachineError as error:
                trouble = str(error)
        meet(group)
    finally:
        if probe:
            probe.close()
    return Speed(flops, memory, disk, probe.write_rate if probe else None, trouble, sees)


def _disk(probe: Probe) -> float:
    tape = Tape(probe, [NAME], {}, RING_BYTES)
    try:
        return reading_rate(tape, [NAME], SECONDS)
    finally:
        tape.close()


def meet(group: Group) -> None:
    """Sleep until all ranks are here (collective): spinning would disturb those that measure."""
    group.rest_until(group.comm.Ibarrier().Test)


def _product(threads: int, encoding: str) -> tuple[Callable[[], object], int]:
    """Return a product and its FLOPs: 2 T N K."""
    tokens, rows, columns = PRODUCT
    x = np.ones((tokens, columns), np.float32)  # [T, K]
    panels = ENCODINGS[encoding].pack(ENCODINGS[encoding].zeros(rows, columns))
    out = np.empty((tokens, rows), np.float32)  # [T, N]
    return lambda: matmul(x, [(panels, out)], threads, encoding), 2 * tokens * rows * columns


def _reading(group: Group, threads: int) -> tuple[Callable[[], object], int]:
    """Return a read of memory and its bytes; a device with little memory lends little."""
    free = free_memory()
    most = free.node if free.cgroup is None else min(free.node, free.cgroup)
    nbytes = max(min(MEMORY_BYTES, most // 8) // group.node.size, 1 << 20)
    data = np.frombuffer(huge_pages(nbytes), np.uint64)
    data[...] = 1
    if group.node.rank == 0:
        read_memory(data, threads)  # compiled by one rank for all of its node
    group.rest_until(group.node.Ibarrier().Test)
    return lambda: read_memory(data, threads), data.nbytes


def _rate(group: Group, work: Callable[[], object], amount: int) -> float:
    """Return how much a second is done of work that does `amount` (collective)."""
    work()
    meet(group)
    done, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < SECONDS:
        work()
        done += amount
    return done / took


def bytes_on_the_wire() -> int | None:
    """Return how many bytes this host's network has passed but to itself; None: it doesn't tell."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None
    found = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        if name.strip() != "lo":
            words = numbers.split()
            found += int(words[0]) + int(words[8])
    return found
