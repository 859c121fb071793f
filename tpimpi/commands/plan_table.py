"""What `tpimpi plan` prints for people: a line a rank, then what a token takes and could take."""

from __future__ import annotations

from tpimpi.model.ratio import spelled
from tpimpi.units import MIB, rate, size

_COLUMNS = (
    ("budget", "budget"), ("process", "process"), ("tokenizer", "tokenizer"),
    ("KV pages", "kv"), ("buffers", "activations"),
    ("margin", "margin"), ("ring", "ring"), ("resident", "resident"), ("total", "total"),
    ("streamed", "streamed"),
)  # fmt: skip
WORTH = 0.05  # by how much a token must be shorter to speak of it
MOST_NUMBERS = 12  # of devices that are told


def text(found: dict) -> str:
    """Return the plan for people, in MiB and ms."""
    return "\n".join(_table(found) + _token(found) + _numbers(found) + _budgets(found))


def _table(found: dict) -> list[str]:
    rows = found["ranks"]
    where = "" if found["launched"] else ", as if each ran on a device like this one"
    equal = len(set(found["shares"])) == 1
    shares = "" if equal else f", shares {spelled(found['shares'])}"
    titles = "".join(f"{title:>10}" for title, _ in _COLUMNS)
    lines = [
        f"{found['model']} over {len(rows)} rank{'s' * (len(rows) > 1)}{shares}{where}",
        f"context of {found['context']} tokens, prompts in chunks of {found['prompt_chunk']}; MiB, "
        "streamed: a token; ms a token of arithmetic and of reading meanwhile",
        f"rank{'share':>7}{titles}   compute      disk",
    ]
    for row in rows:
        cells = ("-" if row[key] is None else f"{row[key] / MIB:.0f}" for _, key in _COLUMNS)
        compute, disk = row["compute_seconds"] * 1e3, row["disk_seconds"] * 1e3
        lines.append(
            f"{row['rank']:4d}{row['share']:>7}" + "".join(f"{c:>10}" for c in cells)
            + f"{compute:10.1f}{disk:10.1f}"
        )  # fmt: skip
    return lines


def _token(found: dict) -> list[str]:
    """Return what a token takes, and what binds it."""
    rows, network = found["ranks"], found["network_seconds"]
    slowest = max(rows, key=lambda row: row["disk_seconds"])
    if slowest["disk_seconds"] >= found["seconds_per_token"]:
        binds = f"the disk of rank {slowest['rank']}"
    elif network is not None and network > found["halves_seconds"]:
        binds, slowest = "the network", rows[0]
    else:
        slowest = max(rows, key=lambda row: row["compute_seconds"])
        binds = f"the memory of rank {slowest['rank']}"
    if len(rows) == 1:
        counted = "one rank has no network"
    elif network is None:
        counted = "the network not counted, see --link"
    else:
        counted = f"allreduces and other messages {network * 1e3:.1f} ms"
    lines = [
        f"a token takes {found['seconds_per_token'] * 1e3:.0f} ms or more ({counted}), bound by "
        f"{binds}; rank {slowest['rank']} reads {rate(slowest['disk_bytes_per_second'])} from disk "
        f"and {rate(slowest['memory_bytes_per_second'])} from memory"
    ]
    if found["gain_of_best_shares"] > WORTH:
        lines.append(
            f"--ratio {spelled(found['best_shares'])} would make the arithmetic and the reading of "
            f"a token {found['gain_of_best_shares']:.0%} shorter"
        )
    return lines


def _numbers(found: dict) -> list[str]:
    """Return what fewer devices would take, and whether they would be faster."""
    numbers = found["numbers"]
    if numbers is None:
        return []
    every = -(-len(numbers) // MOST_NUMBERS)
    best = next(i for i, one in enumerate(numbers) if one["devices"] == found["best_number"])
    told = sorted({*range(len(numbers) - 1, -1, -every), 0, best})
    parts = [
        f"{numbers[i]['devices']}: " + (
            f"{numbers[i]['seconds_per_token'] * 1e3:.0f} ms" if numbers[i]["fits"]
            else "too little memory"
        )
        for i in told
    ]  # fmt: skip
    lines = [f"a token on the first devices alone, in the order given: {', '.join(parts)}"]
    by_number = {one["devices"]: one["seconds_per_token"] for one in numbers}
    best, all_of_them = found["best_number"], len(found["ranks"])
    if best != all_of_them:
        alone = f"the first {best} devices are" if best > 1 else "the first device alone is"
        lines.append(
            f"{alone} faster than all {all_of_them}: {by_number[best] * 1e3:.0f} ms a token "
            f"instead of {by_number[all_of_them] * 1e3:.0f}"
        )
    return lines


def _budgets(found: dict) -> list[str]:
    smallest, whole, everything = (
        size(max(row[key] for row in found["ranks"]))
        for key in ("smallest_budget", "smallest_budget_of_context", "budget_of_everything")
    )
    return [
        f"budgets a rank: at least {smallest} (for {found['smallest_context']} tokens), {whole} "
        f"for all {found['asked_context']}, {everything} with everything in memory",
    ]
