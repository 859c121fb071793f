"""`tpimpi bench` as a user runs it: figures that agree with one another, marks, bad input."""

import json

import pytest

from program import DEMO, output, refused, run
from tpimpi.bench import summary
from tpimpi.kernels.tiling import Tiling, candidates

FLAGS = ["--shape", "tiny", "--seconds", 3, "--repeats", 2, "--prompts", "3,20", "--context", 40]


@pytest.fixture(scope="module")
def bench(mpirun, tmp_path_factory):
    """One run on three ranks with a plot: (result, text, plot)."""
    folder = tmp_path_factory.mktemp("bench")
    flags = [*FLAGS, "--prompt-chunk", 16, "--plot", folder / "plot", "--report", folder / "report"]
    text = output(run(mpirun, 3, "bench", *flags, "--save-dir", folder))
    return json.loads((folder / "report").read_text()), text, folder / "plot"


def test_figures_agree(bench):
    result = bench[0]
    assert (result["ranks"], result["nodes"], result["sparse"]) == (3, 1, False)
    for tokens, how in result["tiles"].items():
        assert Tiling(**how) in candidates(int(tokens))
    limits = result["limits"]
    for key in ("memory_bytes_per_second", "flops_per_second", "disk_bytes_per_second"):
        assert 0 < limits[key]["low"] <= limits[key]["median"] <= limits[key]["high"]
    assert set(limits["allreduce_seconds"]) == {"1", "2", "3", "4", "8", "16"}
    assert set(result["modes"]) == {"window", "budget", "resident"}
    for mode in result["modes"].values():
        times = {(t["kind"], t["tokens"]): t for t in mode["times"]}
        steps = [("step", n) for n in (1, 2, 4, 8, 16)]
        assert list(times) == [*steps, ("prompt", 3), ("prompt", 20)]
        assert times["prompt", 20]["passes"] == 2 and times["step", 8]["passes"] == 1
        for time in times.values():
            least = time["least_seconds"]
            assert least[time["bound_by"]] == max(least.values()) > 0
            assert time["fraction"] == pytest.approx(
                max(least.values()) / time["seconds"]["median"]
            )
            assert time["streamed_bytes"] == sum(mode["streamed_bytes"]) * time["passes"]
        assert times["step", 8]["flops"] > 7 * times["step", 1]["flops"]
        for rank in mode["one_token"]:
            parts = [rank[f"{part}_seconds"] for part in ("compute", "disk_wait", "network")]
            assert sum(parts) == pytest.approx(rank["seconds"]) and min(parts) >= 0
    # A rank's 53 or 54 rows of gate and up are stored as 64, its 343 or 344 of the head as 352.
    gate_and_up, head = 2 * 3 * 64 * 64, 3 * 352 * 64
    weights = 2 * (2 * (4 * 64 * 80 + gate_and_up + 64 * 160) + head)
    window, resident = result["modes"]["window"], result["modes"]["resident"]
    assert sum(window["streamed_bytes"]) == sum(resident["resident_bytes"]) == weights
    assert sum(window["resident_bytes"]) == sum(resident["streamed_bytes"]) == 0
    assert resident["disk_bytes_per_second"] is None
    assert window["disk_bytes_per_second"]["repeats"] == 3


def test_memory_stays_below_the_plan(bench):
    for mode in bench[0]["modes"].values():
        for peak, plan in zip(mode["peak_memory_bytes"], mode["planned_memory_bytes"], strict=True):
            assert 50 << 20 < peak < plan


def test_text_and_plot(bench):
    _, text, plot = bench
    for word in ("memory, plain reads", "step of 8 rows", "prompt of 20", "window", "peak MiB"):
        assert word in text
    assert "SPARSE" not in text and len(text.splitlines()) < 40
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 20_000


def test_sparse_files_are_marked(mpirun, tmp_path):
    flags = [*FLAGS, "--sparse", "--modes", "window", "--save-dir", tmp_path, "--repeats", 1]
    process = run(mpirun, 2, "bench", *flags, "--output", "json", "--report", tmp_path / "report")
    result = json.loads(output(process))
    assert json.loads((tmp_path / "report").read_text()) == result
    assert result["sparse"] and list(result["modes"]) == ["window"]
    assert result["limits"]["disk_bytes_per_second"] is None  # nothing was read from it
    assert "SPARSE FILES" in summary.text(result)
    assert "memory counts, times do not" in process.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shape", "huge"], ["no shape 'huge'", "llama2-70b"]),
        ([], ["--model", "--shape"]),
        (["--shape", "tiny", "--model", DEMO], ["not allowed with"]),
        (["--model", DEMO, "--layers", 2], ["--shape"]),
        (["--shape", "tiny", "--modes", "window,fast"], ["'fast'", "window, budget, resident"]),
        (["--shape", "tiny", "--prompts", "8,64", "--context", 32], ["64 tokens", "context of 32"]),
        (["--shape", "tiny", "--prompts", "8;64"], ["8;64"]),
        (["--shape", "tiny", "--context", 9000], ["9000", "8192"]),
        (["--shape", "tiny", "--plot", "/nowhere/plot.png"], ["--plot", "folder does not exist"]),
        (["--shape", "tiny", "--memory-budget", "20MiB"], ["too small", "or more"]),
        (["--shape", "tiny", "--save-dir", DEMO / "config.json"], ["is a file", "--save-dir"]),
    ],
)
def test_bad_input(mpirun, tmp_path, flags, words):
    refused(run(mpirun, 0, "bench", *flags, folder=tmp_path), 2, *words)


def test_a_missing_matplotlib_is_noticed_before_the_work(mpirun, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = ["--shape", "tiny", "--plot", tmp_path / "plot.png", "--save-dir", tmp_path / "shards"]
    refused(run(mpirun, 0, "bench", *flags), 2, "-m pip install matplotlib")
    assert not (tmp_path / "shards").exists()
