"""Shares for unequal devices: as good as the best of all, simple, and kept where they will do."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.memory.shares import Device, Load, fastest, predict, predict_numbers
from tpimpi.memory.solver import REUSE, TOLERANCES, best_shares, choose, gain
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import shape_config
from tpimpi.model.tensors import pieces
from tpimpi.shards.layout import stored

CONFIG = shape_config("tinyllama-1.1b")  # 4 key/value heads of 8 query heads each
LOAD = Load.of(CONFIG, lambda _: "bf16", 2048)
FEW_HEADS = ModelConfig.of(
    "t",
    {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 999,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1001,
    },
    {},
)  # fmt: skip


def weights(config):
    """Return the bytes that a token reads of a model's weights."""
    whole = pieces(config, Partition.of(config, [1]).ranks[0])
    return sum(stored(piece, "bf16").nbytes for piece in whole if piece.streamed)


def compositions(total, parts):
    """Yield all ways to give `total` things to so many ranks."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def seconds(config, load, devices, shares):
    found = predict(config, load, devices, shares)
    return found.seconds if found.fits else float("inf")


def test_the_load_is_what_the_tensors_hold():
    alone = predict(CONFIG, LOAD, [Device(1.0, 1.0)], (1,))
    keys_values = 22 * 2048 * 4 * 64 * 2 * 4
    assert alone.compute[0] == pytest.approx(weights(CONFIG) + keys_values, rel=1e-3)
    assert alone.disk == (0.0,) and alone.network == 0 and alone.fits
    streaming = predict(CONFIG, LOAD, [Device(1.0, 1.0, room=0.0)], (1,))
    assert streaming.disk[0] == pytest.approx(weights(CONFIG), rel=1e-3)


def test_each_half_waits_for_its_slowest():
    """Heads 2, 1, 1 of 4 and a third of the columns each: two ranks are waited for in turn."""
    devices = [Device(1e9, 1e9), Device(1e9, 1e9), Device(8e8, 1e9)]
    found = predict(CONFIG, LOAD, devices, (1, 1, 1), network=0.25)
    cut = Partition.of(CONFIG, (1, 1, 1)).ranks
    assert [len(mine.kv_heads) for mine in cut] == [1, 2, 1]
    group = 8 * LOAD.q_head + LOAD.kv_head + LOAD.cached
    mlp, head = len(cut[2].columns) * LOAD.column, len(cut[2].rows) * LOAD.row
    assert found.halves == pytest.approx(2 * group / 1e9 + (mlp + head) / 8e8)
    assert found.seconds == pytest.approx(found.halves + 0.25)
    assert max(found.compute) < found.halves


RATES = st.sampled_from([1e9, 1.5e9, 2e9, 3e9, 5e9])
DEVICES = st.builds(
    lambda memory, disk, room, growth: Device(
        memory, disk, room * weights(FEW_HEADS), growth * weights(FEW_HEADS), 1000.0
    ),
    RATES, st.sampled_from([1e8, 5e8, 2e9]), st.sampled_from([0.05, 0.2, 0.5, 1.0, 9.0]),
    st.sampled_from([0.0, 0.1]),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(DEVICES, min_size=2, max_size=3))
def test_no_shares_are_much_better(devices):
    """The whole search against all shares of so many parts."""
    load = Load.of(FEW_HEADS, lambda _: "bf16", 64)
    parts = 60 if len(devices) == 2 else 24
    every = compositions(parts, len(devices))
    best = min(seconds(FEW_HEADS, load, devices, shares) for shares in every)
    found = best_shares(FEW_HEADS, load, devices)
    assert len(found) == len(devices) and sum(found) > 0
    if best < float("inf"):
        slack = 0.02  # the search takes MLP and head together, and times to a thousandth
        assert seconds(FEW_HEADS, load, devices, found) <= best * (1 + TOLERANCES[-1] + slack)


def test_memory_that_only_some_shares_fit_into_is_found():
    """Half of the model is too much for the first, and the second's disk is slow."""
    devices = [
        Device(1e9, 5e8, room=48320, growth=96640, ring=1000.0),
        Device(1e9, 1e8, room=48320, ring=1000.0),
    ]
    load = Load.of(FEW_HEADS, lambda _: "bf16", 64)
    shares = best_shares(FEW_HEADS, load, devices)
    assert predict(FEW_HEADS, load, devices, shares).fits and shares[0] < shares[1]


@settings(max_examples=30, deadline=None)
@given(st.lists(RATES, min_size=2, max_size=8))
def test_shares_follow_rates_in_small_numbers(rates):
    devices = [Device(rate, 1e9) for rate in rates]
    found = best_shares(CONFIG, LOAD, devices)
    assert sum(found) <= max(64, 16 * len(rates))
    equal = seconds(CONFIG, LOAD, devices, [1] * len(rates))
    assert seconds(CONFIG, LOAD, devices, found) <= equal * (1 + 1e-9)
    ideal = (weights(CONFIG) + LOAD.cached * 4) / sum(rates)
    assert seconds(CONFIG, LOAD, devices, found) >= ideal * (1 - 1e-3)


def test_alike_devices_get_equal_shares():
    for number in (1, 3, 4096):
        assert best_shares(CONFIG, LOAD, [Device(1e9, 1e9)] * number) == (1,) * number
    nearly = [Device(1e9, 1e9), Device(1.02e9, 1e9), Device(0.99e9, 1e9)]
    assert best_shares(CONFIG, LOAD, nearly) == (1, 1, 1)


def test_half_the_speed_is_about_half_the_share():
    shares = best_shares(CONFIG, LOAD, [Device(2e9, 1e9), Device(2e9, 1e9), Device(1e9, 1e9)])
    assert shares[2] / sum(shares) == pytest.approx(0.2, abs=0.03)
    assert 0.35 < shares[0] / sum(shares) < 0.45


def test_a_device_whose_weights_stream_gets_fewer():
    plenty, little = 1e10, 0.05 * weights(CONFIG)
    fast = Device(1e10, 5e8, plenty)
    shares = best_shares(CONFIG, LOAD, [fast, Device(1e10, 5e8, little, 0.0, 5e6)])
    assert shares[0] > 4 * shares[1]
    nothing = best_shares(CONFIG, LOAD, [fast, Device(1e10, 5e8, 0.0, 0.0, 5e6)])
    assert nothing == (1, 0)  # not even the ring has room


def test_where_nothing_fits_shares_are_equal():
    """The planner then says which rank needs how much."""
    assert best_shares(CONFIG, LOAD, [Device(1e9, 1e9, -1.0, 0.0, 5e6),
                                      Device(2e9, 1e9, -1.0, 0.0, 5e6)]) == (1, 1)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.96, 1.04), min_size=3, max_size=3))
def test_measured_anew_the_cut_stays(noise):
    rates = (5e9, 5e9, 2.5e9)
    cut = choose(CONFIG, LOAD, [Device(rate, 1e9) for rate in rates], [])
    again = [Device(rate * off, 1e9) for rate, off in zip(rates, noise, strict=True)]
    assert choose(CONFIG, LOAD, again, [Partition.of(CONFIG, (1, 1, 1)), cut]) == cut


def test_a_cut_that_is_clearly_slower_is_not_kept():
    devices = [Device(5e9, 1e9), Device(1e9, 1e9)]
    equal = Partition.of(CONFIG, (1, 1))
    assert gain(CONFIG, LOAD, devices, equal) > REUSE
    found = choose(CONFIG, LOAD, devices, [equal])
    assert found.shares == best_shares(CONFIG, LOAD, devices) != (1, 1)
    assert gain(CONFIG, LOAD, devices, found) == 0


def test_more_devices_are_not_always_faster():
    devices, equal = [Device(1e9, 1e9)] * 8, lambda some: (1,) * len(some)
    found = predict_numbers(CONFIG, LOAD, devices, equal, lambda number: 0.1 * (number - 1))
    assert list(found) == list(range(1, 9))
    assert all(p.shares == (1,) * number for number, p in found.items())
    best = fastest(found)
    assert 1 < best < 8 and found[best].seconds < min(found[1].seconds, found[8].seconds)
    assert found[1].network == 0
    free = predict_numbers(CONFIG, LOAD, devices, equal, lambda number: 0.0)
    assert fastest(free) == 8


def test_numbers_that_do_not_fit_are_not_the_fastest():
    small = Device(1e9, 1e9, 0.01 * weights(CONFIG), 0.1 * weights(CONFIG), 1e6)
    found = predict_numbers(CONFIG, LOAD, [small] * 12, lambda some: (1,) * len(some),
                            lambda number: 100.0 * number)  # fmt: skip
    assert not found[2].fits and fastest(found) == min(n for n in found if found[n].fits) > 2
    assert fastest({2: found[2]}) is None


def test_of_many_devices_some_numbers_are_left_out():
    found = predict_numbers(CONFIG, LOAD, [Device(1e9, 1e9)] * 500,
                            lambda some: (1,) * len(some), lambda number: 0.0)  # fmt: skip
    numbers = list(found)
    assert numbers[:16] == list(range(1, 17)) and numbers[-1] == 500 and len(numbers) <= 42
    assert all(a < b <= 1.3 * a + 1 for a, b in pairwise(numbers))
