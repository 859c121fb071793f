"""Products over panels against NumPy: the same bits in whatever company, by whatever tiles."""

import ctypes
import mmap

import numpy as np
import pytest

from tpimpi.kernels import panels, reference, tiling, tuning, widening
from tpimpi.kernels.matmul import BATCH, MATRICES, matmul, scratch_floats, thread_floats
from tpimpi.model.encoding import ENCODINGS, ROWS

RANDOM = np.random.default_rng(7)


def normal(*shape):
    return RANDOM.standard_normal(shape, dtype=np.float32)


def packed(values, encoding):
    """Return a matrix [N, K] as panels, and the numbers that these hold, as float32."""
    kind = ENCODINGS[encoding]
    raw = kind.narrow(values)
    return kind.pack(raw), kind.widen(raw)


def bits(array):
    return array.view(np.uint32)


def in_order(x, w):
    """Return x w.T by the documented order, in NumPy: each product and sum rounded once.

    Chunks of CHUNK columns in sequence from zero, then the chunks in sequence. A float64 holds the
    product of two float32 exactly; with numbers of few bits, also the sum with a third.
    """
    total = np.zeros((len(x), len(w)), np.float32)
    for start in range(0, x.shape[1], panels.CHUNK):
        chunk = np.zeros_like(total)
        for k in range(start, min(start + panels.CHUNK, x.shape[1])):
            exact = np.multiply.outer(x[:, k].astype(np.float64), w[:, k].astype(np.float64))
            chunk = (chunk + exact).astype(np.float32)
        total += chunk
    return total


def test_the_rows_of_a_panel_are_the_same_everywhere():
    assert panels.ROWS == ROWS


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_matmul(encoding, threads):
    for tokens, rows, columns in [
        (1, 1, 1), (1, 5, 7), (2, 3, 16), (3, 17, 64), (5, 4, 31), (7, 33, 50), (13, 3, 40),
        (70, 41, 129), (4, 9, 0), (0, 4, 8), (3, 0, 8), (1, 64, 4096), (40, 1, 1), (20, 9, 0),
        (33, 0, 8), (131, 70, 2085), (25, 16, 256), (2, 81, 257), (BATCH + 3, 35, 511),
    ]:  # fmt: skip
        x = normal(tokens, columns)
        w, wide = packed(normal(rows, columns), encoding)
        full = np.full((tokens, rows + 3), np.float32(7))  # the output's rows may be strided
        twin = np.zeros((tokens, rows), np.float32)
        matmul(x, [(w, full[:, 1 : rows + 1])], threads, encoding)
        reference.matmul(x, wide, twin)
        np.testing.assert_allclose(full[:, 1 : rows + 1], twin, atol=2e-5 * (columns + 1) ** 0.5)
        assert (full[:, 0] == 7).all() and (full[:, rows + 1 :] == 7).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_elements_are_summed_in_the_documented_order(encoding):
    """Numbers of 8 bits: a product has 16, and float64 adds it to a float32 without rounding."""

    def short(*shape):
        return (bits(normal(*shape)) & 0xFFFF0000).view(np.float32)

    for columns in (1, 255, 256, 257, 700):
        x, values = short(9, columns), short(21, columns)
        w, wide = packed(values, encoding)
        wide = (bits(wide) & 0xFFFF0000).view(np.float32) if encoding == "f32" else wide
        out = np.empty((9, 21), np.float32)
        matmul(x, [(w, out)], 1, encoding)
        assert (bits(out) == bits(in_order(x, wide))).all(), columns


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("columns", [1, 15, 203, 1024, 2115])
def test_bits_do_not_depend_on_company(encoding, columns):
    """One token alone is the measure: no batch, tile or number of threads changes a bit of it."""
    tokens, rows = BATCH + 23, 65
    x = normal(tokens, columns)
    w, _ = packed(normal(rows, columns), encoding)
    alone = np.empty((tokens, rows), np.float32)
    for t in range(tokens):
        matmul(x[t : t + 1], [(w, alone[t : t + 1])], 1, encoding)
    counts = {*range(1, 27), 48, 49, 64, BATCH - 1, BATCH, BATCH + 1, tokens}
    for threads in (1, 2, 3):
        for count in counts:
            part = np.empty((count, rows), np.float32)
            matmul(x[-count:], [(w, part)], threads, encoding)
            assert (bits(part) == bits(alone[-count:])).all(), (count, threads)
    for step in (1, 2, 3, 5):  # panels of a tile of the tape
        for count in (1, 7, tokens):
            tiled = np.empty((count, rows), np.float32)
            for panel in range(0, len(w), step):
                row = panel * ROWS
                part = w[panel : panel + step]
                matmul(x[:count], [(part, tiled[:, row : row + step * ROWS])], 2, encoding)
            assert (bits(tiled) == bits(alone[:count])).all(), (count, step)


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_the_tiles(threads):
    """Whether a chunk is widened before or in each tile, and for few or many panels at a time."""
    columns, rows = 300, 85
    w, _ = packed(normal(rows, columns), "bf16")
    for tokens in (1, 2, 3, 6, 7, 24, 25, 61, BATCH + 1, BATCH + 4, 2 * BATCH + 3):
        x = normal(tokens, columns)
        usual = np.empty((tokens, rows), np.float32)
        matmul(x, [(w, usual)], 1, "bf16")
        for how in tiling.candidates(tokens):
            out = np.empty((tokens, rows), np.float32)
            matmul(x, [(w, out)], threads, "bf16", how)
            assert (bits(out) == bits(usual)).all(), (tokens, how)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 5, BATCH + 1])
def test_several_matrices_in_one_call(threads, tokens):
    columns, sizes = 77, (33, 0, 130)
    x = normal(tokens, columns)
    matrices = [packed(normal(rows, columns), "f16")[0] for rows in sizes]
    for count in range(1, MATRICES + 1):
        outs = [np.full((tokens, rows), np.float32(np.nan)) for rows in sizes[:count]]
        matmul(x, list(zip(matrices, outs, strict=False)), threads, "f16")
        for w, out in zip(matrices, outs, strict=False):
            alone = np.empty_like(out)
            matmul(x, [(w, alone)], 1, "f16")
            assert (bits(out) == bits(alone)).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_matrices_without_panels_before_others(threads):
    """A rank's matrices without rows come from the tape as nothing, without bytes of a panel."""
    x = normal(3, 77)
    w, _ = packed(normal(33, 77), "f16")
    alone, out = np.empty((2, 3, 33), np.float32)
    matmul(x, [(w, alone)], 1, "f16")
    nothing = np.empty((0, 0), np.uint8), np.empty((3, 0), np.float32)
    matmul(x, [nothing, nothing, (w, out)], threads, "f16")
    assert (bits(out) == bits(alone)).all()
    matmul(x, [nothing], threads, "f16")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_behind_the_last_panel_is_read(encoding):
    """Whatever panels a tile lacks: a page follows whose reading would end the process."""
    for count in range(1, 2 * tiling.MOST_SIDE):
        w, _ = packed(normal(16 * count, 2048), encoding)
        memory = mmap.mmap(-1, w.nbytes + mmap.PAGESIZE)
        guarded = np.frombuffer(memory, np.uint8)
        end = ctypes.c_void_p(guarded.ctypes.data + w.nbytes)
        assert ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        there = guarded[: w.nbytes].reshape(w.shape)
        there[...] = w
        for tokens in (1, 2, 7, 26):
            x, (expected, out) = normal(tokens, 2048), np.empty((2, tokens, 16 * count), np.float32)
            matmul(x, [(w, expected)], 1, encoding)
            matmul(x, [(there, out)], 1, encoding)
            assert (bits(out) == bits(expected)).all()


def test_the_error_is_small_where_many_columns_are_summed():
    """Below that of NumPy's own product: 28672 columns are what a 70B model sums."""
    x, values = normal(3, 28672), normal(32, 28672)
    w, wide = packed(values, "f32")
    out = np.empty((3, 32), np.float32)
    matmul(x, [(w, out)], 1, "f32")
    exact = x.astype(np.float64) @ wide.T.astype(np.float64)
    size = np.sqrt(np.mean(exact**2))
    error = np.sqrt(np.mean((out - exact) ** 2)) / size
    assert error < 5e-7, error  # 16 lanes: 8e-7, one chain: 3e-6


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_specials_touch_only_their_own_row(special):
    x = normal(40, 37)
    w, _ = packed(normal(9, 37), "f32")
    expected, out = np.empty((40, 9), np.float32), np.empty((40, 9), np.float32)
    matmul(x, [(w, expected)], 1, "f32")
    x[17, 36] = special
    matmul(x, [(w, out)], 1, "f32")
    assert not np.isfinite(out[17]).any()
    assert (np.delete(out, 17, 0) == np.delete(expected, 17, 0)).all()


def test_bf16_specials():
    raw = np.array([[0x7F80, 0, 0], [0xFF80, 0, 0], [0x0001, 0, 0], [0x8000, 0, 0]], np.uint16)
    out = np.empty((1, 4), np.float32)
    matmul(np.ones((1, 3), np.float32), [(ENCODINGS["bf16"].pack(raw), out)], 1, "bf16")
    assert out[0, 0] == np.inf and out[0, 1] == -np.inf and out[0, 3] == 0
    assert out[0, 2] == np.array([0x00010000], np.uint32).view(np.float32)[0]


def test_an_encoding_is_what_its_panels_bytes_say(monkeypatch):
    """A byte of header, then bf16 a column at a time: nothing but the entry knows of it."""
    plain = widening.WIDENINGS["bf16"]

    def load(builder, panel, column):
        return plain.load(builder, builder.add(panel, panel.type(1)), column)

    headed = widening.Widening(load, plain.column_bytes, plain.rows)
    monkeypatch.setitem(widening.WIDENINGS, "headed", headed)
    x = normal(11, 333)
    w, _ = packed(normal(75, 333), "bf16")
    with_header = np.concatenate([np.full((len(w), 1), 0xA5, np.uint8), w], axis=1)
    for threads in (1, 2):
        for tokens in (1, 4, 11):
            expected, out = np.empty((2, tokens, 75), np.float32)
            matmul(x[:tokens], [(w, expected)], threads, "bf16")
            matmul(x[:tokens], [(with_header, out)], threads, "headed")
            assert (bits(out) == bits(expected)).all()


def test_scratch_is_as_large_as_told():
    """The planner counts on it: for one token nothing is laid out."""
    sums = tiling.MOST_SIDE * ROWS
    assert scratch_floats(1, 1 << 20, 1) == sums
    assert scratch_floats(2, 64, 2) == 2 * (2 * sums + 64)
    assert scratch_floats(BATCH, 64, 2) == 2 * sums * (BATCH + panels.CHUNK) + BATCH * 64
    assert scratch_floats(BATCH, 64, 2) == scratch_floats(4 * BATCH, 64, 2)


def test_tilings_are_measured_kept_and_used():
    measured = tuning.measure("bf16", 1)
    assert set(measured) == set(tiling.SIZES)
    for size, how in measured.items():
        assert how in tiling.candidates(size)
    assert not any(how.wide for how in tuning.measure("f32", 1).values())  # it is wide already
    fields = tuning.to_json(measured)
    assert tuning.from_json(fields) == measured
    for wrong in ({"x": [1, 2, 3]}, {"1": 5}, {"1": [1, 2]}, [1, 2]):
        with pytest.raises(ValueError):
            tuning.from_json(wrong)
    assert tuning.from_json({"1": [99, 99, 99, False], "3": [*tiling.candidates(3)[0]]}) == {}


def test_the_fastest_tiles_are_chosen(monkeypatch):
    """By the shortest of their times: a slow one now and then says nothing."""
    now, calls = 0.0, {}

    def product(x, pairs, threads, encoding, how):
        nonlocal now
        key = len(x), how
        calls[key] = calls.get(key, 0) + 1
        fast = how == tiling.candidates(len(x))[-1]
        now += 9 if calls[key] in (1, 7) else 1 if fast else 2

    monkeypatch.setattr(tuning, "matmul", product)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now)
    measured = tuning.measure("bf16", 1)
    assert measured == {size: tiling.candidates(size)[-1] for size in tiling.SIZES}


def test_it_is_known_who_widens_beforehand(monkeypatch):
    wide = next(how for how in tiling.candidates(32) if how.wide)
    measured = {("bf16", True): {1: tiling.candidates(1)[0], 32: wide}}
    monkeypatch.setattr(tiling, "_measured", measured)
    assert tiling.widens("bf16", 2) and tiling.widens("bf16", 3)
    assert not tiling.widens("bf16", 1) and not tiling.widens("f16", 2)


def test_sizes_between_go_by_the_next_larger(monkeypatch):
    monkeypatch.setattr(tiling, "_measured", {})
    monkeypatch.setattr(tiling, "_chosen", {})
    guess = tiling.tiling_for(3, 1, "bf16")
    assert guess == tiling.candidates(4)[0]
    other = tiling.candidates(4)[-1]
    tiling.use({("bf16", False): {4: other}})
    assert tiling.tiling_for(3, 1, "bf16") == tiling.tiling_for(4, 1, "bf16") == other
    assert tiling.tiling_for(3, 2, "bf16") == guess
    assert tiling.tiling_for(5000, 1, "bf16") == tiling.candidates(128)[0]


def test_every_number_of_tokens_has_its_tiles(monkeypatch):
    """Whatever was measured for the next larger number, there is code for each tile of it."""
    shapes = set(panels._SHAPES)
    for size in tiling.SIZES:
        for how in tiling.candidates(size):
            monkeypatch.setattr(tiling, "_measured", {("bf16", False): {size: how}})
            monkeypatch.setattr(tiling, "_chosen", {})
            for tokens in range(1, BATCH + 1):
                side, most, _, wide = tiling.tiling_for(tokens, 1, "bf16")
                tiles = -(-tokens // most)
                if wide:  # what is widened lies behind the sums
                    assert thread_floats(tokens) >= side * ROWS * (tokens + panels.CHUNK)
                assert {(side, tokens // tiles), (side, -(-tokens // tiles))} <= shapes
