"""`tpimpi doctor` as a user runs it: what it examines, its files, its exit codes, bad input."""

import json
import sys

import pytest

import tpimpi
from program import DEMO, output, refused, run

# The program as it would be on a last rank with another version.
OTHER = """\
import os, sys, tpimpi
if "2" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
    tpimpi.__version__ = "9.9"
from tpimpi.cli import main
main()
"""


def test_three_ranks(mpirun, tmp_path):
    flags = ["--model", DEMO, "--save-dir", tmp_path / "not" / "yet"]
    files = ["--plot", tmp_path / "plot", "--report", tmp_path / "report"]
    process = run(mpirun, 3, "doctor", *flags, *files, "--threads", 1, "--output", "json")
    found = json.loads(output(process))
    assert found == json.loads((tmp_path / "report").read_text())
    assert (tmp_path / "plot").read_bytes()[:4] == b"\x89PNG"
    assert found["usable"] and not [f for f in found["findings"] if f["level"] == "fails"]
    assert found["job"]["name"] == "demo" and found["job"]["sums"] == 8
    assert len(found["job"]["shard_bytes"]) == 3 and min(found["job"]["shard_bytes"]) > 500_000
    for number, rank in enumerate(found["ranks"]):
        assert rank["rank"] == number and rank["threads"] == 1
        assert rank["version"] == tpimpi.__version__ and len(rank["sources"]) == 16
        assert rank["machine_cores"] >= len(rank["cores"]) > 0 < rank["memory_bytes"]
        assert rank["folder"]["path"] == str(tmp_path / "not" / "yet")
        speed = rank["speed"]
        assert speed["sees"] == [0, 1, 2] and speed["trouble"] is None
        assert min(speed[what] for what in ("flops", "memory", "disk", "disk_write")) > 1e6
    for one, row in enumerate(found["links"]):
        for other, link in enumerate(row):
            assert (link is None) == (one == other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot", "report"]


def test_one_rank_alone(mpirun):
    lines = output(run(mpirun, 0, "doctor", "--shape", "tiny")).splitlines()
    assert lines[0].startswith(f"tpimpi {tpimpi.__version__} (sources ") and "numba" in lines[0]
    assert lines[2].split()[:4] == ["rank", "host", "cores", "threads"]
    assert lines[-1].startswith(("nothing is wrong", "a run would do its work"))


def test_ranks_of_another_version_are_told_of(mpirun):
    program = [sys.executable, "-c", OTHER]
    process = run(mpirun, 3, "doctor", "--model", DEMO, program=program)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    here = tpimpi.__version__
    assert "fails: rank 0 on " in process.stdout
    assert f"run different code: tpimpi {here} and 9.9; install the same" in process.stdout
    assert process.stdout.splitlines()[-1] == "a run would fail"
    refused(run(mpirun, 3, "info", "--model", DEMO, program=program), 2, "run different code")


def test_a_folder_that_cannot_be_written(mpirun, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    process = run(mpirun, 2, "doctor", "--save-dir", folder, "--output", "json")
    assert process.returncode == 1
    assert "tpimpi: 1 of these findings would make a run fail" in process.stderr
    found = json.loads(process.stdout)
    fails = [one for one in found["findings"] if one["level"] == "fails"]
    assert [one["ranks"] for one in fails] == [[0, 1]] and not found["usable"]
    assert "it is a file" in fails[0]["text"] and "--save-dir" in fails[0]["text"]
    assert [rank["speed"]["disk"] for rank in found["ranks"]] == [None, None]


def test_a_model_that_no_disk_and_no_memory_holds(mpirun):
    process = run(mpirun, 0, "doctor", "--shape", "llama2-70b", "--dtype", "f32")
    assert process.returncode == 1 or "free" not in process.stdout  # unless it has 280 GB
    if process.returncode:
        assert "its shard of llama2-70b takes 25" in process.stdout


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--shape", "nothing"], "there is no shape 'nothing'"),
        (["--layers", 2], "are of a --shape"),
        (["--model", DEMO, "--dtype", "f32"], "are of a --shape"),
        (["--report", "nowhere/report"], "--report nowhere/report"),
        (["--plot", "nowhere/plot"], "--plot nowhere/plot"),
    ],
)
def test_mistakes(mpirun, flags, word):
    refused(run(mpirun, 2, "doctor", *flags), 2, word)
