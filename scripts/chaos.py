#!/usr/bin/env python3
"""Kill, stop, cut off and interrupt ranks at random moments, and see that all ends as it should.

    python scripts/chaos.py --tries 20 --ranks 3 --mpirun "mpirun ..." \\
        --link-down "ip -n switch link set p2 down" --link-up "ip -n switch link set p2 up" \\
        generate --model tpimpi/demo --prompt If --length 200 --ignore-eos

All ranks must be processes of this machine, as in network namespaces. The command goes to a folder
of shards of its own, and is repeated; with --fresh that folder is emptied first, so that moments
fall into the distribution, too. After each try everything must have gone in time, one sentence
must have told why, nothing may be left in /dev/shm, and the next start must do the whole work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
LOST = (
    "was killed",
    "nothing was heard of",
    "not all ranks have come",
    "did not end within",
    "waits for a host",
)
ENDED = ("interrupted while", "ended while")
MEETING = 80.0  # seconds in which a start ends to which not all ranks come
HELD = 8.0  # seconds beyond the limit after which what is left is killed


@dataclass(frozen=True)
class Event:
    """Something bad, the seconds in which all must have gone, and what must be said."""

    name: str
    seconds: float
    said: tuple[str, ...]


def _events(timeout: float) -> dict[str, Event]:
    return {
        event.name: event
        for event in (
            Event("kill", 10.0, LOST),
            Event("stop", timeout + 8.0, LOST),
            Event("link", timeout + 8.0, LOST),
            Event("int", 2.5, ENDED),
            Event("term", 2.5, ENDED),
            Event("int-stopped", 2.5, ENDED),
            Event("int-link", 2.5, ENDED),
        )
    }


class Run:
    """One start of the command, and all processes that it made."""

    def __init__(self, command: list[str], marker: str, folder: Path):
        self._marker = marker
        self._out, self._err = folder / "out", folder / "err"
        for file in (self._out, self._err):
            file.write_text("")
        with self._out.open("a") as out, self._err.open("a") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank, not its guard."""
        return {rank: pid for pid, rank in self._found() if rank is not None}

    def left(self) -> list[int]:
        """Return all processes that belong to the run."""
        found = {pid for pid, _ in self._found()}
        return sorted(found | ({self.process.pid} if self.process.poll() is None else set()))

    def launcher(self) -> int:
        """Return the process that a user's Ctrl-C would reach."""
        names = ("mpiexec.hydra", "mpiexec", "mpirun", "prterun")
        for pid, _ in self._found():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() in names:
                    return pid
        return self.process.pid

    def _found(self) -> list[tuple[int, int | None]]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                given = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._marker not in words and f"TPIMPI_CHAOS={self._marker}" not in given:
                    continue
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                    continue
                known = dict(line.split("=", 1) for line in given if "=" in line)
                rank = next((int(known[n]) for n in RANKS if n in known), None)
                is_rank = rank is not None and self._marker in words and _guarded(entry)
                found.append((int(entry.name), rank if is_rank else None))
        return found

    def sentences(self) -> list[str]:
        """Return what the program said, without progress."""
        lines = self._err.read_text(errors="replace").splitlines()
        said = [line.partition("tpimpi: ")[2] for line in lines if "tpimpi: " in line]
        return [s for s in said if any(word in s for word in (*LOST, *ENDED, "has heard nothing"))]

    def has_text(self) -> bool:
        """Whether anything was written to standard output."""
        return self._out.stat().st_size > 0

    def text(self) -> str:
        """Return all of standard error."""
        return self._err.read_text(errors="replace")


def _guarded(process: Path) -> bool:
    """Whether a process's parent is a guard, as that of every rank soon after its start."""
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"guard of rank")


def _shell(command: str | None) -> None:
    if command:
        subprocess.run(command, shell=True, check=True)


def _strike(run: Run, event: Event, choice: random.Random, options: argparse.Namespace) -> str:
    """Do it; return to whom it was done."""
    ranks = run.ranks()
    victim = choice.choice(sorted(ranks))
    if event.name in ("stop", "int-stopped"):
        os.kill(ranks[victim], signal.SIGSTOP)
    if event.name in ("link", "int-link"):
        _shell(options.link_down)
        victim = -1
    if event.name == "kill":
        os.kill(ranks[victim], signal.SIGKILL)
    if event.name.startswith("int-"):
        time.sleep(1.0)
    if event.name.startswith(("int", "term")):
        os.kill(run.launcher(), signal.SIGTERM if event.name == "term" else signal.SIGINT)
    return "" if event.name in ("int", "term") else f"rank {victim}" if victim >= 0 else "link"


def _try(options, event: Event, moment: float, choice, folder: Path) -> list[str]:
    """Run once and strike at that moment; return what is wrong."""
    marker, shards = f"chaos-{os.getpid()}", folder / f"chaos-{os.getpid()}"
    run = Run(_command(options, shards), marker, folder)
    start = time.monotonic()
    while time.monotonic() < start + moment and run.process.poll() is None:
        time.sleep(0.02)
    while len(run.ranks()) < options.ranks and run.process.poll() is None:
        time.sleep(0.05)
    if run.process.poll() is not None:
        return [f"it ended before {moment:.1f} s: give a longer command"]
    shared = {name for pid in run.ranks().values() for name in _shared_memory(pid)}
    whom = _strike(run, event, choice, options)
    struck = time.monotonic()
    wrong: list[str] = []
    limit = event.seconds
    while run.process.poll() is None and time.monotonic() < struck + limit + HELD:
        if "for all ranks to" in run.text() and event.said is LOST:
            limit = MEETING  # where there are no heartbeats yet
        time.sleep(0.02)
    seconds = time.monotonic() - struck
    # What can't be reached ends a little later by itself.
    while run.left() and time.monotonic() < struck + limit + HELD:
        time.sleep(0.1)
    gone = time.monotonic() - struck
    if event.name in ("link", "int-link"):
        starting = any("while starting" in told for told in run.sentences())
        most = MEETING if starting else options.timeout + 2 * HELD
        while run.left() and time.monotonic() < struck + most:
            time.sleep(0.1)
    left = run.left()
    if event.name in ("link", "int-link"):
        _shell(options.link_up)
        time.sleep(3.0)  # until addresses are known again
    if seconds > limit:
        wrong.append(f"the launcher ended after {seconds:.1f} s")
    if left:
        wrong.append("left: " + "; ".join(_describe(pid) for pid in left))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    said = run.sentences()
    # Open MPI sends SIGTERM for everything: then rank 0 tells figures only, and also of a death.
    reasons = [s for s in said if "ended while" not in s]
    done = "| peak memory" in run.text()  # then what is struck is its end only
    begun = run.has_text() and event.name != "term" and not options.quiet and not done
    most, least = 1, int(event.said is LOST or begun)
    if not least <= len(reasons) <= most or any(
        not any(word in reason for word in event.said) for reason in reasons
    ):
        wrong.append(f"said {len(said)} sentences: {said}")
    # Killed within MPI_Init a rank leaves what MPI has there, as its name is not known yet.
    if event.said is ENDED and any(os.path.exists(name) for name in shared):
        wrong.append(f"left {sorted(shared)}")
    told = said[0] if said else "-"
    print(f"{event.name:12} {whom:7} at {moment:4.1f} s: {seconds:4.1f} s, all {gone:4.1f} s, "
          f"code {run.process.returncode}, {told}", flush=True)  # fmt: skip
    if wrong or options.verbose:
        print(
            "    WRONG " + " | ".join(wrong) + "\n" + re.sub("(?m)^", "    | ", run.text()[-2500:])
        )
    return wrong


def _shared_memory(pid: int) -> set[str]:
    """Return the names of a process's shared memory, but those that are gone already."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[5] for line in lines if "/dev/shm/" in line} - {
            line.split()[5] for line in lines if line.endswith("(deleted)")
        }
    return set()


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return f"{pid} {words[:80]}"
    return str(pid)


def _command(options, shards: Path) -> list[str]:
    return [
        "env", f"TPIMPI_CHAOS={shards.name}", *shlex.split(options.mpirun), "-np",
        str(options.ranks), *shlex.split(options.program), *options.command, "--save-dir",
        str(shards), "--timeout", str(options.timeout),
    ]  # fmt: skip


def main() -> int:
    """Try; return how many tries went wrong, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mpirun", required=True, help="the launcher's command line without -np")
    parser.add_argument("--program", default=f"{sys.executable} -m tpimpi")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--tries", type=int, default=20, help="of each event")
    parser.add_argument("--timeout", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--earliest", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--latest", type=float, metavar="SECONDS", help="(default: the whole run)")
    parser.add_argument("--events", default="kill,stop,int,term,int-stopped")
    parser.add_argument("--link-down", help="a shell command that cuts a rank's link")
    parser.add_argument("--link-up")
    parser.add_argument("--quiet", action="store_true", help="the launcher is Open MPI's")
    parser.add_argument("--verbose", action="store_true", help="show all that was said")
    parser.add_argument("--fresh", action="store_true", help="begin each try without shards")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of tpimpi")
    options = parser.parse_args()
    events, choice, failures = _events(options.timeout), random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        shards = folder / f"chaos-{os.getpid()}"
        start = time.monotonic()
        whole = Run(_command(options, shards), shards.name, folder)
        if whole.process.wait() != 0:
            print(whole.text())
            return 1
        seconds = time.monotonic() - start
        print(f"undisturbed: {seconds:.1f} s", flush=True)
        for event_name in options.events.split(","):
            for _ in range(options.tries):
                if options.fresh:
                    shutil.rmtree(shards, ignore_errors=True)
                moment = choice.uniform(options.earliest, options.latest or 0.9 * seconds)
                failures += bool(_try(options, events[event_name], moment, choice, folder))
        last = Run(_command(options, shards), shards.name, folder)
        if last.process.wait() != 0:
            print("the next start failed:\n" + last.text())
            failures += 1
    print(f"{failures} went wrong")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
