"""What is wrong or slow about the ranks' devices, in sentences with the way out. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tpimpi.bench.device import Device
from tpimpi.bench.folder import IN_MEMORY, NETWORK, Folder
from tpimpi.bench.speed import Speed
from tpimpi.units import rate, size

LEVELS = FAILS, SLOW, NOTE = "fails", "slow", "note"  # in the order in which they are told
SLOWER = 0.6  # of what the others do: below it they wait noticeably for a rank
SLOWER_DISK = 0.4


@dataclass(frozen=True)
class Finding:
    """A sentence about some ranks, and how bad it is."""

    level: str
    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Job:
    """What the ranks are to run: the sums of one token, and what each rank must hold."""

    name: str
    sums: int  # of a token
    sum_bytes: int  # of one of them, for one token
    shard_bytes: tuple[int, ...] = ()  # that each rank has yet to write; empty where not known
    trouble: str | None = None  # why the memory doesn't do


def of_program(devices: Sequence[Device], code: str | None, libraries: list[str]) -> list[Finding]:
    """Tell what differs between the ranks' programs; `code` and `libraries` as from `versions`."""
    found = []
    if code:
        others = tuple(d.rank for d in devices if _program(d) != _program(devices[0]))
        found.append(Finding(FAILS, others, code))
    other = next((d for d in devices if d.mpi != devices[0].mpi), None)
    if other:
        found.append(Finding(
            FAILS, (other.rank,),
            f"rank 0 on {devices[0].host} runs with {devices[0].mpi} and {who(other)} with "
            f"{other.mpi}; install the same MPI on all machines",
        ))  # fmt: skip
    ranks = tuple(d.rank for d in devices if d.libraries != devices[0].libraries)
    return found + [Finding(NOTE, ranks, sentence) for sentence in libraries]


def _program(device: Device) -> tuple[str, str]:
    return device.version, device.sources


def of_hosts(devices: Sequence[Device]) -> list[Finding]:
    """Tell where hosts' names mislead, and which ranks share what should be theirs alone."""
    found = []
    for host, ranks in _by(devices, lambda d: d.host):
        if len({d.machine for d in ranks}) > 1:
            found.append(Finding(
                SLOW, _ranks(ranks),
                f"{who(*ranks)} are on different machines that share the name {host}, so that "
                "threads and memory are counted for one, and Open MPI may not start; give each a "
                "name of its own (hostnamectl set-hostname NAME)",
            ))  # fmt: skip
        elif len(ranks) > 1 and len(ranks) < len(devices):
            found.append(Finding(
                NOTE, _ranks(ranks),
                f"{who(*ranks)} share the device {host}: its cores, its memory, and no network "
                f"between them; for a rank a device give it one slot in the hostfile ({host}:1 "
                f"for MPICH, {host} slots=1 for Open MPI)",
            ))  # fmt: skip
    for _, ranks in _by(devices, lambda d: d.machine):
        if len({d.host for d in ranks}) > 1:
            found.append(Finding(
                NOTE, _ranks(ranks),
                f"{who(*ranks)} are virtual devices of one machine: their rates are shares of its "
                f"{ranks[0].machine_cores} cores, its memory and its disk",
            ))  # fmt: skip
    return found


def of_cores(devices: Sequence[Device]) -> list[Finding]:
    """Tell where ranks are bound to too few cores, or start more threads than they get."""
    found = []
    for _, ranks in _by(devices, lambda d: d.machine):
        used = set().union(*(d.cores for d in ranks))
        all_of_it = ranks[0].machine_cores
        bound = [d for d in ranks if len(d.cores) == 1]
        if bound and len(used) < all_of_it:
            found.append(Finding(SLOW, _ranks(bound), (
                f"{who(*bound)} may use {len(set().union(*(d.cores for d in bound)))} of "
                f"the machine's {all_of_it} cores; {_unbind(bound[0])}"
            )))  # fmt: skip
        threads = sum(d.threads for d in ranks)
        if threads > max(len(used), len(ranks)) and len(used) > 0:
            each = max(1, len(used) // len(ranks))
            found.append(Finding(SLOW, _ranks(ranks), (
                f"{who(*ranks)} start {threads} threads on {_number(len(used), 'core')}, so that "
                f"they wait for one another; start with --threads {each}"
            )))  # fmt: skip
        elif len(ranks) > len(used) > 0:
            found.append(Finding(NOTE, _ranks(ranks), (
                f"{who(*ranks)} share {_number(len(used), 'core')}: as many ranks as cores compute "
                "as fast, with fewer sums"
            )))  # fmt: skip
    for d in devices:
        if d.quota is not None and d.quota < min(d.threads, len(d.cores)):
            fewer = max(1, int(d.quota))
            way = f"start with --threads {fewer}, or " if fewer < d.threads else ""
            found.append(Finding(SLOW, (d.rank,), (
                f"{who(d)} starts {_number(d.threads, 'thread')}, but its cgroup gives it "
                f"{d.quota:.2g} of a core's time; {way}raise that limit (docker: --cpus, SLURM: "
                "--cpus-per-task)"
            )))  # fmt: skip
    return found


def _unbind(device: Device) -> str:
    if device.slurm:
        return "ask for more of them with --cpus-per-task, and with `srun --cpu-bind=none`"
    if device.mpi.startswith("Open MPI"):
        return "Open MPI binds its ranks; start with `mpirun --bind-to none`"
    return "start without what binds it (taskset, `mpirun -bind-to`, a container's cpuset)"


def of_folders(
    devices: Sequence[Device], speeds: Sequence[Speed] | None, job: Job
) -> list[Finding]:
    """Tell which ranks can't keep their shard, and whose disk is shared or slow."""
    said: dict[tuple[str, str], list[Device]] = {}
    for d in devices:
        if job.shard_bytes and not job.shard_bytes[d.rank]:
            continue  # its shard is there
        why = d.folder.trouble or (speeds[d.rank].trouble if speeds else None)
        trouble = _trouble(d.folder, why)
        if trouble:
            said.setdefault(trouble, []).append(d)
    found = [
        Finding(level, _ranks(ranks), f"{who(*ranks)} {text}")
        for (level, text), ranks in said.items()
    ]
    if job.shard_bytes:
        found += _small_disks(devices, job)
    if speeds:
        found += _shared_folders(devices, speeds)
        found += _slow_disks(devices, speeds)
    return found


def _trouble(folder: Folder, why: str | None) -> tuple[str, str] | None:
    """Return how bad a folder is for a shard, and in what way."""
    if why:
        return FAILS, (
            f"can't write a shard to {folder.path or 'the cache'} ({why}); name another folder "
            "with --save-dir, or set XDG_CACHE_HOME"
        )
    if folder.file_system in IN_MEMORY:
        return SLOW, (
            f"would keep a shard in {folder.path}, which lies in memory ({folder.file_system}): "
            "it takes that from the model, and a restart loses it; name a folder on a disk with "
            "--save-dir"
        )
    if folder.file_system in NETWORK:
        return SLOW, (
            f"would keep a shard in {folder.path} on a network file system "
            f"({folder.file_system}), through which each token's weights would pass; name a "
            "folder on a disk of its own with --save-dir"
        )
    return None


def _small_disks(devices: Sequence[Device], job: Job) -> Iterator[Finding]:
    for _, ranks in _by(devices, lambda d: f"{d.machine} {d.folder.disk}"):
        need, folder = sum(job.shard_bytes[d.rank] for d in ranks), ranks[0].folder
        if need > folder.free_bytes and not any(d.folder.trouble for d in ranks):
            yield Finding(FAILS, _ranks(ranks), (
                f"the disk of {folder.path} of {who(*ranks)} has {size(folder.free_bytes)} free, "
                f"but {'their shards' if len(ranks) > 1 else 'its shard'} of {job.name} "
                f"{'take' if len(ranks) > 1 else 'takes'} {size(need)}; free some space, name "
                "another folder with --save-dir, or use more devices"
            ))  # fmt: skip


def _shared_folders(devices: Sequence[Device], speeds: Sequence[Speed]) -> Iterator[Finding]:
    for ranks in sorted({s.sees for s in speeds if len(s.sees) > 1}):
        sharing = [devices[r] for r in ranks]
        if len({d.host for d in sharing}) > 1:
            yield Finding(NOTE, ranks, (
                f"{who(*sharing)} keep their shards in one folder, {sharing[0].folder.path}: one "
                "disk serves them all; name a folder on each device's own disk with --save-dir"
            ))  # fmt: skip


def _slow_disks(devices: Sequence[Device], speeds: Sequence[Speed]) -> Iterator[Finding]:
    rates = [s.disk for s in speeds]
    for d, mine, others in _beside_others(devices, rates):
        if mine < SLOWER_DISK * others:
            yield Finding(SLOW, (d.rank,), (
                f"the disk of {who(d)} reads {rate(mine)}, the others' {rate(others)} (median): "
                "where weights stream all wait for it; give it a smaller share (--ratio auto), "
                "or name a faster disk with --save-dir"
            ))  # fmt: skip


def of_memory(job: Job) -> list[Finding]:
    """Tell which rank lacks the memory for the job."""
    return [Finding(FAILS, (), job.trouble)] if job.trouble else []


def of_speed(devices: Sequence[Device], speeds: Sequence[Speed]) -> list[Finding]:
    """Tell which ranks are much slower than the others."""
    found = []
    flops = _beside_others(devices, [s.flops for s in speeds])
    memory = _beside_others(devices, [s.memory for s in speeds])
    for (d, mine, others), (_, reads, read_by_others) in zip(flops, memory, strict=True):
        if mine < SLOWER * others or reads < SLOWER * read_by_others:
            found.append(Finding(SLOW, (d.rank,), (
                f"{who(d)} is slower than the others: {mine / 1e9:.3g} GFLOP/s and memory "
                f"{rate(reads)} beside {others / 1e9:.3g} and {rate(read_by_others)} (median), and "
                "in every sum they wait for it; --ratio auto gives it a smaller share (if it was "
                "only busy just now, start doctor again)"
            )))  # fmt: skip
    return found


def _beside_others(
    devices: Sequence[Device], values: Sequence[float | None]
) -> Iterator[tuple[Device, float, float]]:
    """Yield each device with its value and the median of the others', where there are any."""
    for d, mine in zip(devices, values, strict=True):
        others = [v for r, v in enumerate(values) if r != d.rank and v is not None]
        if mine is not None and others:
            yield d, mine, statistics.median(others)


def who(*devices: Device) -> str:
    """Return `rank 2 on c`, `ranks 0 and 1 on a`, or `ranks 0 to 3`."""
    ranks, hosts = [d.rank for d in devices], {d.host for d in devices}
    where = f" on {devices[0].host}" if len(hosts) == 1 else ""
    if len(ranks) == 1:
        return f"rank {ranks[0]}{where}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}{where}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}{where}"


def _by(devices: Sequence[Device], key: Callable[[Device], str]) -> list[tuple[str, list[Device]]]:
    ordered = sorted(devices, key=lambda d: (key(d), d.rank))
    groups = [(name, list(some)) for name, some in groupby(ordered, key)]
    return sorted(groups, key=lambda one: one[1][0].rank)


def _ranks(devices: Sequence[Device]) -> tuple[int, ...]:
    return tuple(d.rank for d in devices)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
