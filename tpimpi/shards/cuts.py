"""How a model was cut before: the partitions of which shards lie here, finished or not."""

from __future__ import annotations

from pathlib import Path

from tpimpi.comm.group import Group
from tpimpi.errors import MachineError, UserError
from tpimpi.model.partition import Partition, shares_of_key
from tpimpi.shards.layout import shard_name
from tpimpi.shards.shard import read_layout
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource


def known_cuts(group: Group, source: Source | SyntheticSource) -> list[Partition]:
    """Return the cuts of a model over these ranks of which half of them have shards (collective).

    In a folder that the user named there is one at most. Those of most ranks come first, and the
    latest used of these.
    """
    mine: dict[str, float] = {}
    with group.together():
        mine = (_named if source.save_dir else _cached)(source, group)
    found: dict[str, list[float]] = {}
    for one in group.comm.allgather(mine):
        for cut, used in one.items():
            found.setdefault(cut, []).append(used)
    most = sorted(found, key=lambda cut: (-len(found[cut]), -max(found[cut]), cut))
    there = [cut for cut in most if 2 * len(found[cut]) >= group.size]
    if source.save_dir:
        return [Partition.from_json(source.config, cut) for cut in there[:1]]
    return [Partition.of(source.config, shares_of_key(key, group.size)) for key in there]


def _cached(source: Source | SyntheticSource, group: Group) -> dict[str, float]:
    """Return the names of the folders with this rank's shard, and when it was used."""
    above = source.folder.parent
    keys = [folder.name for folder in above.iterdir()] if above.is_dir() else []
    found = {}
    for key in keys:
        used = _last_use(above / key / shard_name(group.rank, group.size))
        if used is not None and shares_of_key(key, group.size):
            found[key] = used
    return found


def _named(source: Source | SyntheticSource, group: Group) -> dict[str, float]:
    """Return the partition of this rank's shard in the user's folder, and when it was used."""
    path = source.save_dir / shard_name(group.rank, group.size)
    for one in (path, _partial(path)):
        try:
            identity = read_layout(one, finished=False).identity
            Partition.from_json(source.config, identity.partition)
        except (OSError, UserError, MachineError, ValueError, LookupError, TypeError):
            continue  # what is wrong with it is told where it is opened
        if (identity.fingerprint, identity.size) == (source.fingerprint, group.size):
            return {identity.partition: one.stat().st_mtime}
    return {}


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _last_use(path: Path) -> float | None:
    """Return when a shard, or what there is of one, was written last; None where there is none."""
    for one in (path, _partial(path)):
        if one.exists():
            return one.stat().st_mtime
    return None
