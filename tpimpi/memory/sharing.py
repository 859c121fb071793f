"""A node's free memory shared by its ranks: from budgets as they were asked for to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpimpi.memory.process import FreeMemory
from tpimpi.memory.request import AUTO, MAX

# `auto` leaves a fifth of what is free to other programs, `max` what a node needs to live, and
# where little is free never more than `auto`.
AUTO_SHARE, MAX_SPARED = 0.8, 64 << 20


@dataclass(frozen=True)
class Claim:
    """What one rank brings to the sharing of its node's memory. Bytes."""

    budget: str | int
    host: str
    resident: int  # what the process takes already
    wanted: int  # what it would take with everything in memory
    free: FreeMemory


def shared_budgets(claims: Sequence[Claim]) -> list[int]:
    """Turn the claims of all ranks into bytes.

    Ranks with `auto` or `max` share what is free on their node, and in their cgroup, equally; what
    one of them doesn't want goes to the others. Ranks with a size have theirs set aside first.
    """
    result = [c.wanted if isinstance(c.budget, str) else c.budget for c in claims]
    nodes: dict[tuple, list[int]] = {}
    cgroups: dict[tuple, list[int]] = {}
    for i, claim in enumerate(claims):
        nodes.setdefault((claim.host,), []).append(i)
        if claim.free.cgroup is not None:
            cgroups.setdefault((claim.host, claim.free.cgroup_path), []).append(i)
    pools = [(min(claims[i].free.node for i in members), members) for members in nodes.values()]
    pools += [
        (min(claims[i].free.cgroup for i in members), members) for members in cgroups.values()
    ]
    for free, members in pools:
        asking = [i for i in members if isinstance(claims[i].budget, str)]
        fixed = (claims[i] for i in members if i not in asking)
        free -= sum(max(claim.budget - claim.resident, 0) for claim in fixed)
        needs = [max(claims[i].wanted - claims[i].resident, 0) for i in asking]
        for word, usable in (
            (AUTO, AUTO_SHARE * free),
            (MAX, max(free - MAX_SPARED, AUTO_SHARE * free)),
        ):
            for i, share in zip(asking, fair_shares(int(usable), needs), strict=True):
                if claims[i].budget == word:
                    result[i] = min(result[i], claims[i].resident + share)
    return result


def fair_shares(free: int, needs: Sequence[int]) -> list[int]:
    """Share `free` equally, but give nobody more than it needs and the rest to the others."""
    shares, left = [0] * len(needs), max(free, 0)
    order = sorted(range(len(needs)), key=needs.__getitem__)
    for place, i in enumerate(order):
        shares[i] = min(needs[i], left // (len(needs) - place))
        left -= shares[i]
    return shares
