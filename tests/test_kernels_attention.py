"""Attention over pages against its NumPy twin, and the same bits in whatever company and window."""

import numpy as np
import pytest

from tpimpi.kernels import activation, append, attention, reference, scratch, softmax, variants

RANDOM = np.random.default_rng(5)


def normal(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def bits(array):
    return array.view(np.uint32)


def pages(head_dim, kv_heads, lengths):
    """Return filled pages of sequences of these lengths, scattered over the pool."""
    per_slot = max(-(-n // attention.PAGE) for n in lengths)
    count = per_slot * len(lengths)
    padded = -(-head_dim // 16) * 16
    keys = np.zeros((count, kv_heads, head_dim, attention.PAGE), np.float32)
    values = np.zeros((count, kv_heads, attention.PAGE, padded), np.float32)
    table = RANDOM.permutation(count).astype(np.int32).reshape(len(lengths), per_slot)
    for slot, length in enumerate(lengths):
        positions = np.arange(length, dtype=np.int32)
        slots = np.full(length, slot, np.int32)
        k, v = normal(length, kv_heads, head_dim), normal(length, kv_heads, head_dim)
        twins = keys.copy(), values.copy()
        append.append_kv(k, v, keys, values, table, positions, slots, 2)
        reference.append_kv(k, v, *twins, table, positions, slots, 2)
        assert (twins[0] == keys).all() and (twins[1] == values).all()
    return keys, values, table


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_append_kv_in_any_order(threads):
    """Decoding sequences and prompts, mixed: tokens that follow each other and such that don't."""
    tokens, slots = 3 * variants.MANY, RANDOM.integers(0, 2, 3 * variants.MANY).astype(np.int32)
    slots[20:70] = 1
    positions = np.empty(tokens, np.int32)
    for slot in (0, 1):
        positions[slots == slot] = 50 + np.arange((slots == slot).sum())
    positions[40], positions[41] = positions[41], positions[40]
    k, v = normal(tokens, 2, 20), normal(tokens, 2, 20)
    keys, values = np.zeros((6, 2, 20, 64), np.float32), np.zeros((6, 2, 64, 32), np.float32)
    twins, table = (keys.copy(), values.copy()), np.array([[4, 0, 2], [1, 5, 3]], np.int32)
    append.append_kv(k, v, keys, values, table, positions, slots, threads)
    reference.append_kv(k, v, *twins, table, positions, slots, threads)
    assert (twins[0] == keys).all() and (twins[1] == values).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("head_dim", [6, 12, 32, 128])
def test_attention(head_dim, threads):
    lengths, kv_index = (1, 64, 65, 200), np.array([0, 0, 1, 2, 2], np.int32)
    keys, values, table = pages(head_dim, 3, lengths)
    slots = np.concatenate([np.full(n, s, np.int32) for s, n in enumerate(lengths)])
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    q = normal(len(slots), 5, head_dim) * 3
    out, twin, scale = np.empty_like(q), np.empty_like(q), np.float32(head_dim**-0.5)
    arguments = (keys, values, table)
    attention.attention(q, *arguments, positions, slots, out, kv_index, scale, threads)
    reference.attention(q, *arguments, positions, slots, twin, kv_index, scale, threads)
    np.testing.assert_allclose(out, twin, atol=2e-5)
    for t in (0, 30, 64, 129, len(slots) - 1):
        alone, at = np.empty((1, 5, head_dim), np.float32), slice(t, t + 1)
        attention.attention(
            q[at].copy(), *arguments, positions[at], slots[at], alone, kv_index, scale, 1
        )
        assert (alone[0] == out[t]).all()


def test_attention_bits_do_not_depend_on_company():
    """Unwritten places of pages hold NaN here: no row may read beyond its own last position."""
    lengths, kv_index = (3, 64, 130), np.array([0, 0, 0, 0, 0, 1, 1], np.int32)
    keys, values, table = pages(80, 2, lengths)
    slots = np.repeat(np.arange(3, dtype=np.int32), lengths)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    for slot, length in enumerate(lengths):
        for at in range(length, table.shape[1] * attention.PAGE):
            page, place = table[slot, at // attention.PAGE], at % attention.PAGE
            keys[page, :, :, place] = values[page, :, place] = np.nan
    q = normal(len(slots), 7, 80) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), 7, 80), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.1), threads)
        return out.view(np.uint32)

    everything = np.arange(len(slots))
    whole, mixed = attend(everything, 1), RANDOM.permutation(everything)
    assert np.isfinite(whole.view(np.float32)).all()
    for threads in (1, 2):
        assert (attend(everything, threads) == whole).all()
        assert (attend(mixed, threads) == whole[mixed]).all()
        for count in (1, 2, 3, 5, 31, 33, 70):
            part = everything[-count:]
            assert (attend(part, threads) == whole[part]).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (3, 3), (13, 2)])
def test_attention_bits_of_long_texts(heads, kv_heads):
    """Long texts are cut by spans of pages where pairs are few: no cut may change a bit."""
    span, lengths = softmax.SPAN * attention.PAGE, (8192, 1537)
    head_dim, kv_index = 20, (np.arange(heads) * kv_heads // heads).astype(np.int32)
    keys, values, table = pages(head_dim, kv_heads, lengths)
    ends = [0, 63, 64, span - 1, span, 4 * span + 1, 8189, 8190, 8191, 70, span, 1536]
    positions = np.array(ends, np.int32)
    slots = np.array([0] * 9 + [1] * 3, np.int32)
    q = normal(len(ends), heads, head_dim) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), heads, head_dim), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.2), threads)
        return out

    everything, twin = np.arange(len(ends)), np.empty_like(q)
    whole = attend(everything, 1)
    reference.attention(q, keys, values, table, positions, slots, twin, kv_index, 0.2, 1)
    np.testing.assert_allclose(whole, twin, atol=2e-5)
    for threads in (1, 2, 3):
        for t in everything:
            assert (bits(attend(everything[t : t + 1], threads)) == bits(whole[t])).all(), t
        for chosen in (everything, everything[5:9], everything[8:], everything[[8, 11]]):
            assert (bits(attend(chosen, threads)) == bits(whole[chosen])).all(), (threads, chosen)


@pytest.mark.parametrize("window", [1, 7, 64, 65, 200, 700, 5000])
def test_attention_sees_its_window_alone(window):
    """Pages before a window are gone, and what lies before it within a page is no longer seen."""
    lengths, kv_index, head_dim = (3, 1300, 130), np.array([0, 0, 0, 1, 1], np.int32), 20
    keys, values, table = pages(head_dim, 2, lengths)
    ends = [0, 2, *range(1180, 1300), 61, 129]
    slots = np.array([0, 0, *[1] * 120, 2, 2], np.int32)
    positions = np.array(ends, np.int32)
    gone = max(1180 - window + 1, 0) // attention.PAGE
    for page in table[1, :gone]:
        keys[page] = values[page] = np.nan
    table[1, :gone] = -1
    q = normal(len(ends), 5, head_dim) * 3

    def attend(chosen, threads):
        out = np.empty((len(chosen), 5, head_dim), np.float32)
        arguments = (q[chosen], keys, values, table, positions[chosen], slots[chosen], out)
        attention.attention(*arguments, kv_index, np.float32(0.2), threads, window)
        return out

    everything, twin = np.arange(len(ends)), np.empty_like(q)
    whole = attend(everything, 1)
    reference.attention(q, keys, values, table, positions, slots, twin, kv_index, 0.2, 1, window)
    np.testing.assert_allclose(whole, twin, atol=2e-5)
    for threads in (1, 2, 3):
        for t in (0, 1, 2, 50, 121, 122, 123):
            assert (bits(attend(everything[t : t + 1], threads)) == bits(whole[t])).all(), t
        for chosen in (everything, everything[100:], everything[118:123], everything[::-7]):
            assert (bits(attend(chosen, threads)) == bits(whole[chosen])).all(), (threads, chosen)


def test_scratch_is_taken_once():
    """Memory that was planned for the largest call serves all smaller ones."""
    sizes = [attention.scratch_floats(t, 8, 1, 128, 8192, 2) for t in (1, 512)]
    floats = max(sizes)
    assert min(sizes) > 0
    memory = scratch.scratch(floats)
    assert scratch.scratch(floats // 2) is memory


def test_a_nan_is_never_hidden():
    keys, values, table = pages(32, 1, (10,))
    keys[table[0, 0], 0, :, 3] = np.nan
    out, zero = np.zeros((1, 1, 32), np.float32), np.zeros(1, np.int32)
    attention.attention(
        np.ones_like(out), keys, values, table, zero + 9, zero, out, zero, np.float32(1), 1
    )
    assert np.isnan(out).all()
    x = np.array([[np.nan, 1]], np.float32)
    activation.silu_gate(x, np.ones_like(x), 1)
    assert np.isnan(x[0, 0]) and np.isfinite(x[0, 1])
