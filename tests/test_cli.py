"""The entry point: Ctrl-C in the first second, closed and full streams, what numba reads."""

import os
import subprocess
import sys

import pytest

from program import DEMO, TPIMPI, refused

INTERRUPTED_AT_AN_IMPORT = """\
import os, signal, sys
module = sys.argv.pop(1)
def hook(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
from tpimpi.cli import main
sys.addaudithook(hook)
main()
"""


@pytest.mark.parametrize(
    ("ranks", "module"),
    [(0, "tpimpi.launch"), (0, "argparse"), (0, "tpimpi.commands"), (0, "mpi4py"),
     (0, "tpimpi.comm.group"), (0, "numba"), (2, "tpimpi.commands"), (2, "numba")],
)  # fmt: skip
def test_interrupt_in_the_first_second(mpirun, ranks, module):
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-c", INTERRUPTED_AT_AN_IMPORT, module]
    process = subprocess.run(
        [*command, "generate", "--model", DEMO, "-p", "A"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 130, process.stderr
    assert "Traceback" not in process.stderr


def shell(command, **environment):
    """Run a line of the shell, in which tpimpi is $TPIMPI and the demo model $DEMO."""
    given = {"TPIMPI": " ".join(TPIMPI), "DEMO": str(DEMO)} | environment
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120,
        env=inherited | given, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    process = shell(f"$TPIMPI generate --model $DEMO -p A -n 2 {closed}")
    assert process.returncode == 0 and "Traceback" not in process.stderr
    assert process.stdout.startswith("A") == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize("command", ["--help", "info --model $DEMO"])
def test_output_to_a_full_disk(command):
    refused(shell(f"$TPIMPI {command} > /dev/full"), 1, "standard output", "No space left")


def test_whoever_reads_has_left():
    process = shell("$TPIMPI info --model $DEMO | exec true; exit ${PIPESTATUS[0]}")
    assert process.returncode in (0, 1) and not process.stderr  # 0: all fitted into the pipe


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("NUMBA_THREADING_LAYER", "unheard-of", "unheard-of"),
        ("NUMBA_OPT", "fast", "NUMBA_OPT"),
        ("NUMBA_NUM_THREADS", "1", "--threads 2"),
    ],
)
def test_what_numba_is_told(name, value, word):
    command = "$TPIMPI generate --model $DEMO -p A --threads 2"
    refused(shell(command, **{name: value}), 2, word)


def test_numba_s_own_limit_is_kept():
    process = shell("$TPIMPI generate --model $DEMO -p A -n 2", NUMBA_NUM_THREADS="1")
    assert process.returncode == 0, process.stderr
