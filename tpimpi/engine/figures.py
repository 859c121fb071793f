"""Where the time went on each rank, counted: compute, disk wait, network; bytes, peak memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tpimpi.comm.group import Group
from tpimpi.memory.account import MemoryPlan
from tpimpi.memory.process import peak_bytes
from tpimpi.tape.tape import Tape


@dataclass(frozen=True)
class RankFigures:
    """One rank's account of a run. Seconds; bytes."""

    rank: int
    host: str
    seconds: float
    compute_seconds: float
    disk_wait_seconds: float
    network_seconds: float
    bytes_read: int
    streamed_bytes_per_pass: int
    resident_bytes: int
    ring_bytes: int
    kv_bytes: int
    activation_bytes: int
    budget_bytes: int | None
    planned_memory_bytes: int
    peak_memory_bytes: int
    prompt_chunk: int
    context: int
    threads: int


class Stopwatch:
    """Measure one rank's run from its making to `figures`."""

    def __init__(self, group: Group, tape: Tape, plan: MemoryPlan, threads: int):
        self._group, self._tape, self._plan, self._threads = group, tape, plan, threads
        self._start = time.perf_counter()
        self._network, self._wait = group.network_seconds, tape.wait_seconds

    def figures(self) -> RankFigures:
        """Return this rank's figures up to now."""
        seconds = time.perf_counter() - self._start
        network = self._group.network_seconds - self._network
        wait = self._tape.wait_seconds - self._wait
        return RankFigures(
            rank=self._group.rank,
            host=self._group.host,
            seconds=seconds,
            compute_seconds=max(seconds - network - wait, 0.0),
            disk_wait_seconds=wait,
            network_seconds=network,
            bytes_read=self._tape.bytes_read,
            streamed_bytes_per_pass=self._tape.streamed_bytes,
            resident_bytes=self._tape.resident_bytes,
            ring_bytes=self._tape.ring_bytes if self._tape.streamed_bytes else 0,
            kv_bytes=self._plan.kv,
            activation_bytes=self._plan.activations,
            budget_bytes=self._plan.budget,
            planned_memory_bytes=self._plan.most,
            peak_memory_bytes=peak_bytes(),
            prompt_chunk=self._plan.chunk,
            context=self._plan.context,
            threads=self._threads,
        )


def gather(group: Group, mine: RankFigures) -> list[RankFigures] | None:
    """Bring all ranks' figures to rank 0 (collective)."""
    return group.comm.gather(mine, root=0)


def summary(ranks: list[RankFigures], prompt: int, tokens: int, first: float, total: float) -> dict:
    """Return the figures of a run by name. Seconds, bytes, tokens."""
    decode = (tokens - 1) / (total - first) if tokens > 1 and total > first else 0.0
    read = sum(r.bytes_read for r in ranks)
    return {
        "prompt_tokens": prompt,
        "tokens": tokens,
        "seconds": total,
        "first_token_seconds": first,
        "tokens_per_second": decode,
        "peak_memory_bytes": max(r.peak_memory_bytes for r in ranks),
        "bytes_read": read,
        "read_bytes_per_second": read / total if total > 0 else 0.0,
    }
