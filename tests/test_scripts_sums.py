"""scripts/compare_sums.py: times of every strategy, a table and a picture of several runs."""

import json
import subprocess
import sys
from pathlib import Path

from program import output, run
from tpimpi.comm import ALLREDUCES

SCRIPT = [sys.executable, str(Path(__file__).parent.parent / "scripts" / "compare_sums.py")]


def found(delay, seconds):
    return json.dumps({"delay_ms": delay, "ranks": 8, "seconds": seconds})


def test_every_strategy_is_timed(mpirun):
    flags = ["--delay", 2.5, "--bytes", 4, 2000, "--rounds", 1]
    told = json.loads(output(run(mpirun, 2, *flags, program=SCRIPT)))
    assert told["delay_ms"] == 2.5 and told["ranks"] == 2
    assert set(told["seconds"]) == set(ALLREDUCES) - {"auto"}
    for times in told["seconds"].values():
        assert set(times) == {"4", "2000"} and min(times.values()) > 0


def test_a_table_and_a_picture(tmp_path):
    lines = tmp_path / "sums.jsonl"
    slow = found(5, {"mpi": {"4": 0.03, "32768": 0.06}, "star": {"4": 0.0101, "32768": 0.02}})
    fast = found(0.1, {"mpi": {"4": 0.001, "32768": 0.01}, "star": {"4": 0.002, "32768": 0.02}})
    lines.write_text(f"{slow}\n{fast}\n")
    picture = tmp_path / "sums.png"
    command = [*SCRIPT, "--found", str(lines), "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "| delay, bytes | mpi | star |",
        "| --- | ---: | ---: |",
        "| 0.1 ms, 4 B | **1** | 2 |",
        "| 0.1 ms, 32 KiB | **10** | 20 |",
        "| 5 ms, 4 B | 30 | **10.1** |",
        "| 5 ms, 32 KiB | 60 | **20** |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
