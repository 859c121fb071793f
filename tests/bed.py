"""A test bed for tests: `with bed(devices=3, delay="1ms") as b:`, skipped where there can't be one.

With TPIMPI_TEST_REQUIRE_BED set, as in CI, what would be skipped fails.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTBED = Path(__file__).resolve().parent.parent / "scripts" / "testbed"
RUN = Path("/run/tpimpi-testbed")
REQUIRED = "TPIMPI_TEST_REQUIRE_BED"
_COUNT = itertools.count(1)  # of the beds of this process: several may be up at once


def testbed(*words, seconds=60, **options):
    """Run scripts/testbed; return the finished process."""
    environment = {**os.environ, "TPIMPI_VENV": sys.prefix}
    return subprocess.run(
        [TESTBED, *map(str, words)], env=environment, timeout=seconds, check=False,
        **{"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **options},
    )  # fmt: skip


testbed.__test__ = False  # pytest would take it for one


def unavailable(reason):
    """Skip, or fail where a bed is required."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    pytest.skip(reason)


class Bed:
    """A bed that is up. Devices are named by their numbers, from 1."""

    def __init__(self, name):
        self.name = name
        self.folder = Path("/var/lib/tpimpi-testbed") / name

    def ask(self, *words, **options):
        """Run a command of scripts/testbed on this bed."""
        return testbed("--name", self.name, *words, **options)

    def run(self, command, ranks=None, mpi=None, **options):
        """Run a command under mpirun, one rank a device if not told otherwise."""
        return self.ask(*self._run_words(command, ranks, mpi), **options)

    def start(self, command, ranks=None, mpi=None, **options):
        """Start a command under mpirun, return its Popen: mpirun itself, in place of testbed."""
        words = ["--name", self.name, *self._run_words(command, ranks, mpi)]
        return subprocess.Popen(
            [TESTBED, *map(str, words)], text=True, env={**os.environ, "TPIMPI_VENV": sys.prefix},
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
               **options},
        )  # fmt: skip

    @staticmethod
    def _run_words(command, ranks, mpi):
        count = [] if ranks is None else ["-np", ranks]
        kind = [] if mpi is None else ["--mpi", mpi]
        return ["run", *count, *kind, "--", *command]

    def exec(self, device, command, **options):
        """Run a command on one device."""
        return self.ask("exec", device, "--", *command, **options)

    def python(self, device, text, **options):
        """Run Python on one device; return what it prints."""
        done = self.exec(device, [sys.executable, "-c", text], **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def link(self, device, state=None, delay=None, rate=None):
        """Cut or mend a device's link (state "down", "up"), or change it."""
        changed = [f"--{n}={v}" for n, v in (("delay", delay), ("rate", rate)) if v is not None]
        done = self.ask("link", device, *([state] if state else []), *changed)
        assert done.returncode == 0, done.stderr

    def slow(self, device, share):
        """Let a device compute at a share of its speed, such as "50%"."""
        done = self.ask("slow", device, share)
        assert done.returncode == 0, done.stderr

    def home(self, device):
        """Return a device's home folder, as the host sees it."""
        return self.folder / f"dev{device}" / "home"

    def cache(self, device):
        """Return a device's cache folder of tpimpi, as the host sees it."""
        return self.home(device) / ".cache" / "tpimpi"

    def processes(self, device):
        """Return the numbers of the processes on a device, but for the one that holds it."""
        done = self.ask("processes", device)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    def traffic(self):
        """Return (bytes sent, bytes received) of each device."""
        done = self.ask("status")
        assert done.returncode == 0, done.stderr
        found = re.findall(r"sent (\d+) B, received (\d+) B", done.stdout)
        return [(int(sent), int(received)) for sent, received in found]


def _sweep():
    """Take down what tests that were killed have left."""
    for left in RUN.glob("test-*") if RUN.exists() else ():
        if not Path("/proc", left.name.split("-")[1]).exists():
            testbed("--name", left.name, "down")


@contextlib.contextmanager
def bed(*words, **options):
    """Put a bed up, with the flags of `testbed up` as keywords; take it down at the end."""
    lacks = testbed("lacks")
    if lacks.returncode:
        unavailable(lacks.stderr.removeprefix("testbed: ").strip())
    _sweep()
    made = Bed(f"test-{os.getpid()}-{next(_COUNT)}")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    up = made.ask("up", *flags, *words)
    assert up.returncode == 0, up.stderr
    try:
        yield made
    finally:
        down = made.ask("down")
        assert down.returncode == 0, down.stderr
