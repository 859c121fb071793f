"""What a step must do at least, by hand; the kernel that reads memory; a library without pages."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from numba import njit

from tpimpi.bench import limits, summary
from tpimpi.bench.limits import Spread
from tpimpi.bench.workload import Pass, RankRates, prompt_passes, seconds_at_least, work_of
from tpimpi.engine.warmup import call_kernels
from tpimpi.kernels import reading, reference
from tpimpi.memory.process import release, resident_bytes, unwritten_parts
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import shape_config
from tpimpi.model.tensors import pieces


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 1000, 4097, 300_001])
def test_every_word_is_read(threads, size):
    data = np.random.default_rng(size).integers(0, 2**63, size, np.uint64)
    assert reading.read_memory(data, threads) == reference.read_memory(data)


def test_work_is_what_one_counts_by_hand():
    config = shape_config("tiny")  # 2 layers, D 64, F 160, 5 heads of 16, V 1031
    layer, keys_values = 4 * 64 * 80 + 3 * 64 * 160, 2 * 64 * 80
    passes = [Pass(3, 10, 2)]  # positions 10, 11, 12
    one = work_of(passes, config, Partition.of(config, [1]), "bf16", [1000])
    scores = 4 * 80 * (11 + 12 + 13) + 4 * 80 * (12 + 13)
    selected = (
        layer - keys_values + 1031 * 64
    )  # what only serves the two whose logits are asked for
    assert one.flops.tolist() == [2 * ((layer + keys_values) * 3 + selected * 2) + scores]
    # 1031 rows are 65 panels of 16
    assert one.memory_bytes.tolist() == [2 * (2 * layer + 1040 * 64) + 2 * 2 * 80 * 4 * 13]
    assert one.streamed_bytes.tolist() == [1000]
    windowed = work_of(
        passes, replace(config, windows=(5, None)), Partition.of(config, [1]), "bf16", [0]
    )
    assert one.flops - windowed.flops == [4 * 80 * (6 + 7 + 8)]  # five of 11, 12, 13
    assert one.memory_bytes - windowed.memory_bytes == [2 * 80 * 4 * 6]  # 7 of 13 positions
    three = work_of(passes, config, Partition.of(config, [1] * 3), "bf16", [1, 2, 3])
    assert three.flops.sum() == one.flops.sum()
    rows = [p.shape for cut in Partition.of(config, [1] * 3).ranks for p in pieces(config, cut)
            if p.streamed]  # fmt: skip
    missing = sum(-n % 16 * k for n, k in rows)
    assert three.memory_bytes.sum() == one.memory_bytes.sum() + 2 * (missing - 9 * 64)
    assert len(set(three.flops)) > 1  # 5 heads over 3 ranks


def test_a_prompt_is_cut_into_chunks():
    assert prompt_passes(20, 8) == [Pass(8, 0, 0), Pass(8, 8, 0), Pass(4, 16, 1)]
    assert prompt_passes(8, 8) == [Pass(8, 0, 1)]
    config = shape_config("tiny")
    partition = Partition.of(config, [1])
    whole = work_of(prompt_passes(20, 20), config, partition, "f32", [7])
    cut = work_of(prompt_passes(20, 8), config, partition, "f32", [7])
    assert whole.flops == cut.flops and whole.memory_bytes < cut.memory_bytes
    assert cut.streamed_bytes == 21
    # Two more passes over what all tokens need: of the last layer only keys' and values' matrices.
    layer, keys_values = 4 * 64 * 80 + 3 * 64 * 160, 2 * 64 * 80
    pages = 2 * 2 * 80 * (8 + 16)  # of both layers
    assert cut.memory_bytes - whole.memory_bytes == 4 * (2 * (layer + keys_values) + pages)


def test_the_slowest_node_counts():
    config = shape_config("tiny")
    work = work_of([Pass(1, 0, 1)], config, Partition.of(config, [1] * 3), "f32", [600, 0, 900])
    rates = RankRates(np.full(3, 1e9), np.full(3, 1e9), np.array([100.0, 50.0, 100.0]), [0, 0, 2])
    least = seconds_at_least(work, rates, 0.5)
    assert least["disk"] == 9 and least["allreduce"] == 0.5  # 600 / 150 on the other node
    assert least["memory"] == pytest.approx(
        max(work.memory_bytes[:2].sum() / 2, work.memory_bytes[2]) / 1e9
    )


def test_arithmetic_counts_products_and_sums_of_the_best_shape(monkeypatch):
    monkeypatch.setattr(limits, "_seconds", lambda group, repeats, work: np.ones((1, repeats)))
    rates = limits.flop_rates(None, 1, "bf16", 2)
    assert rates.tolist() == [[2 * max(t * n * k for t, n, k in limits.PRODUCTS)] * 2]


def test_the_best_way_is_mostly_the_fastest_of_all_ranks():
    steady, lucky = np.array([[3, 3, 3], [3, 3, 3]]), np.array([[1, 1, 9], [4, 4, 9]])
    assert limits._best([lucky, steady]) is steady
    assert limits._best([steady, lucky]) is steady


def test_tiles_are_told_as_they_are_cut():
    tiles = {
        "1": {"side": 4, "most": 6, "ahead": 2048, "wide": False},
        "8": {"side": 1, "most": 24, "ahead": 0, "wide": False},
        "32": {"side": 2, "most": 12, "ahead": 1024, "wide": True},  # of three the largest
    }
    head, line, legend = summary._tiles(tiles)
    assert head.split()[-3:] == ["1", "8", "32"]
    assert [c.strip() for c in line.split("   ")[-3:]] == ["4 x 1 + 2", "1 x 8", "2 x 11"]
    assert [head.index(f" {n}") + len(n) + 1 for n in tiles] == [
        line.index(cell) + len(cell) for cell in ("4 x 1 + 2", "1 x 8", "2 x 11")
    ]
    assert "panels of 16 rows times tokens" in legend


def test_spread():
    assert Spread.of([5, 1, 2, 4, 3]) == Spread(3, 2, 4, 5)
    assert Spread.of([7]) == Spread(7, 7, 7, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/smaps")
def test_the_compiler_gives_its_pages_back_and_still_works():
    def compiled(number):
        exec(f"def f(x): return x + {number}", names := {})
        return njit(names["f"])

    assert compiled(1)(1) == 2
    before = resident_bytes()
    release(unwritten_parts("libllvmlite"))
    after = resident_bytes()
    assert after < before - (20 << 20)
    assert compiled(2)(1) == 3  # what it needs is read again
    assert resident_bytes() > after
    call_kernels(["bf16"], 1)
    before = resident_bytes()
    release(unwritten_parts("libllvmlite"))
    assert resident_bytes() > before - (4 << 20)  # the warm-up has left nothing to give back


def test_only_parts_that_nothing_was_written_to(tmp_path):
    def part(first, rights, path, **kilobytes):
        head = f"{first:x}000-{first + 1:x}000 {rights} 00001000 fd:00 77 {path}"
        return "\n".join([head, *(f"{k}: {v} kB" for k, v in kilobytes.items())])

    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "smaps").write_text("\n".join([
        part(1, "r-xp", "/lib/libx.so", Rss=4, Anonymous=0, Swap=0),
        part(2, "r--p", "/lib/libx.so", Rss=4, Anonymous=4, Swap=0),  # relocated
        part(3, "r--p", "/lib/libx.so", Rss=0, Anonymous=0, Swap=4),  # ... and swapped out
        part(4, "rw-p", "/lib/libx.so", Rss=4, Anonymous=0, Swap=0),  # may be written to yet
        part(5, "r-xp", "/lib/liby.so", Rss=4, Anonymous=0, Swap=0),
        part(6, "r--p", "/lib/libx.so", Rss=4, Anonymous=0, Swap=0),
    ]))  # fmt: skip
    assert unwritten_parts("libx", tmp_path) == [(0x1000, 0x1000), (0x6000, 0x1000)]
    assert unwritten_parts("libx", tmp_path / "nowhere") == []
