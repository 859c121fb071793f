"""The memory account: kept for any model, budget and context, and spread over the tape."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.errors import UserError
from tpimpi.memory.account import MARGIN_BYTES, Needs, Work
from tpimpi.memory.plan import (
    RankRequest,
    fit,
    fit_pages,
    plan_budget,
    plan_flags,
    plan_ranks,
    spread,
)
from tpimpi.memory.process import FreeMemory
from tpimpi.memory.request import MemoryRequest
from tpimpi.memory.sharing import Claim, fair_shares, shared_budgets
from tpimpi.shards.layout import PAGE, StoredTensor
from tpimpi.tape.reads import READ_BYTES, resident_reads, streamed_lap

MIB = 1 << 20


def tape(shapes):
    """Return bf16 tensors one after another, each at the beginning of a page."""
    result, at = [], PAGE
    for i, shape in enumerate(shapes):
        result.append(StoredTensor(f"t{i}", "bf16", shape, at, in_panels=True))
        assert result[i].nbytes == 2 * ((shape[0] + 15) // 16 * 16) * shape[1]
        at += -(-result[i].nbytes // PAGE) * PAGE
    return tuple(result)


def needs(tensors, **more):
    given = {
        "process": 100 * MIB, "tokenizer": 3 * MIB,
        "peak": 110 * MIB, "fixed": MIB, "per_token": 50_000, "per_logits": 0, "logits": 1,
        "kv_page": MIB, "page_tokens": 64, "window": None, "tensors": tensors,
        "blocks": tuple(t.nbytes for t in tensors),
    }  # fmt: skip
    return Needs(**given | more)


def ask(needs_, budget, rank=0):
    return RankRequest(rank, "h", budget, needs_, FreeMemory(1 << 50, None, ""))


def one(needs_, budget, work, **flags):
    return plan_ranks([ask(needs_, budget)], MemoryRequest(**flags), work)[0]


def test_the_tokenizer_is_a_line_of_the_account():
    """On rank 0 it is memory that is taken before the kernels' and counts against the budget."""
    without = needs(tape([(2000, 2000)]), tokenizer=0, peak=0)
    rank, work = replace(without, tokenizer=54 * MIB), Work(10, 20)
    assert rank.smallest(work) == without.smallest(work) + 54 * MIB
    budget = rank.everything(work, 10)
    plan = one(rank, budget, work)
    assert (plan.tokenizer, plan.total, plan.streamed) == (54 * MIB, budget, 0)
    with pytest.raises(UserError, match=r"the process 100 MiB, the tokenizer 54 MiB, keys and"):
        one(rank, without.smallest(work), work)


SHAPES = st.lists(
    # Some with panels longer than a read.
    st.tuples(st.integers(0, 3000), st.integers(0, 3000) | st.integers(0, 100_000)),
    min_size=1,
    max_size=12,
).filter(lambda shapes: any(a * b for a, b in shapes))


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 1200), st.integers(1, 700), st.integers(0, 5000))
def test_a_budget_is_never_exceeded(shapes, extra, prompt, more):
    rank, work = needs(tape(shapes)), Work(prompt, prompt + more)
    smallest = rank.smallest(work)
    with pytest.raises(UserError, match=r"at least \d+ MiB"):
        one(rank, smallest - 1, work)
    budget = smallest + extra * MIB // 4
    plan = one(rank, budget, work)
    chunk, context = plan.chunk, plan.context
    assert 1 <= chunk <= prompt and work.smallest_context <= context <= work.context
    assert plan.total <= budget == plan.budget
    assert plan.resident + plan.streamed == rank.weights
    if plan.streamed:
        assert plan.ring >= 2 * streamed_lap(rank.tensors, plan.resident_panels).largest
        largest = max(t.panel_bytes for t in rank.tensors)
        assert budget - plan.total <= 4 * READ_BYTES + largest + 64 * MIB * (context < work.context)
    else:
        assert plan.ring == 0
    everything = rank.everything(work, chunk)
    pages = rank.wanted_pages(work, work.context, chunk)
    assert plan_budget(rank, everything, work, chunk, work.context, pages).streamed == 0


def test_a_context_beyond_the_budget_is_cut_to_whole_pages():
    rank, work = needs(tape([(1000, 1000)] * 20)), Work(100, 100_000)
    budget = rank.smallest(work) + 10 * MIB
    chunk, context = fit(rank, budget, work, 100, 1)
    assert context < work.context and context % 64 == 0 and context >= 64 * 10
    pages = fit_pages(rank, budget, work, chunk, context)
    assert plan_budget(rank, budget, work, chunk, context, pages).total <= budget


def test_a_longer_chunk_is_worth_its_memory_where_weights_stream():
    rank = needs(tape([(4096, 4096)] * 100))
    work = Work(512, 532)
    budget = rank.smallest(work) + 40 * MIB
    assert fit(rank, budget, work, 512, 1)[0] == 512
    # With few tokens to read and many to write residency is worth more.
    work = Work(512, 512 + 100_000)
    rank = needs(tape([(4096, 4096)] * 3), per_token=200_000, kv_page=1)
    assert fit(rank, rank.smallest(work) + 100 * MIB, work, 512, 1)[0] < 512


def test_an_exact_chunk_is_kept_or_refused():
    rank, work = needs(tape([(1000, 1000)] * 9), per_token=MIB), Work(300, 320)
    enough = rank.smallest(work, 200)
    assert one(rank, enough, work, chunk=200).chunk == 200
    with pytest.raises(UserError, match="too small"):
        one(rank, enough - 1, work, chunk=200)


def test_the_poorest_rank_decides_on_chunk_and_context():
    work, rank = Work(100, 100_000), needs(tape([(1000, 1000)] * 9))
    poor, rich = rank.smallest(work) + 9 * MIB, 1 << 40
    plans = plan_ranks([ask(rank, rich, 0), ask(rank, poor, 1)], MemoryRequest(), work)
    assert plans[0].context == plans[1].context < work.context
    assert plans[0].chunk == plans[1].chunk
    assert plans[0].streamed == 0 < plans[1].streamed
    with pytest.raises(UserError, match="rank 1 on h needs"):
        plan_ranks([ask(rank, rich, 0), ask(rank, 1, 1)], MemoryRequest(), work)


def test_a_node_without_free_memory_is_told():
    request, work = MemoryRequest(), Work(10, 20)
    empty = replace(ask(needs(tape([(1000, 1000)])), "auto"), free=FreeMemory(0, None, ""))
    with pytest.raises(UserError, match="share of the node's free memory.*auto"):
        plan_ranks([empty], request, work)


@given(SHAPES, st.floats(0, 1))
def test_residency_is_spread_evenly(shapes, share):
    tensors = tape(shapes)
    total = sum(t.nbytes for t in tensors)
    panels = spread(tensors, int(total * share))
    for tensor in tensors:
        keep, unit = panels.get(tensor.name, 0), READ_BYTES // max(tensor.panel_bytes, 1) or 1
        whole = keep in (0, tensor.panels)
        assert whole or (keep % unit == 0 and tensor.panels >= 2 * unit)  # of whole reads
    kept = passed = 0
    slack = 2 * READ_BYTES + max(t.panel_bytes for t in tensors) * 2
    for tensor in tensors:
        kept += panels.get(tensor.name, 0) * tensor.panel_bytes
        passed += tensor.nbytes
        assert panels.get(tensor.name, 0) <= tensor.panels
        assert share * passed - slack <= kept <= share * passed + 1


@given(SHAPES, st.floats(0, 1))
def test_reads_cover_every_panel_once_and_in_order(shapes, share):
    tensors = tape(shapes)
    resident = spread(tensors, int(sum(t.nbytes for t in tensors) * share))
    lap = streamed_lap(tensors, resident)
    reads, at = list(lap.reads), 0
    for tensor in tensors:
        panel = resident.get(tensor.name, 0)
        for tile in lap.tiles[tensor.name]:
            read = reads[at]
            assert tile.panel == panel and tile.panels > 0
            assert read.start + tile.at == tensor.offset + panel * tensor.panel_bytes
            assert tile.at + tile.panels * tensor.panel_bytes <= read.needed
            panel += tile.panels
            at += tile.last
        assert panel == tensor.panels
    assert at == len(reads)
    for read in reads:
        assert read.start % PAGE == 0
        longest = max(t.panel_bytes for t in tensors)
        assert read.length <= max(READ_BYTES, longest + 2 * PAGE)
    kept = sum(resident.get(t.name, 0) * t.panel_bytes for t in tensors)
    assert sum(read.needed for read in resident_reads(tensors, resident)) == kept


def test_small_neighbours_share_a_read():
    tensors = tape([(2048, 2048), (64, 2048), (64, 2048), (2048, 2048)])
    assert len(streamed_lap(tensors, {}).reads) <= 9
    whole = streamed_lap(tape([(64, 1024)] * 12), {})
    assert len(whole.reads) == 1


def test_the_window_and_everything_stay_as_they_were():
    rank, work = needs(tape([(1000, 1000)] * 4)), Work(300, 400)
    plan = plan_flags(rank, MemoryRequest(window=2), work)
    assert plan.ring == 2 * 2 * 1008 * 1000 and plan.resident == 0 and plan.chunk == 256
    plan = plan_flags(rank, MemoryRequest(everything=True, chunk=7), work)
    assert plan.streamed == plan.ring == 0 and plan.chunk == 7


@given(st.integers(0, 1000), st.lists(st.integers(0, 500), min_size=1, max_size=6))
def test_fair_shares(free, wanted):
    shares = fair_shares(free, wanted)
    assert sum(shares) <= free and all(s <= w for s, w in zip(shares, wanted, strict=True))
    short = [s for s, w in zip(shares, wanted, strict=True) if s < w]
    if short:  # nobody got more than one who wants more, and hardly anything is left
        assert max(shares) <= min(short) + 1 and free - sum(shares) < len(wanted)


def claim(budget, wanted=1 << 40, host="a", node=1000 * MIB, cgroup=None, path=""):
    return Claim(budget, host, 100 * MIB, wanted, FreeMemory(node, cgroup, path))


def test_free_memory_is_shared_by_the_ranks_of_a_node():
    assert shared_budgets([claim("auto")] * 2) == [500 * MIB] * 2
    assert shared_budgets([claim("max")]) == [(1100 - 64) * MIB]
    assert shared_budgets([claim("max", node=200 * MIB)]) == [260 * MIB]  # not less than auto
    assert shared_budgets([claim("auto"), claim("auto", 200 * MIB)]) == [800 * MIB, 200 * MIB]
    assert shared_budgets([claim("auto"), claim("auto", host="b")]) == [900 * MIB] * 2
    assert shared_budgets([claim("auto"), claim(600 * MIB)]) == [500 * MIB, 600 * MIB]
    limited = claim("auto", cgroup=200 * MIB, path="/x")
    assert shared_budgets([limited, limited]) == [180 * MIB] * 2
    apart = claim("auto", cgroup=200 * MIB, path="/y")
    assert shared_budgets([limited, apart]) == [260 * MIB] * 2


def test_no_account_sees_the_margin():
    rank, work = needs(tape([(1000, 1000)])), Work(1, 2)
    assert rank.besides_weights(0, 0) == 104 * MIB + MARGIN_BYTES
    assert rank.smallest(work) >= rank.peak


def test_a_context_may_shrink_to_what_is_enough():
    rank, work = needs(tape([(3000, 3000)])), Work(4095, 4096, enough=512)
    smallest = rank.smallest(work)
    assert smallest < rank.smallest(Work(4095, 4096)) and one(rank, smallest, work).context == 512
    assert 512 < one(rank, smallest + 20 * MIB, work).context < 4096
    assert one(rank, rank.everything(work, 512), work).context == 4096
    with pytest.raises(UserError, match="for 512 tokens"):
        one(rank, smallest - 1, work)
