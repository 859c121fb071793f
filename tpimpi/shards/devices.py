"""What devices are called in sentences, and what is told of the shards that each has."""

from __future__ import annotations

from collections.abc import Sequence

from tpimpi.comm.group import Group
from tpimpi.units import size

MANY = 8  # devices that are still named one by one


def device_names(group: Group) -> list[str]:
    """Return a name for each rank: its host's, where no other rank has that (collective).

    Where there is one rank only it need not be told from others.
    """
    hosts = group.comm.allgather(group.host)
    if group.size == 1:
        return ["the shard"]
    if len(set(hosts)) == group.size:
        return hosts
    return [f"rank {rank}" for rank in range(group.size)]


def listed(names: Sequence[str]) -> str:
    """Return `dev1`, `dev1 and dev2`, or `dev1, dev2 and dev3`; of many how many they are."""
    if len(names) > MANY:
        return f"{len(names)} ranks"
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def found_sentence(names: list[str], there: list[tuple[int, int] | None]) -> str | None:
    """Return what is there before anything is cut; None if that is nothing.

    `there` has for each rank the bytes of its shard that are there, and those of all of it; None
    for a rank whose shard is complete.
    """
    begun = {n: t for n, t in zip(names, there, strict=True) if t is not None and t[0]}
    whole = [n for n, t in zip(names, there, strict=True) if t is None]
    parts = []
    if whole:
        shards = "its shard" if len(whole) == 1 else "their shards"
        parts.append(f"{listed(whole)} {'has' if len(whole) == 1 else 'have'} {shards} already")
    have = [f"{name} has {size(bytes_)} of {size(of)}" for name, (bytes_, of) in begun.items()]
    if len(begun) > MANY:
        sums = (size(sum(t[i] for t in begun.values())) for i in (0, 1))
        have = [f"{len(begun)} ranks have {' of '.join(sums)}"]
    if have:
        parts.append(f"{', '.join(have)} from an earlier run")
    return f"{'; '.join(parts)}; going on" if parts else None
