"""A test passes only when it passes on every rank; rank 0 speaks for all.

Under a launcher each phase's outcome is gathered from all ranks. Where a rank failed alone, the
others may wait for it in a collective for ever: then its traceback is printed and the job aborted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

pytest.register_assert_rewrite("page_browser")
LAUNCHED = any(
    n in os.environ for n in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
)
PATIENCE = 30  # seconds that a failed rank waits for the others to come to the same point

if LAUNCHED:
    from tpimpi import launch

    launch.prepare(1)
    COMM = launch.world()
else:
    from tpimpi import numba_settings

    # Beside the sources numba would keep code of a file whose imports have changed since.
    os.environ["NUMBA_CACHE_DIR"] = str(numba_settings.cache_folder())
    COMM = None


def pytest_configure(config):
    if COMM is not None and COMM.rank != 0:
        config.pluginmanager.unregister(name="terminalreporter")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if COMM is None or COMM.size == 1:
        return
    report = outcome.get_result()
    failed = np.array([report.failed], np.int32)
    everyone = np.zeros(COMM.size, np.int32)
    request = COMM.Iallgather(failed, everyone)
    start = time.monotonic()
    while not request.Test():
        if report.failed and time.monotonic() - start > PATIENCE:
            where = f"rank {COMM.rank} failed alone in {item.nodeid}, {report.when}"
            print(f"{where}:\n{report.longreprtext}", file=sys.__stderr__, flush=True)
            COMM.Abort(1)
        time.sleep(0.0005)
    if everyone.any():
        texts = COMM.allgather(report.longreprtext if report.failed else None)
        report.outcome = "failed"
        report.longrepr = "\n".join(
            f"--- rank {rank}\n{text}" for rank, text in enumerate(texts) if text
        )


def pytest_sessionfinish(session, exitstatus):
    if COMM is not None and COMM.rank != 0:
        sys.stdout.flush()


@pytest.fixture(scope="session")
def comm():
    """COMM_WORLD, or MPI's COMM_WORLD of one rank without a launcher."""
    if COMM is not None:
        return COMM
    from tpimpi import launch

    launch.prepare(1)
    return launch.world()


@pytest.fixture
def shared_tmp(comm):
    """A temporary directory that all ranks see."""
    path = comm.bcast(tempfile.mkdtemp(prefix="tpimpi-test-") if comm.rank == 0 else None)
    yield Path(path)
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """The directory of reference checkpoints, made by tests/references.py."""
    given = os.environ.get("TPIMPI_TEST_REFERENCES")
    if given:
        return Path(given)
    made = tmp_path_factory.mktemp("references")
    script = Path(__file__).with_name("references.py")
    subprocess.run([sys.executable, str(script), str(made)], check=True)
    return made


@pytest.fixture(scope="session")
def mpirun():
    """The launcher's command line, to which `-np N` is added."""
    beside = Path(sys.executable).with_name("mpirun")
    return os.environ.get("TPIMPI_TEST_MPIRUN", str(beside)).split()


@pytest.fixture
def group(comm, shared_tmp, monkeypatch):
    """All ranks with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_tmp / "cache"))
    from tpimpi.comm.group import Group

    group = Group(comm)
    yield group
    group.close()
