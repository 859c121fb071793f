"""kill -9 at random moments of a conversion: the next run goes on, and the shards are right."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from program import TPIMPI, run

SCRIPTS = Path(__file__).parent.parent / "scripts"


def kill_all(process):
    """Kill the launcher and every rank at once: all that is of the session it began."""
    for entry in Path("/proc").iterdir():
        try:
            session = os.getsid(int(entry.name))
        except (ValueError, ProcessLookupError):
            continue
        if session == process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def test_kill_at_many_moments_then_resume(mpirun, tmp_path):
    model = tmp_path / "model"
    make = [sys.executable, str(SCRIPTS / "make_checkpoint.py"), "--shape", "tiny"]
    subprocess.run([*make, "--layers", "60", "--output", str(model)], check=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    finished = run(mpirun, 2, "convert", "--model", model, "--save-dir", whole)
    assert finished.returncode == 0, finished.stderr
    seconds, choice, kills = time.monotonic() - start, random.Random(11), 0
    for _ in range(12):
        command = [*mpirun, "-np", "2", *TPIMPI, "convert", "--model", str(model)]
        process = subprocess.Popen(
            [*command, "--save-dir", str(killed)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(choice.uniform(0.4, 1.0) * seconds)
        if process.poll() is None:
            kills += 1
        kill_all(process)
        process.wait(timeout=20)
        if (killed / "shard-1-of-2.h5").exists() and (killed / "shard-0-of-2.h5").exists():
            for path in killed.glob("*.h5"):
                path.rename(path.with_name(path.name + ".partial"))
    assert kills >= 3
    finished = run(mpirun, 2, "convert", "--model", model, "--save-dir", killed)
    assert finished.returncode == 0, finished.stderr
    assert run(mpirun, 2, "verify", "--model", model, "--save-dir", killed).returncode == 0
    for name in ("shard-0-of-2.h5", "shard-1-of-2.h5"):
        with h5py.File(whole / name) as a, h5py.File(killed / name) as b:
            assert (a["checksums"][...] == b["checksums"][...]).all()
            assert (a["sources"][...] == b["sources"][...]).all()
            for name in a["tape"][...].astype(str):
                assert np.array_equal(a[name][...], b[name][...])
