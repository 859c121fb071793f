"""Examine all ranks and the links between them, and put into words what is wrong or slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tpimpi.bench import findings, link_findings
from tpimpi.bench.device import Device, device_of
from tpimpi.bench.findings import FAILS, Finding, Job
from tpimpi.bench.job import Asked
from tpimpi.bench.number import of_number
from tpimpi.bench.speed import Speed, bytes_on_the_wire, measure_speed, meet
from tpimpi.comm.group import Group
from tpimpi.comm.links import Link, measure_links
from tpimpi.comm.versions import differences
from tpimpi.engine.warmup import warm_up
from tpimpi.errors import MachineError, UserError
from tpimpi.progress import Progress, Waiting

ENCODING = "bf16"  # whose product is timed


@dataclass(frozen=True)
class Examination:
    """What was found; `speeds` and `links` are None where ranks of different code can't measure."""

    devices: Sequence[Device]
    speeds: Sequence[Speed] | None
    links: Sequence[Sequence[Link | None]] | None  # [from][to]
    job: Job
    findings: Sequence[Finding]  # the worst first

    @property
    def fails(self) -> int:
        """How many findings would make a job fail."""
        return sum(finding.level == FAILS for finding in self.findings)

    def content(self) -> dict:
        """Return everything in JSON's types."""
        speeds = self.speeds or [None] * len(self.devices)
        links = self.links or []
        return {
            "usable": not self.fails,
            "findings": [asdict(finding) for finding in self.findings],
            "ranks": [
                asdict(device) | {"speed": asdict(speed) if speed else None}
                for device, speed in zip(self.devices, speeds, strict=True)
            ],
            "links": [[asdict(link) if link else None for link in row] for row in links],
            "job": asdict(self.job),
        }


def examine(
    group: Group, threads: int, save_dir: str | None, ask: Callable[[], Asked | None]
) -> Examination:
    """Examine all ranks and links (collective); the links are on rank 0 alone.

    Ranks of different code only say what they are; what else is collective could leave them waiting
    for one another. `ask` returns what is to be run (collective), None where that is not known.
    """
    code, libraries = differences(group)
    devices = _devices(group, threads, save_dir)
    found = [
        *findings.of_program(devices, code, libraries), *findings.of_hosts(devices),
        *findings.of_cores(devices),
    ]  # fmt: skip
    example = Asked.example(group.size)
    job, speeds, links = example.sums(), None, None
    if not code:
        asked = ask()
        broken = _load_kernels(group, threads)
        if broken:
            found.append(broken)
        else:
            job = asked.job(group, threads) if asked else job
            links, wire = _links(group)
            folder = devices[group.rank].folder
            speeds = _speeds(group, threads, None if folder.trouble else Path(folder.path))
            if links:
                found += link_findings.of_links(devices, links, job, wire)
                what = asked or example
                found += of_number(what.config, what.encoding_of, devices, speeds, links)
            found += findings.of_speed(devices, speeds)
    found += findings.of_folders(devices, speeds, job) + findings.of_memory(job)
    found.sort(key=lambda finding: findings.LEVELS.index(finding.level))
    return Examination(devices, speeds, links, job, found)


def _devices(group: Group, threads: int, save_dir: str | None) -> list[Device]:
    mine = device_of(group.rank, threads, save_dir).to_json()
    return [Device.from_json(text) for text in group.comm.allgather(mine)]


def _load_kernels(group: Group, threads: int) -> Finding | None:
    """Load the kernels; return what keeps a rank from it (collective)."""
    try:
        warm_up(group, [ENCODING], threads)
    except (UserError, MachineError) as error:  # the same on all ranks
        return Finding(FAILS, tuple(range(group.size)), str(error))
    return None


def _links(group: Group) -> tuple[list[list[Link | None]] | None, list[int | None]]:
    """Return all links (on rank 0), and what passed each rank's network meanwhile (collective)."""
    before, pairs = bytes_on_the_wire(), group.size * (group.size - 1) // 2
    with Progress("doctor: links", pairs, "pairs", group.rank == 0, even=False) as progress:
        links = measure_links(group, on_pair=lambda: progress.update(1))
    meet(group)
    after = bytes_on_the_wire()
    mine = None if before is None or after is None else after - before
    return links, group.comm.allgather(mine)


def _speeds(group: Group, threads: int, folder: Path | None) -> list[Speed]:
    with Waiting("doctor: timing products, memory and disks", group.rank) as waiting:
        waiting.begin()
        return group.comm.allgather(measure_speed(group, threads, folder, ENCODING))
