"""Run the program as a user does, and look at what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import tpimpi
from tpimpi.paths import cache_directory

DEMO = Path(tpimpi.__file__).parent / "demo"
TPIMPI = [sys.executable, "-m", "tpimpi"]

# What the demo model says greedily; to be changed only with its weights.
GREEDY = (
    "\nIf I have been a pair of a brave-place,\nAnd, I am a brave a brave-blawful wife,\nAnd I am a"
)

# What a slow machine is told of long work, see tpimpi.progress.
PROGRESS = re.compile(
    r"tpimpi: ([\w ,]+: \d[\w. ]* of \d.*|.*, for [\d smin]+|waiting (\d+ s )?for .*|"
    r"rank .* is back after .*)$"
)


def run(mpirun, ranks, *arguments, stdin=None, folder=None, seconds=120, program=TPIMPI):
    """Run tpimpi; `ranks` 0 is without a launcher. Returns the finished process.

    `program` is the command in its place, such as one that changes something and then runs it.
    """
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    environment = dict(os.environ)
    if folder:  # of its own for shards; kernels need not be compiled again
        environment.setdefault("NUMBA_CACHE_DIR", str(cache_directory() / "numba"))
        environment["XDG_CACHE_HOME"] = str(folder)
    return subprocess.run(
        [*launcher, *program, *map(str, arguments)],
        input=stdin if stdin is not None else "", capture_output=True, text=True,
        timeout=seconds, env=environment, check=False,
    )  # fmt: skip


def output(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(process, code, *words):
    assert process.returncode == code, (process.returncode, process.stderr)
    assert "Traceback" not in process.stderr and not process.stdout
    said = [line for line in process.stderr.splitlines() if line.startswith("tpimpi: ")]
    sentences = [line for line in said if not PROGRESS.match(line)]
    assert len(sentences) == 1, process.stderr
    for word in words:
        assert word in sentences[0]
