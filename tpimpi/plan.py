"""What stays in memory and what streams: from the memory flags to a ring and a resident set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpimpi.comm import Group
from tpimpi.partition import Piece
from tpimpi.shard import Shard
from tpimpi.tape import ring_bytes_for

DEFAULT_WINDOW = 4  # blocks
COMFORT = 0.7  # the share of the free memory that weights may take without a word of the user
PROCESS_BYTES = 256 << 20  # interpreter, libraries and activations of one rank


@dataclass(frozen=True)
class MemoryPlan:
    """The tensors that stay in memory, and the bytes of the ring for the others."""

    resident: frozenset[str]
    ring_bytes: int


def _limit(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None  # no such controller on this machine
    return int(text) if text.isdigit() else None


def free_memory() -> int:
    """Return the bytes that this node can still give, within the limits of its cgroup."""
    candidates = []
    try:
        for entry in Path("/proc/meminfo").read_text().splitlines():
            if entry.startswith("MemAvailable:"):
                candidates.append(int(entry.split()[1]) * 1024)
    except OSError:
        candidates.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    for limit, usage in (
        ("memory.max", "memory.current"),  # version 2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # version 1
    ):
        most, used = _limit(f"/sys/fs/cgroup/{limit}"), _limit(f"/sys/fs/cgroup/{usage}")
        if most is not None and used is not None:
            candidates.append(max(most - used, 0))
    return min(candidates)


def block_bytes(shard: Shard, pieces: Sequence[Piece]) -> list[int]:
    """Return the bytes on the tape of each block, the head's last."""
    blocks: dict[int, int] = {}
    for piece in pieces:
        if piece.streamed:
            blocks[piece.block] = blocks.get(piece.block, 0) + shard[piece.name].nbytes
    return [blocks[b] for b in sorted(blocks)]


def plan_memory(
    group: Group, shard: Shard, pieces: Sequence[Piece], window: int | None, everything: bool
) -> MemoryPlan:
    """Follow the memory flags, or choose by what this node can hold (collective)."""
    names = frozenset(p.name for p in pieces if p.streamed)
    total = sum(shard[name].nbytes for name in names)
    if not everything and window is None:
        need = group.node.allreduce(total + PROCESS_BYTES)
        fits = need <= COMFORT * free_memory()
        everything = all(group.comm.allgather(fits))  # a pass is as slow as its slowest rank
    if everything:
        return MemoryPlan(names, 0)
    blocks = block_bytes(shard, pieces)
    window = min(window or DEFAULT_WINDOW, len(blocks))
    return MemoryPlan(frozenset(), ring_bytes_for(blocks, window))
