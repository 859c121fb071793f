"""kill -9 at random moments of a conversion: the next run goes on, and the shards are right."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from program import DEMO, TPIMPI, run

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


def start(mpirun, ranks, *arguments):
    """Begin to run the program; return the launcher's process."""
    return subprocess.Popen(
        [*mpirun, "-np", str(ranks), *TPIMPI, *map(str, arguments)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def rank_processes(process):
    """Return the processes of the ranks of a launcher, but not their guards, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            below = process.pid in ancestors(int(entry.name))
            variables = (entry / "environ").read_bytes().split(b"\0") if below else []
            guard = Path(f"/proc/{ancestors(int(entry.name))[0]}/cmdline") if below else None
            if not below or not guard.read_bytes().startswith(b"guard of rank"):
                continue
        except (OSError, ValueError, IndexError):
            continue
        for name in (b"PMI_RANK=", b"OMPI_COMM_WORLD_RANK="):
            for variable in variables:
                if variable.startswith(name):
                    found[int(variable.removeprefix(name))] = int(entry.name)
    return found


def ancestors(pid):
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def computing(mpirun, ranks, *arguments):
    """Start to write a long text; return the launcher when it has begun, and the ranks."""
    process = start(
        mpirun, ranks, "generate", "--model", DEMO, "--prompt", "If", "--no-echo", "--ignore-eos",
        "--length", "100000", "--memory-window", "2", *arguments,
    )  # fmt: skip
    assert process.stdout.read(1)
    return process, rank_processes(process)


def ended(process, ranks):
    """Wait for the end; return what was said, once nothing is left."""
    _, errors = process.communicate(timeout=60)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return [line for line in errors.splitlines() if line.startswith("tpimpi: ")]


def test_a_killed_rank_is_named(mpirun):
    process, ranks = computing(mpirun, 3)
    os.kill(ranks[1], signal.SIGKILL)
    (said,) = (line for line in ended(process, ranks) if "killed" in line)
    assert process.returncode != 0
    for word in ("rank 1 on", "computing", "the same command starts"):
        assert word in said


def test_a_stopped_rank_is_waited_for_and_then_named(mpirun):
    process, ranks = computing(mpirun, 3, "--timeout", "7")
    os.kill(ranks[2], signal.SIGSTOP)
    said = ended(process, ranks)
    assert process.returncode != 0
    assert any("waiting 5 s for rank 2 on" in line for line in said)
    (last,) = (line for line in said if "nothing was heard of rank 2 on" in line)
    assert "--timeout" in last and "the same command" in last


def test_interrupt_beside_a_stopped_rank(mpirun):
    process, ranks = computing(mpirun, 3)
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(0.5)  # rank 0 is inside MPI now, where Python's handlers don't run
    process.send_signal(signal.SIGINT)
    (said,) = (line for line in ended(process, ranks) if " while computing" in line)
    assert process.returncode != 0 and " tokens after a prompt of 2 | first token" in said


def test_interrupt_of_one_process(mpirun, tmp_path):
    process = subprocess.Popen(
        [*TPIMPI, "generate", "--model", DEMO, "--prompt", "If", "--ignore-eos", "--length", "9999",
         "--no-echo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.read(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "tpimpi: ended while computing: " in errors and "tokens/s" in errors


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
    told = [line for line in finished.stderr.splitlines() if "from an earlier run" in line]
    assert len(told) == 1 and re.search(r"rank [01] has [\d.]+ .iB of [\d.]+ .iB", told[0])
    assert run(mpirun, 2, "verify", "--model", model, "--save-dir", killed).returncode == 0
    for name in ("shard-0-of-2.h5", "shard-1-of-2.h5"):
        with h5py.File(whole / name) as a, h5py.File(killed / name) as b:
            assert (a["checksums"][...] == b["checksums"][...]).all()
            assert (a["sources"][...] == b["sources"][...]).all()
            for name in a["tape"][...].astype(str):
                assert np.array_equal(a[name][...], b[name][...])
