"""The filters, one by one and in order, and that a seed gives the same tokens."""

import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.engine.needs import SAMPLING_BYTES
from tpimpi.engine.sampler import Sampler, SamplingSettings
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import MachineError

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))


def drawn(count=3000, history=(), logits=LOGITS, **settings):
    sampler = Sampler(SamplingSettings(**({"top_p": 1.0} | settings)))
    found = np.array([sampler.sample(logits, history) for _ in range(count)])
    return np.bincount(found, minlength=len(logits)) / count


def test_plain_sampling_follows_the_probabilities():
    np.testing.assert_allclose(drawn(), np.exp(LOGITS), atol=0.03)


def test_greedy_takes_the_first_of_equals():
    sampler = Sampler(SamplingSettings(temperature=0))
    assert sampler.sample(np.array([1, 3, 3, 2], np.float32), []) == 1


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {1, 2}),
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.6}, {1, 2}),
        ({"top_k": 3, "top_p": 0.4, "min_p": 0.1}, {1}),
    ],
)
def test_filters(settings, kept):
    assert set(np.flatnonzero(drawn(500, **settings))) == kept


def test_temperature_sharpens_before_top_p():
    assert set(np.flatnonzero(drawn(500, temperature=0.1, top_p=0.9))) == {1}


def test_repeat_penalty_weakens_what_was_seen():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    sampler = Sampler(SamplingSettings(temperature=0, repeat_penalty=1.5))
    assert sampler.sample(logits, [0]) == 1
    assert logits[0] == 2.0  # the caller's logits stay


def test_penalties_count_what_was_made():
    logits = np.array([2.0, 1.9, 1.8], np.float32)
    sampler = Sampler(SamplingSettings(temperature=0, frequency_penalty=0.15))
    assert [sampler.sample(logits, [2, 2, 2]) for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    sampler = Sampler(SamplingSettings(temperature=0, presence_penalty=0.15))
    assert [sampler.sample(logits, []) for _ in range(4)] == [0, 1, 0, 0]


def test_a_bias_forbids_and_forces():
    logits = np.array([2.0, 1.9, 1.8], np.float32)
    for bias, kept in (((0, -100.0),), {1, 2}), (((2, 100.0),), {2}):
        assert set(np.flatnonzero(drawn(200, logits=logits, logit_bias=bias))) == kept


def test_no_bias_is_none_at_all():
    for nothing in (None, {}, []):
        assert GenerationSettings.of(logit_bias=nothing).sampling.logit_bias == ()


def test_seeds():
    a, b, c = (Sampler(SamplingSettings(seed=s)) for s in (1, 1, 2))
    logits = np.zeros(1001, np.float32)
    first = [a.sample(logits, []) for _ in range(20)]
    assert first == [b.sample(logits, []) for _ in range(20)]
    assert first != [c.sample(logits, []) for _ in range(20)]


def reference(logits, history, s, random, made=()):
    """Sample in the plainest way: everything sorted, in float64."""
    scores = logits.astype(np.float64)
    for token, bias in s.logit_bias:
        scores[token] += bias
    if s.repeat_penalty != 1.0 and len(history):
        seen = np.unique(np.asarray(history))
        values = scores[seen]
        scores[seen] = np.where(values > 0, values / s.repeat_penalty, values * s.repeat_penalty)
    for token in set(made):
        scores[token] -= s.presence_penalty + s.frequency_penalty * made.count(token)
    if s.temperature == 0:
        return int(scores.argmax())
    scores /= s.temperature
    if 0 < s.top_k < len(scores):
        scores[scores < np.sort(scores)[-s.top_k]] = -np.inf
    weights = np.exp(scores - scores.max())
    probabilities = weights / weights.sum()
    if s.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")  # the lower id first on a tie
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[1:][before[1:] >= s.top_p]] = 0.0  # the first always stays
    if s.min_p > 0:
        probabilities[probabilities < s.min_p * probabilities.max()] = 0.0
    cumulative = np.cumsum(probabilities)
    at = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return int(min(at, np.flatnonzero(probabilities)[-1]))


def made_logits(kind, size, random):
    """Return logits [V] as models give them, and as they hardly ever do."""
    normal = random.standard_normal(size)
    logits = {
        "gauss": normal * 3,
        "flat": normal * 0.05,
        "equal": np.zeros(size),
        "ties": np.round(normal * 2),
        "peaked": normal + 30 * (np.arange(size) == size // 2),
        "two": np.where(random.random(size) < 0.5, 1.0, 2.0),
        "steep": -np.arange(size) * 0.7,
        "huge": normal * 1e37,
        "tiny": normal * 1e-40,
        "masked": np.where(random.random(size) < 0.9, -np.inf, normal),
    }[kind].astype(np.float32)
    if not np.isfinite(logits).any():
        logits[-1] = 0.0
    return logits


KINDS = ("gauss", "flat", "equal", "ties", "peaked", "two", "steep", "huge", "tiny", "masked")
SETTINGS = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([1.0, 0.0, 0.01, 0.7, 1.5, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 1000, 10**9]),
    top_p=st.one_of(
        st.sampled_from([0.9, 1.0, 0.0, 1e-9, 0.5, 1 - 1e-9, 1 - 2**-53]), st.floats(0, 1)
    ),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repeat_penalty=st.sampled_from([1.0, 1.1, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, 2.0, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -1.0]),
    logit_bias=st.sampled_from([(), ((0, 5.0),), ((0, -100.0),)]),
    seed=st.integers(0, 2**40),
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 3000), SETTINGS)
def test_the_tokens_are_those_of_the_plainest_way(kind, size, chosen):
    random = np.random.default_rng(chosen.seed + 1)
    logits = made_logits(kind, size, random)
    history = random.integers(0, size, 20).tolist()
    sampler, same_seed, expected = Sampler(chosen), np.random.default_rng(chosen.seed), []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(5):
            expected.append(reference(logits, history, chosen, same_seed, expected))
    assert [sampler.sample(logits, history) for _ in range(5)] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32_000, 128_256])
def test_large_vocabularies(kind, size):
    random = np.random.default_rng(7)
    logits = made_logits(kind, size, random)
    history = random.integers(0, size, 500).tolist()
    for more in ({}, {"top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1, "temperature": 0.7}):
        chosen = SamplingSettings(**more)
        sampler, same_seed = Sampler(chosen), np.random.default_rng(chosen.seed)
        for _ in range(3):
            expected = reference(logits, history, chosen, same_seed)
            assert sampler.sample(logits, history) == expected


def fastest(action):
    times = []
    for _ in range(9):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def test_sampling_does_not_sort_the_vocabulary():
    chosen, size = SamplingSettings(), 128_256
    logits = made_logits("gauss", size, np.random.default_rng(3))
    sampler, random = Sampler(chosen), np.random.default_rng(3)
    plain = fastest(lambda: reference(logits, [], chosen, random))
    assert fastest(lambda: sampler.sample(logits, [])) < plain / 3


@pytest.mark.parametrize("kind", ["gauss", "flat", "equal"])
def test_sampling_takes_the_memory_of_its_account(kind):
    size = 128_256
    logits = made_logits(kind, size, np.random.default_rng(3))
    chosen = SamplingSettings(top_k=size - 1, min_p=1e-9, repeat_penalty=1.1)
    sampler = Sampler(chosen)
    tracemalloc.start()
    try:
        sampler.sample(logits, range(1000))
        sampler.sample(logits, range(1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= SAMPLING_BYTES * size


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits", [[0, np.nan, 1], [0, np.inf, 1], [np.nan] * 3, [-np.inf] * 3, [np.inf, np.nan, 0]]
)
def test_logits_that_are_no_numbers_are_told(logits, temperature):
    sampler = Sampler(SamplingSettings(temperature=temperature))
    with pytest.raises(MachineError, match=r"not numbers \(.*weights of this checkpoint"):
        sampler.sample(np.array(logits, np.float32), [])


@pytest.mark.parametrize("temperature", [1e-310, 5e-324, 1e-307, 1e-300, 1e-200])
def test_a_vanishing_temperature_is_greedy(temperature):
    sampler = Sampler(SamplingSettings(temperature=temperature, top_p=1.0))
    rows = [
        [1, 3.5, 3.4999998],
        [-3e38, -2, -1],
        [-np.inf, 1e-45, 0],
        [0, 3e38, -3e38],
        [-9, 0, -9],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in np.array(rows, np.float32):
            assert sampler.sample(row, [0, 1]) == row.argmax()
