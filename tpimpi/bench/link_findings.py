"""What is slow about the ranks' links, in sentences with the way out. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tpimpi.bench.device import Device
from tpimpi.bench.findings import SLOW, Finding, Job, who
from tpimpi.comm.links import Link
from tpimpi.units import size

Matrix = Sequence[Sequence[Link | None]]  # [from][to]

SLOW_RATE, SLOW_LATENCY = 5e6, 5e-3  # bytes/s and seconds that no wire in a home has
TIMES = 3.0  # as slow as the others' links
OWN_MEMORY = 5e9  # bytes/s between two hosts that are one machine: hardly a network
FEW_BYTES = 64 << 10  # on the wire, where each link has passed more


def of_links(
    devices: Sequence[Device], links: Matrix, job: Job, wire: Sequence[int | None]
) -> list[Finding]:
    """Tell which links are slow beside the others, and which don't pass the network.

    `wire` are the bytes that each rank's network counted while the links were measured.
    """
    if len(devices) < 2:
        return []
    return _past_the_network(devices, links, wire) + _slow(devices, links, job)


def token_seconds(there: Link, back: Link, job: Job) -> float:
    """Return the least time of one token's sums with the hub over this link, there and back."""
    way = there.latency + back.latency + job.sum_bytes * (1 / there.rate + 1 / back.rate)
    return job.sums * way


def _slow(devices: Sequence[Device], links: Matrix, job: Job) -> list[Finding]:
    pairs = {
        (j, i): token_seconds(links[i][j], links[j][i], job)
        for i in range(len(devices)) for j in range(i)
        if links[i][j] and links[j][i] and devices[i].host != devices[j].host
    }  # fmt: skip
    if not pairs:
        return []
    # A rank is as fast as the best of its links: those to a slow rank are slow for all others.
    best = {d.rank: min((s for p, s in pairs.items() if d.rank in p), default=0) for d in devices}
    usual = statistics.median_low(best.values())
    slow = {rank for rank, seconds in best.items() if seconds > TIMES * usual}
    found = [_slow_device(devices[rank], links, job, best[rank], usual) for rank in sorted(slow)]
    left = {pair: seconds for pair, seconds in pairs.items() if not slow & set(pair)}
    return found + (_slow_pair(devices, links, job, left) if left else [])


def _slow_device(d: Device, links: Matrix, job: Job, seconds: float, usual: float) -> Finding:
    others = [row for rank, row in enumerate(links) if rank != d.rank]
    sends = max((link for link in links[d.rank] if link), key=lambda link: link.rate)
    receives = max((row[d.rank] for row in others if row[d.rank]), key=lambda link: link.rate)
    rates = [link.rate for row in others for to, link in enumerate(row) if link and to != d.rank]
    latencies = [link.latency for row in others for link in row if link]
    beside = f"{mbit(statistics.median(rates))} and {ms(statistics.median(latencies))}"
    return Finding(SLOW, (d.rank,), (
        f"{who(d)} is behind a slow link: it sends {mbit(sends.rate)}, receives "
        f"{mbit(receives.rate)}, {ms(sends.latency)} one way, where the others' median is {beside}"
        f"; one token's {_sums(job)} take at least {ms(seconds)} over it, {ms(usual)} without it; "
        "use a cable in place of Wi-Fi, or leave that device out of the hostfile"
    ))  # fmt: skip


def _slow_pair(
    devices: Sequence[Device], links: Matrix, job: Job, pairs: dict[tuple[int, int], float]
) -> list[Finding]:
    """Tell of one link that is far slower than all others, or that all are slow."""
    one, other = max(pairs, key=pairs.get)
    seconds, usual = pairs[one, other], statistics.median_low(pairs.values())
    link = min((links[one][other], links[other][one]), key=lambda link: link.rate)
    told = f"{mbit(link.rate)}, {ms(link.latency)} one way"
    if seconds > TIMES * usual:
        way = "" if one == 0 else ", or take --allreduce star, which uses rank 0's links alone"
        return [Finding(SLOW, (one, other), (
            f"the link between {who(devices[one])} and {who(devices[other])} is slower than the "
            f"others: {told}, so that one token's {_sums(job)} take at least {ms(seconds)} over "
            f"it and {ms(usual)} over the others (median); look at its cable{way}"
        ))]  # fmt: skip
    if link.rate < SLOW_RATE or link.latency > SLOW_LATENCY:
        what = "the link is" if len(pairs) == 1 else "all links are"
        return [Finding(SLOW, tuple(sorted({rank for pair in pairs for rank in pair})), (
            f"{what} slow, as over Wi-Fi or between houses: {told}; one token's {_sums(job)} take "
            f"at least {ms(seconds)} over it; use a cable, or fewer devices"
        ))]  # fmt: skip
    return []


def _past_the_network(
    devices: Sequence[Device], links: Matrix, wire: Sequence[int | None]
) -> list[Finding]:
    past = sorted({
        rank for i in range(len(devices)) for j in range(i)
        if devices[i].machine == devices[j].machine and devices[i].host != devices[j].host
        and links[i][j] and (
            max(links[i][j].rate, links[j][i].rate) > OWN_MEMORY
            or any(wire[r] is not None and wire[r] < FEW_BYTES for r in (i, j))
        )
        for rank in (i, j)
    })  # fmt: skip
    if not past:
        return []
    fastest = max(
        link.rate for i in past for j in past if (link := links[i][j]) is not None
    )  # fmt: skip
    mpich = devices[0].mpi.startswith("MPICH")
    way = "the environment UCX_TLS=tcp,self" if mpich else "`mpirun --mca btl tcp,self`"
    return [Finding(SLOW, tuple(past), (
        f"{who(*(devices[r] for r in past))} are devices of one machine that talk through its "
        f"memory ({mbit(fastest)}), not over the network: times say nothing of one; start with "
        f"{way}"
    ))]  # fmt: skip


def _sums(job: Job) -> str:
    return f"{job.sums} sums of {size(job.sum_bytes)} ({job.name})"


def mbit(bytes_per_second: float) -> str:
    """Return a link's rate as networks are sold: `9.6 Mbit/s`, `2.5 Gbit/s`."""
    megabits = bytes_per_second * 8 / 1e6
    return f"{megabits / 1e3:.3g} Gbit/s" if megabits >= 999.5 else f"{megabits:.3g} Mbit/s"


def ms(seconds: float) -> str:
    """Return seconds as `12 us`, `1.05 ms` or `2.1 s`."""
    if seconds < 1e-4:
        return f"{seconds * 1e6:.2g} us"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
