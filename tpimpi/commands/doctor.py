"""`tpimpi doctor`: what each rank and each link is, and in sentences what is wrong or slow."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from tpimpi.commands import flags
from tpimpi.commands.files import check_folder, check_plot
from tpimpi.errors import MachineError, UserError
from tpimpi.units import rate, size

SUMMARY = "examine the devices and the links between them, and say what is wrong or slow"
EXAMINES = True  # ranks of different code are what it is to tell of


@dataclass(frozen=True)
class Options:
    """What is to be run (None: not known), where its shards will lie, and the files to write."""

    model: str | None
    shape: str | None
    layers: int | None
    dtype: str | None
    save_dir: str | None
    plot: str | None
    report: str | None
    json: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model_or_shape(parser, required=False)
    flags.add_save_dir(parser)
    parser.add_argument(
        "--threads", type=flags.threads, metavar="N",
        help="threads of each rank (default: cores of the node / ranks on it)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw links and devices as PNG")
    parser.add_argument("--report", metavar="FILE", help="write everything as JSON")
    flags.add_output(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    if not args.shape and (args.layers or args.dtype):
        raise UserError("--layers and --dtype are of a --shape; a --model has its own")
    return Options(
        args.model, args.shape, args.layers, args.dtype, args.save_dir, args.plot, args.report,
        args.output == "json",
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Examine all ranks and links, and tell on rank 0 (collective).

    Raises MachineError on all ranks where something would make a job fail.
    """
    from tpimpi.bench.examination import examine
    from tpimpi.commands.report import write_json

    with group.together():
        if options.report:
            check_folder(options.report, "--report")
        if options.plot:
            check_plot(options.plot)
    found = examine(group, threads, options.save_dir, lambda: _asked(options, group))
    if group.rank == 0:
        if options.report:
            write_json(options.report, found.content())
        if options.plot and found.speeds:
            from tpimpi.bench import doctor_plot

            doctor_plot.draw(options.plot, found)
        print(json.dumps(found.content()) if options.json else _text(found), flush=True)
    fails = group.comm.bcast(found.fails)
    if fails:
        error = MachineError(f"{fails} of these findings would make a run fail")
        error.agreed = True  # all ranks raise it
        raise error


def _asked(options: Options, group):
    """Return the model or the shape that is to be run, if one is named (collective)."""
    from tpimpi.bench.job import Asked

    if options.model:
        return Asked.of_model(group, options.model, options.save_dir)
    if options.shape:
        return Asked.of_shape(group, options.shape, options.layers, options.dtype or "bf16")
    return None


def _text(found) -> str:
    """Return everything for people: a line a rank, the links, then sentences."""
    devices, speeds = found.devices, found.speeds
    first = devices[0]
    libraries = ", ".join(f"{name} {version}" for name, version in first.libraries.items())
    lines = [f"tpimpi {first.version} (sources {first.sources[:8]}), {first.mpi}, {libraries}", ""]
    lines += _table(devices, speeds)
    if found.links and len(devices) > 1:
        lines += ["", *_matrix(found.links)]
    lines += ["", *(f"{f.level}: {f.text}" for f in found.findings)]
    return "\n".join([*lines, _verdict(found)])


def _verdict(found) -> str:
    levels = [finding.level for finding in found.findings]
    if "fails" in levels:
        return "a run would fail"
    if "slow" in levels:
        return "a run would do its work, but slower than these devices could"
    ranks, hosts = len(found.devices), len({d.host for d in found.devices})
    if ranks == 1:
        return "nothing is wrong: its folder can be written, and its cores are its own"
    return (
        f"nothing is wrong: {ranks} ranks on {hosts} host{'s' * (hosts > 1)} run the same program, "
        "their folders can be written, and none is much slower than the others"
    )


def _table(devices, speeds) -> list[str]:
    """Return a line for each rank."""
    heads = ("rank", "host", "cores", "threads", "memory free", "disk free", "file system",
             "GFLOP/s", "memory", "disk")  # fmt: skip
    rows = [heads]
    for d in devices:
        cores = f"{len(d.cores)} of {d.machine_cores}"
        if d.quota is not None:
            cores += f", {d.quota:.2g} by cgroup"
        row = [str(d.rank), d.host, cores, str(d.threads), size(d.memory_bytes),
               size(d.folder.free_bytes), d.folder.file_system or "?"]  # fmt: skip
        if speeds:
            s = speeds[d.rank]
            row += [f"{s.flops / 1e9:.1f}", rate(s.memory), rate(s.disk) if s.disk else "-"]
        rows.append(row)
    return _aligned(rows, left=(1, 6))


def _matrix(links) -> list[str]:
    """Return latencies and rates, a line for each sending rank."""
    ranks = range(len(links))

    def table(what: str, number: Callable) -> list[str]:
        rows = [[what, *(f"to {to}" for to in ranks)]]
        for sender, row in enumerate(links):
            cells = (_short(number(link)) if link else "-" for link in row)
            rows.append([f"from {sender}", *cells])
        return _aligned(rows)

    return [
        *table("ms one way", lambda link: link.latency * 1e3), "",
        *table("Mbit/s", lambda link: link.rate * 8 / 1e6),
    ]  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(rows, left: tuple[int, ...] = ()) -> list[str]:
    """Return rows of cells with each column as wide as its widest."""
    widths = [max(len(cell) for cell in column) for column in zip_longest(*rows, fillvalue="")]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
