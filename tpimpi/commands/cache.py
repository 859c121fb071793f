"""`tpimpi cache`: list what lies in the cache on all machines, and remove a part of it."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass

from tpimpi.commands.flags import add_output
from tpimpi.errors import UserError
from tpimpi.units import size

SUMMARY = "list the shards in the cache, or remove some"


@dataclass(frozen=True)
class Options:
    """A set to remove, or None to list all."""

    remove: str | None
    json: bool


@dataclass(frozen=True)
class _Machine:
    """What one machine's cache holds, as the first of its ranks sees it."""

    rank: int
    host: str
    cache: str
    kernels: int  # bytes
    sets: list  # of shards.cache.ShardSet


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--remove", metavar="NAME",
        help="remove the shards that the list calls NAME; without its last part, those of all "
        "numbers of ranks",
    )  # fmt: skip
    add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    return Options(args.remove, args.output == "json")


def run(options: Options, group, threads: int) -> None:
    """List or remove what is in the caches of all machines (collective)."""
    machines = _machines(group)
    rows = _rows(machines)
    if options.remove is not None:
        rows = _remove(options.remove, group, machines, rows)
    if group.rank != 0:
        return
    if options.json:
        content = {"removed": rows} if options.remove is not None else _content(machines, rows)
        print(json.dumps(content))
    elif options.remove is not None:
        freed = size(sum(row["bytes"] for row in rows))
        print(f"removed {', '.join(row['name'] for row in rows)}: {freed}")
    else:
        print(_table(machines, rows))


def _machines(group) -> list[_Machine]:
    """Return all machines' caches (collective)."""
    from tpimpi.paths import cache_directory
    from tpimpi.shards.cache import disk_bytes, shard_sets

    mine, cache = None, cache_directory()
    with group.together():
        if group.node.rank == 0:
            kernels = disk_bytes(cache / "numba")
            mine = _Machine(group.rank, group.host, str(cache), kernels, shard_sets(cache))
    return [machine for machine in group.comm.allgather(mine) if machine]


def _rows(machines: list[_Machine]) -> list[dict]:
    """Return a row for each set, whatever machines its shards lie on, the latest used first."""
    rows, seen = {}, set()
    for machine in machines:
        for one in machine.sets:
            row = rows.setdefault(one.name, {
                "name": one.name, "model": one.model, "ranks": one.ranks, "shards": 0, "bytes": 0,
                "unfinished_bytes": 0, "usable": one.usable, "last_use": 0.0, "hosts": [],
                "folder": str(one.folder),
            })  # fmt: skip
            row["hosts"].append(machine.host)
            if one.mark in seen:
                continue  # a folder that machines share
            seen.add(one.mark)
            row["shards"] += one.shards
            row["bytes"] += one.nbytes
            row["unfinished_bytes"] += one.unfinished
            row["last_use"] = max(row["last_use"], one.last_use)
    return sorted(rows.values(), key=lambda row: -row["last_use"])


def _content(machines: list[_Machine], rows: list[dict]) -> dict:
    caches = [{"host": m.host, "folder": m.cache, "kernel_bytes": m.kernels} for m in machines]
    return {"sets": rows, "caches": caches}


def _table(machines: list[_Machine], rows: list[dict]) -> str:
    """Return the list for people."""
    lines = []
    if rows:
        width = max(len(row["name"]) for row in rows)
        lines.append(f"{'name':{width}}  {'shards':>9}  {'size':>9}  {'last use':16}  on")
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["last_use"]))
        shards = f"{row['shards']} of {row['ranks']}"
        text = f"{row['name']:{width}}  {shards:>9}  {size(row['bytes']):>9}  {used}  "
        text += ", ".join(row["hosts"])
        if row["unfinished_bytes"]:
            text += f"; {size(row['unfinished_bytes'])} unfinished"
        lines.append(text if row["usable"] else text + "; of another format, of no use")
    for machine in machines:
        nothing = "" if machine.sets else "no shards, "
        kernels = f"{size(machine.kernels)} of compiled kernels"
        lines.append(f"{machine.cache} on {machine.host}: {nothing}{kernels}")
    return "\n".join(lines)


def _remove(name: str, group, machines: list[_Machine], rows: list[dict]) -> list[dict]:
    """Remove from all machines what `name` means, or nothing; return its rows (collective)."""
    from tpimpi.shards.cache import lock, remove

    def meant(full: str) -> bool:
        return name in (full, full.rpartition("/")[0])

    chosen = [row for row in rows if meant(row["name"])]
    with group.together():
        if not chosen:
            known = ", ".join(row["name"] for row in rows) or "none"
            raise UserError(f"--remove {name}: the cache has no such shards; there are {known}")
    # A folder that machines share is removed by the first of them.
    seen = {one.mark for machine in machines if machine.rank < group.rank for one in machine.sets}
    own = [
        one for machine in machines if machine.rank == group.rank
        for one in machine.sets if meant(one.name) and one.mark not in seen
    ]  # fmt: skip
    with ExitStack() as held:
        with group.together():
            lock(own, held)
        with group.together():
            for one in own:
                remove(one)
    return chosen
