"""The filters, one by one and in order, and that a seed gives the same tokens."""

import numpy as np
import pytest

from tpimpi.engine.sampler import Sampler, SamplingSettings

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


def test_seeds():
    a, b, c = (Sampler(SamplingSettings(seed=s)) for s in (1, 1, 2))
    logits = np.zeros(1001, np.float32)
    first = [a.sample(logits, []) for _ in range(20)]
    assert first == [b.sample(logits, []) for _ in range(20)]
    assert first != [c.sample(logits, []) for _ in range(20)]
