"""`--ratio auto`: measure what each rank can do, and cut the model so that none is waited for long.

What was cut before is taken again where it is nearly as good: another cut is sent to all ranks
anew, and two measurements of the same machines never agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.engine.needs import needs_of
from tpimpi.engine.rates import KERNEL_BYTES, RING_BYTES, disk_rate, kernel_rate
from tpimpi.engine.warmup import warm_up
from tpimpi.memory.account import Needs, Work
from tpimpi.memory.plan import wanted_chunk
from tpimpi.memory.process import FreeMemory, free_memory
from tpimpi.memory.request import MemoryRequest
from tpimpi.memory.shares import Device, Load, predict
from tpimpi.memory.sharing import Claim, shared_budgets
from tpimpi.memory.solver import best_shares, choose, gain
from tpimpi.model.partition import Partition
from tpimpi.model.ratio import AUTO, spelled
from tpimpi.model.tensors import pieces
from tpimpi.shards.cuts import known_cuts
from tpimpi.shards.layout import tape_layout
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource
from tpimpi.units import rate

CONTEXT = 2048  # tokens that shares are made for, whatever is asked: so they stay the same
TAKEN, LEAST_BYTES = 4, 4 << 20  # a measurement takes one in so many bytes of what a budget leaves
SHOWN = 8  # ranks whose rates are told
WORTH = 0.05  # by what part a token must be shorter for a word about it


@dataclass(frozen=True)
class Room:
    """What a rank needs if it owns nothing of the model, and all of it; what it may take."""

    host: str
    nothing: Needs
    everything: Needs
    budget: str | int
    free: FreeMemory


def devices_of(
    rooms: Sequence[Room], request: MemoryRequest, work: Work, kernels: Sequence[float],
    disks: Sequence[float],
) -> list[Device]:  # fmt: skip
    """Return ranks as devices; of each its room and its bytes/s from memory and from disk."""
    rates = list(zip(kernels, disks, strict=True))
    if request.everything:
        return [Device(*pair) for pair in rates]
    if request.window is not None:
        return [Device(*pair, room=0.0) for pair in rates]
    chunk, devices = wanted_chunk(request, work), []
    claims = [
        Claim(
            room.budget, room.host, room.nothing.resident, room.everything.everything(work, chunk),
            room.free,
        )
        for room in rooms
    ]  # fmt: skip
    for room, budget, pair in zip(rooms, shared_budgets(claims), rates, strict=True):
        ring = room.everything.smallest_ring()
        for tokens in (chunk, 1):  # shorter chunks take less, so they are what fits
            none, whole = (
                needs.besides_weights(tokens, needs.least_pages(work, work.context, tokens))
                for needs in (room.nothing, room.everything)
            )
            device = Device(*pair, budget - none, whole - none, ring)
            if device.holds(1 / len(rooms)):
                break
        devices.append(device)
    return devices


class Machines:
    """What all ranks can do for a model, as far as it was measured; methods are collective.

    `rooms` is what each rank has of memory, before a measurement takes some of it. `ranks` is how
    many are planned for, where one process stands for as many devices like this one.
    """

    def __init__(
        self, group: Group, source: Source | SyntheticSource, request: MemoryRequest, threads: int,
        ranks: int | None = None,
    ):  # fmt: skip
        config, self._ranks = source.config, ranks or group.size
        self._group, self._source, self._request, self._threads = group, source, request, threads
        context = min(CONTEXT, config.max_positions)
        self.work = Work(max(1, context // 2), context)
        self.load = Load.of(config, source.encoding_of, context)
        streamed = [p for p in pieces(config, source.partition.ranks[0]) if p.streamed]
        self._names = [piece.name for piece in streamed]
        self._encodings = [source.encoding_of(piece.source) for piece in streamed]
        warm_up(group, set(self._encodings), threads)
        mine = None
        with group.together():
            mine = self._rooms()
        self.rooms: list[Room] = [room for rooms in group.comm.allgather(mine) for room in rooms]
        self.kernels: list[float] = []  # bytes/s of each rank, once measured
        self.disks: list[float] = []

    def _rooms(self) -> list[Room]:
        """Return this rank's room, or those of all devices that it stands for."""
        group, config, needs = self._group, self._source.config, []
        for shares in ((0, 1), (1, 0)):
            cut = replace(Partition.of(config, shares).ranks[0], rank=1)  # one that does not lead
            tape = tape_layout(pieces(config, cut), self._source.encoding_of)
            needs.append(needs_of(config, cut, tape, self.work, self._threads))
        hosts = {group.rank: group.host}
        if self._ranks != group.size:
            hosts = {rank: f"device {rank}" for rank in range(self._ranks)}
        free, rooms = free_memory(), []
        for rank, host in hosts.items():
            budget = self._request.budgets.of(rank, self._ranks, host)
            rooms.append(Room(host, *needs, budget, free))
        return rooms

    def devices(self) -> list[Device]:
        """Return all ranks as devices; a disk that was not measured reads a byte a second."""
        alike = self._ranks // self._group.size
        disks = (self.disks or [1.0] * self._group.size) * alike
        return devices_of(self.rooms, self._request, self.work, self.kernels * alike, disks)

    def measure(self, disks: bool = True) -> None:
        """Measure what was not yet; disks only if weights have to stream, or if so asked."""
        group, source = self._group, self._source
        unknown = [1.0] * len(self.rooms)
        without = devices_of(self.rooms, self._request, self.work, unknown, unknown)
        nbytes = max(LEAST_BYTES, int(min(KERNEL_BYTES, without[group.rank].room / TAKEN)))
        if not self.kernels:
            encoding = max(set(self._encodings), key=self._encodings.count)
            mine = kernel_rate(group, source.config, encoding, self._threads, nbytes)
            self.kernels = group.comm.allgather(mine)
        if not self.disks and (disks or group.comm.bcast(self._must_stream())):
            mine = disk_rate(group, source.folder, self._names, min(RING_BYTES, nbytes))
            self.disks = group.comm.allgather(mine)

    def _must_stream(self) -> bool:
        """Tell whether some memory is too small for the shares that arithmetic alone asks for."""
        config = self._source.config
        plain = [Device(kernel, math.inf) for kernel in self.kernels]
        shares = best_shares(config, self.load, plain)
        return any(predict(config, self.load, self.devices(), shares).disk)

    def __str__(self) -> str:
        text = f"weights in memory {_rates(self.kernels)}"
        return f"{text}, disks {_rates(self.disks)}" if self.disks else text


def settle(
    group: Group, source: Source | SyntheticSource, shards: ShardRequest, memory: MemoryRequest,
    threads: int,
) -> None:  # fmt: skip
    """Cut `source` as its ranks' measurements ask for, where that is wanted (collective).

    Shares that are numbers have been kept to already.
    """
    if shards.ratio != AUTO or group.size == 1:
        return
    machines = Machines(group, source, memory, threads)
    machines.measure(disks=False)
    take_best(group, source, machines, shards.again)


def take_best(
    group: Group, source: Source | SyntheticSource, machines: Machines, again: bool = False
) -> None:
    """Cut `source` as it suits machines that were measured, and say so (collective)."""
    known = [] if again else known_cuts(group, source)
    cut = None
    with group.together():
        if group.rank == 0:
            config, load, devices = source.config, machines.load, machines.devices()
            named = known and source.save_dir  # another one would be refused there
            cut = known[0] if named else choose(config, load, devices, known)
            there = cut.to_json() in {one.to_json() for one in known}
            shorter = gain(config, load, devices, cut)
            say(_sentence(cut, shorter, there, str(machines)))
    source.keep(group.comm.bcast(cut))


def _rates(rates: Sequence[float]) -> str:
    more = f" ... ({len(rates)} ranks)" if len(rates) > SHOWN else ""
    return ", ".join(map(rate, rates[:SHOWN])) + more


def _sentence(cut: Partition, shorter: float, there: bool, measured: str) -> str:
    """Return which shares were chosen, and why."""
    text = f"shares {spelled(cut.shares)} as measured: {measured}"
    if not there:
        return text
    text += "; there are shards of this cut"
    if shorter <= WORTH:
        return text
    return f"{text}, but a token would be {shorter:.0%} shorter with others: --split-bin cuts anew"
