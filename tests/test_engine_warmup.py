"""Compiling: on all cores, each kernel once, from the right sources; told when it fails."""

import json
import os
import pickle
import subprocess
from itertools import islice
from pathlib import Path

import pytest

from tpimpi.comm.group import Group
from tpimpi.engine import compilation, warmup
from tpimpi.errors import MachineError
from tpimpi.kernels import panels, tiling, tuning

KERNELS = {"tiles_f16", "tiles_f32", "matmul_serial", "attention_tiles", "attention_serial",
           "rmsnorm_serial", "append_kv_serial", "rope_serial", "silu_gate_serial"}  # fmt: skip


def test_long_kernels_come_first_and_variants_stay_together():
    names = ["rope_serial", "tiles_bf16", "attention_serial", "rope_parallel", "tiles_f16"]
    assert compilation._jobs(names) == [
        ["attention_serial"], ["tiles_bf16"], ["tiles_f16"], ["rope_serial", "rope_parallel"],
    ]  # fmt: skip


def test_cold_cache(monkeypatch, tmp_path, capfd):
    # Another `tpimpi` in the current folder must not be what is compiled.
    (tmp_path / "tpimpi").mkdir()
    (tmp_path / "tpimpi" / "__init__.py").write_text("raise SystemExit('another tpimpi')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    # Without the kernel that takes as long as all others together.
    shorter = "import tpimpi.kernels.attention as a; a.attention = lambda *_: None\nserve("
    monkeypatch.setattr(compilation, "_PROGRAM", compilation._PROGRAM.replace("serve(", shorter))
    monkeypatch.setattr("tpimpi.progress.EVERY_SECONDS", 0.0)
    compilation.compile_missing(["f16"], [1], {0, 1}, True)
    written = [path.name for path in (tmp_path / "cache").rglob("*.nb?")]
    modules = {name.split(".")[1].split("-")[0] for name in written}
    assert modules == KERNELS - {"attention_serial"}
    assert len(written) == 2 * len(modules)  # an index and one signature each
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tpimpi: ")]
    assert "tpimpi: compiling kernels for this CPU, once: 1 of 8 kernels" in lines
    assert "tpimpi: compiling kernels for this CPU, once: 8 of 8 kernels" in lines
    assert lines[-1] == "tpimpi: measuring which tiles are fast: 1 of 1 kernels"
    stamp = compilation._stamp(1, "f16")
    measured = tuning.from_json(json.loads(stamp.read_text()))
    assert set(measured) == set(tiling.SIZES)
    compilation.use_tilings(["f16"], 1)
    assert tiling.tiling_for(1, 1, "f16") == measured[1]
    for text in ("", "[1]", '{"1": [0, 0, 0]}'):  # damaged: a guess will do
        stamp.write_text(text)
        monkeypatch.setattr(tiling, "_measured", {})
        monkeypatch.setattr(tiling, "_chosen", {})
        compilation.use_tilings(["f16"], 1)
        assert tiling.tiling_for(1, 1, "f16") == tiling.candidates(1)[0]

    def no_more(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_more)
    compilation.compile_missing(["f16"], [1], {0, 1}, True)


def test_both_variants_are_compiled_where_threads_may_serve():
    """Few tokens take the serial one whatever the threads; products and attention never do."""
    with compilation._Compiler([(2, "f16")], [0]) as child:
        names = set(child.answer())
    parallel = {name.replace("_serial", "_parallel") for name in KERNELS}
    assert names == (KERNELS | parallel) - {"matmul_serial", "attention_serial"}


def test_each_mode_has_tilings_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiling, "_measured", {})
    monkeypatch.setattr(tiling, "_chosen", {})
    serial, parallel = tiling.candidates(1)[1:3]
    for mode, how in ((1, serial), (2, parallel)):
        compilation._stamp(mode, "f16").write_text(json.dumps(tuning.to_json({1: how})))
    for threads, how in ((1, serial), (2, parallel), (3, parallel)):
        compilation.use_tilings(["f16"], threads)
        assert tiling.tiling_for(1, threads, "f16") == how
    assert tiling.tiling_for(1, 1, "f16") == serial


@pytest.mark.parametrize(("mode", "cores", "threads"), [("1", 4, 1), ("2", 4, 4), ("2", 1, 2)])
def test_each_mode_is_measured_with_its_threads(monkeypatch, mode, cores, threads):
    asked = []
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 8)
    monkeypatch.setattr("numba.set_num_threads", asked.append)
    monkeypatch.setattr(tuning, "measure", lambda encoding, threads: asked.append(threads) or {})
    assert compilation._measured(mode, "f16", cores) == {}
    assert asked == [threads] * (1 if threads == 1 else 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_widens_beforehand_is_loaded_beforehand(monkeypatch, threads):
    wide = next(how for how in tiling.candidates(32) if how.wide)
    monkeypatch.setattr(tiling, "_measured", {("bf16", threads > 1): {32: wide}})
    monkeypatch.setattr(tiling, "_chosen", {})
    for mode in (1, 2):
        loaded = []
        monkeypatch.setattr(panels, "tile_of", loaded.append)
        calls = warmup._calls(["bf16"], 1, mode)
        list(islice(calls, 3))  # the tiles, a product, and what comes then
        assert loaded == ["bf16", *(["f32"] if mode == threads else [])]


def test_a_stamp_knows_mode_encoding_cpu_and_place(monkeypatch, tmp_path):
    from tpimpi.kernels import emit

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    stamps = {compilation._stamp(mode, encoding) for mode in (1, 2) for encoding in ("f16", "f32")}
    monkeypatch.setattr(emit, "TARGET", (*emit.TARGET[:2], emit.TARGET[2] + ",+new"))
    stamps.add(compilation._stamp(1, "f16"))
    monkeypatch.setattr(compilation, "_files", lambda: ["elsewhere"])
    stamps.add(compilation._stamp(1, "f16"))
    assert len(stamps) == 6


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise ValueError('first line\\nlast line')", "failed: last line"),
        ("import os; os.kill(os.getpid(), 9)", "memory is short"),
        ("import os; os.abort()", "SIGABRT"),
        ("pass", "it said nothing"),
    ],
)
def test_a_child_that_dies_is_told(monkeypatch, tmp_path, program, words):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compilation, "_PROGRAM", program)
    with pytest.raises(MachineError, match=words):
        compilation.compile_missing(["f16"], [1], {0, 1}, False)
    assert not list(tmp_path.iterdir())


def test_a_child_with_other_sources_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    program = compilation._PROGRAM.replace("{files!r}", "['another tpimpi']")
    monkeypatch.setattr(compilation, "_PROGRAM", program)
    with pytest.raises(MachineError, match="other files .* than .'another tpimpi'"):
        compilation.compile_missing(["f16"], [1], {0, 1}, False)


def test_children_are_no_more_when_the_parent_is_interrupted(monkeypatch):
    monkeypatch.setattr(compilation, "_PROGRAM", "import time; time.sleep(100)")
    with pytest.raises(KeyboardInterrupt), compilation._Compiler([], [0]) as child:
        raise KeyboardInterrupt
    assert child._process.returncode is not None


def test_a_child_goes_when_its_parent_has_gone():
    with compilation._Compiler([(1, "f16")], [0]) as child:
        assert set(child.answer()) == KERNELS
        child.give(["attention_serial"])
        child._process.stdin.close()  # as happens when a parent is killed
        assert child._process.wait(timeout=30) == 0


def test_a_failure_on_one_rank_is_raised_on_all(monkeypatch, comm):
    def fail(*_):
        raise MachineError("no compiler")

    monkeypatch.setattr(warmup, "compile_missing", fail)
    group = Group(comm)
    with pytest.raises(MachineError, match="no compiler") as caught:
        warmup.warm_up(group, ["f16"], 1)
    assert caught.value.agreed
    group.close()


@pytest.mark.parametrize("error", [EOFError("Ran out of input"), pickle.UnpicklingError("cut")])
def test_damaged_kernels_are_told_with_a_way_out(monkeypatch, comm, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(warmup, "compile_missing", lambda *_: None)
    monkeypatch.setattr(warmup, "call_kernels", fail)
    group = Group(comm)
    with pytest.raises(MachineError, match="damaged .* remove that folder") as caught:
        warmup.warm_up(group, ["f16"], 1)
    assert caught.value.agreed and os.environ["NUMBA_CACHE_DIR"] in str(caught.value)
    group.close()


def test_the_child_gets_no_rank_from_the_launcher(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    program = "import os; print([n for n in os.environ if n[:3] in ('PMI', 'OMP')].__repr__())"
    monkeypatch.setattr(compilation, "_PROGRAM", program.replace("'OMP'", "'OMPI_'"))
    with compilation._Compiler([], [0]) as child:
        assert child.answer() == []


def test_the_kernels_lie_where_the_stamps_say():
    assert Path(compilation._files()[1]).joinpath("variants.py").exists()
