"""Where the time went on each rank, counted: compute, disk wait, network; bytes, peak memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tpimpi.comm.group import Group
from tpimpi.memory.account import MemoryPlan
from tpimpi.memory.process import peak_bytes
from tpimpi.tape.tape import Tape
from tpimpi.units import size


@dataclass(frozen=True)
class RankFigures:
    """One rank's account of a run. Seconds; bytes."""

    rank: int
    host: str
    seconds: float
    compute_seconds: float
    disk_wait_seconds: float
    network_seconds: float  # in sums and in gathering logits
    late_seconds: float  # of those: waiting for ranks that came later
    idle_seconds: float  # until rank 0 told the next step
    allreduce: str  # how a step of one token is merged / a prompt
    allreduce_alone_seconds: float  # of the sum of one row where no rank is late
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
        self._before = (group.network_seconds, group.late_seconds, group.idle_seconds)
        self._wait = tape.wait_seconds

    def figures(self) -> RankFigures:
        """Return this rank's figures up to now."""
        seconds = time.perf_counter() - self._start
        group, sums = self._group, self._group.sums
        now = (group.network_seconds, group.late_seconds, group.idle_seconds)
        network, late, idle = (a - b for a, b in zip(now, self._before, strict=True))
        wait = self._tape.wait_seconds - self._wait
        return RankFigures(
            rank=group.rank,
            host=group.host,
            seconds=seconds,
            compute_seconds=max(seconds - network - idle - wait, 0.0),
            disk_wait_seconds=wait,
            network_seconds=network,
            late_seconds=late,
            idle_seconds=idle,
            allreduce="none"
            if group.size == 1
            else "/".join(dict.fromkeys((sums.short, sums.long))),
            allreduce_alone_seconds=sums.alone[0][1] if sums.alone else 0.0,
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


@dataclass(frozen=True)
class Bound:
    """What takes most of the time, and on which rank: the last, for which the others wait."""

    what: str  # compute, disk, network
    share: float  # of that rank's time
    rank: int
    host: str


def bound(ranks: list[RankFigures]) -> Bound:
    """Return what binds a run: the largest part of the time of the rank that is mostly last."""
    last = min(ranks, key=lambda r: r.late_seconds)
    parts = {
        "compute": last.compute_seconds,
        "disk": last.disk_wait_seconds,
        "network": last.network_seconds - last.late_seconds,
    }
    what = max(parts, key=parts.get)
    whole = max(sum(parts.values()), 1e-9)
    return Bound(what, parts[what] / whole, last.rank, last.host)


def binding(ranks: list[RankFigures]) -> str:
    """Return what binds a run, for people."""
    binds = bound(ranks)
    last = f" (rank {binds.rank} on {binds.host} last)" if len(ranks) > 1 else ""
    return f"{binds.what} {binds.share:.0%}{last}"


def taken(ranks: list[RankFigures]) -> str:
    """Return what all texts of a run have taken together, for people."""
    read, peak = sum(r.bytes_read for r in ranks), max(r.peak_memory_bytes for r in ranks)
    return f"peak memory {size(peak)} a rank | read {size(read)} | {binding(ranks)}"


def decode_rate(tokens: int, first: float, total: float) -> float:
    """Return the tokens a second after the first of them; seconds."""
    return (tokens - 1) / (total - first) if tokens > 1 and total > first else 0.0


def made(tokens: int, prompt: int, first: float, per_second: float) -> str:
    """Return what was made and how fast, for people."""
    return (
        f"{tokens} tokens after a prompt of {prompt} | first token {first:.2f} s | "
        f"{per_second:.2f} tokens/s"
    )


def summary(ranks: list[RankFigures], prompt: int, tokens: int, first: float, total: float) -> dict:
    """Return the figures of a run by name. Seconds, bytes, tokens."""
    decode = decode_rate(tokens, first, total)
    read = sum(r.bytes_read for r in ranks)
    binds = bound(ranks)
    return {
        "prompt_tokens": prompt,
        "tokens": tokens,
        "seconds": total,
        "first_token_seconds": first,
        "tokens_per_second": decode,
        "peak_memory_bytes": max(r.peak_memory_bytes for r in ranks),
        "bytes_read": read,
        "read_bytes_per_second": read / total if total > 0 else 0.0,
        "bound_by": binds.what,
        "bound_share": binds.share,
        "last_rank": binds.rank,
    }
