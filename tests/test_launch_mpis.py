"""The launcher of one MPI and the program of another, both real: told in a sentence, no hang.

Run under Open MPI's environment; TPIMPI_TEST_OTHER_PYTHON names that of MPICH.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from program import DEMO, refused, run

OTHER = os.environ.get("TPIMPI_TEST_OTHER_PYTHON", "")
pytestmark = pytest.mark.skipif(not OTHER, reason="needs an environment of each MPI")

GENERATE = ["generate", "--model", DEMO, "-p", "A"]


def test_mpich_starts_open_mpi():
    process = run([str(Path(OTHER).with_name("mpirun"))], 2, *GENERATE)
    refused(process, 1, "started 2 processes", "Open MPI", "mpirun of the same environment")


def test_open_mpi_starts_mpich(mpirun):
    process = run(mpirun, 2, *GENERATE, program=[OTHER, "-m", "tpimpi"])
    refused(process, 1, "this is Open MPI's mpirun", "MPICH", str(Path(OTHER).parent))


def test_both_environments_share_compiled_kernels():
    """Numba's folder and the stamp in it depend on the libraries and sources, not on the MPI."""
    program = (
        "from tpimpi import launch\n"
        "launch.prepare(1)\n"
        "from tpimpi.engine.compilation import _stamp\n"
        "print(_stamp(1, 'bf16'))\n"
    )
    stamps = {
        subprocess.check_output([python, "-c", program], text=True)
        for python in (sys.executable, OTHER)
    }
    assert len(stamps) == 1, stamps
