"""The promise of --memory-budget, kept by whole processes, from their start to their end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from program import output, refused, run

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_checkpoint.py"
MIB = 1 << 20


def checkpoint(folder, *flags):
    subprocess.run([sys.executable, SCRIPT, *flags, "--output", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model whose weights (229 MiB) are much next to the process, and its buffers little."""
    flags = ["--shape", "demo-tiny", "--layers", "160", "--dtype", "f32"]
    return checkpoint(tmp_path_factory.mktemp("deep"), *flags)


@pytest.fixture(scope="module")
def long_memory(tmp_path_factory):
    """A model whose keys and values (70 KiB a token) are much next to its weights (23 MiB)."""
    flags = ["--shape", "tiny", "--layers", "112", "--dtype", "f32"]
    return checkpoint(tmp_path_factory.mktemp("long_memory"), *flags)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def generate(mpirun, model, cache, ranks, *flags, length=12):
    report = cache / "report.json"
    given = ["-p", "A man", "-n", length, "--temp", 0, "--ignore-eos", "--output", "json"]
    process = run(
        mpirun, ranks, "generate", "-m", model, *given, "--report", report, *flags, folder=cache
    )
    result = json.loads(output(process))
    return result, json.loads(report.read_text())["ranks"], process.stderr


def smallest(mpirun, model, cache, ranks):
    """Return the smallest budget in MiB that a refusal names."""
    flags = ["-p", "A man", "--memory-budget", "1MiB"]
    process = run(mpirun, ranks, "generate", "-m", model, *flags, folder=cache)
    refused(process, 2, "needs at least")
    found = re.search(r"needs at least (\d+) MiB .* give --memory-budget (\d+)MiB", process.stderr)
    assert found and found[1] == found[2]
    return int(found[1])


@pytest.mark.parametrize("ranks", [0, 3])
def test_the_peak_stays_below_any_budget(mpirun, deep, cache, ranks):
    expected, everything, _ = generate(mpirun, deep, cache, ranks)
    total = everything[0]["resident_bytes"]
    assert all(rank["streamed_bytes_per_pass"] == 0 for rank in everything)
    least = smallest(mpirun, deep, cache, ranks)
    for budget in (least, least + total // MIB // 2):
        result, figures, notes = generate(
            mpirun, deep, cache, ranks, "--memory-budget", f"{budget}MiB"
        )
        assert result["generated_ids"] == expected["generated_ids"]
        assert "stream from disk" in notes
        for rank in figures:
            assert rank["peak_memory_bytes"] <= rank["planned_memory_bytes"] <= budget * MIB
            assert rank["streamed_bytes_per_pass"] > 0
    for rank in figures:  # what the budget left over was used
        assert rank["resident_bytes"] > 0.3 * total
        assert rank["planned_memory_bytes"] > budget * MIB - 8 * MIB


def test_a_budget_also_holds_where_shares_are_measured(mpirun, deep, cache):
    """One rank's is so small that its weights stream: so its disk is measured, too."""
    least = smallest(mpirun, deep, cache, 2)
    budgets = [least + 6, least + 300]
    _, figures, notes = generate(
        mpirun, deep, cache, 2, "--memory-budget", ",".join(f"{b}MiB" for b in budgets),
        "--ratio", "auto",
    )  # fmt: skip
    assert " as measured: weights in memory " in notes and ", disks " in notes
    for rank, budget in zip(figures, budgets, strict=True):
        assert rank["peak_memory_bytes"] <= rank["planned_memory_bytes"] <= budget * MIB
    held = [rank["resident_bytes"] + rank["streamed_bytes_per_pass"] for rank in figures]
    assert held[0] < held[1]


def test_each_rank_has_its_own_budget(mpirun, deep, cache):
    least = smallest(mpirun, deep, cache, 2)
    _, figures, _ = generate(
        mpirun, deep, cache, 2, "--memory-budget", f"{least + 4}MiB,{least + 200}MiB"
    )
    assert figures[0]["streamed_bytes_per_pass"] > 0 == figures[1]["streamed_bytes_per_pass"]
    assert figures[0]["peak_memory_bytes"] <= (least + 4) * MIB


def test_a_context_beyond_the_budget_ends_the_text(mpirun, long_memory, cache):
    budget = smallest(mpirun, long_memory, cache, 0) + 1
    result, figures, notes = generate(
        mpirun, long_memory, cache, 0, "--memory-budget", f"{budget}MiB", length=4000
    )
    tokens = len(result["prompt_ids"]) + len(result["generated_ids"])
    assert result["finish_reason"] == "length" and tokens == figures[0]["context"] < 4000
    assert "what the memory budget allows" in notes
    assert figures[0]["peak_memory_bytes"] <= budget * MIB


def test_the_plan_is_the_account_of_the_run(mpirun, deep, cache, tmp_path):
    budget = smallest(mpirun, deep, cache, 3) + 6
    flags = ["-m", deep, "--memory-budget", f"{budget}MiB", "--output", "json"]
    found = json.loads(output(run(mpirun, 3, "plan", *flags, "--context", 32, folder=cache)))
    assert found["launched"] and [r["rank"] for r in found["ranks"]] == [0, 1, 2]
    _, figures, _ = generate(mpirun, deep, cache, 3, "--memory-budget", f"{budget}MiB")
    assert [rank["tokenizer"] > 0 for rank in found["ranks"]] == [True, False, False]
    for planned, ran in zip(found["ranks"], figures, strict=True):
        parts = ("process", "tokenizer", "kv", "activations", "margin", "ring", "resident")
        assert sum(planned[part] for part in parts) == planned["total"] <= budget * MIB
        weights = planned["resident"] + planned["streamed"]
        assert weights == ran["resident_bytes"] + ran["streamed_bytes_per_pass"]
        assert planned["smallest_budget"] <= budget * MIB < planned["budget_of_everything"]
        assert planned["smallest_budget"] <= planned["smallest_budget_of_context"]
        assert planned["smallest_budget_of_context"] < planned["budget_of_everything"]
        assert planned["disk_seconds"] == planned["streamed"] / planned["disk_bytes_per_second"]
        assert planned["seconds_per_token"] == max(
            planned["disk_seconds"], planned["compute_seconds"]
        )
    assert found["seconds_per_token"] >= max(rank["disk_seconds"] for rank in found["ranks"]) > 0
    assert found["seconds_per_token"] >= found["halves_seconds"] + found["network_seconds"]
    assert not [path for path in cache.rglob("*") if "probe" in path.name]


def test_a_plan_needs_no_weights(mpirun, tmp_path):
    flags = ["--shape", "yi-34b", "-np", 4, "--memory-budget", "600MiB", "--save-dir", tmp_path]
    process = run(mpirun, 0, "plan", *flags)
    lines = output(process).splitlines()
    assert len([line for line in lines if line.split()[1:3] == ["1", "600"]]) == 4
    assert "ms or more (the network not counted, see --link)" in lines[-2]
    assert "budgets a rank: at least" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_a_context_beyond_the_models_is_told(mpirun, tmp_path):
    flags = ["--shape", "tiny", "--context", 9000, "--output", "json", "--save-dir", tmp_path]
    process = run(mpirun, 0, "plan", *flags)
    assert json.loads(output(process))["asked_context"] == 8192
    assert "tiny has a context of 8192 tokens, so it is planned for those" in process.stderr


def test_mistakes_in_plans(mpirun):
    for flags, word in (
        (["--shape", "llama9"], "tinyllama-1.1b"),
        (["--shape", "tiny", "--model", "M"], "not allowed"),
        (["--shape", "tiny", "--memory-budget", "3XB"], "3XB"),
        (["--shape", "tiny", "--memory-budget", "9MB,9MB"], "2 budgets"),
        (["--shape", "tiny", "--memory-budget", "1GB", "--memory-window", "4"], "not allowed"),
    ):
        refused(run(mpirun, 0, "plan", *flags), 2, word)
