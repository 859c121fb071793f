"""Panels: sixteen rows side by side, padded with zeros, and back to the same rows."""

import numpy as np
import pytest

from tpimpi.model.encoding import ENCODINGS, ROWS, panel_count

SHAPES = [(1, 1), (15, 7), (16, 64), (17, 2048), (33, 8191), (700, 352), (40, 20_000), (5000, 3)]


def raw(encoding, rows, columns):
    """Return every kind of bits, NaN among them."""
    bits = np.random.default_rng(rows).integers(0, 1 << 32, (rows, columns), np.uint32)
    return bits.astype(f"u{encoding.storage.itemsize}").view(encoding.storage)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_panel_has_sixteen_rows_side_by_side(name, shape):
    encoding, (count, columns) = ENCODINGS[name], shape
    rows = raw(encoding, count, columns)
    panels = encoding.pack(rows)
    assert panels.dtype == np.uint8 and panels.flags.c_contiguous
    assert panels.shape == (panel_count(count, columns), encoding.panel_bytes(columns))
    bits = panels.view(f"u{encoding.storage.itemsize}")
    bits = bits.reshape(-1, *encoding.panel_shape(columns))  # [P, K, ROWS]
    for n in range(len(bits) * ROWS):
        expected = rows[n].view(bits.dtype) if n < count else 0
        np.testing.assert_array_equal(bits[n // 16, :, n % 16], expected)
    again = encoding.unpack(panels, count, columns)
    assert again.dtype == encoding.storage and again.flags.c_contiguous
    assert again.tobytes() == rows.tobytes()


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_that_lie_apart_are_packed_as_others(name):
    """As columns of a wider matrix do: a rank's piece of o_proj and down_proj."""
    encoding = ENCODINGS[name]
    wide = raw(encoding, 100, 999)
    for columns in (slice(0, 1), slice(17, 400), slice(990, None)):
        part = wide[:, columns]
        np.testing.assert_array_equal(encoding.pack(part), encoding.pack(part.copy()))


@pytest.mark.parametrize(
    ("shape", "panels"), [((0, 5), 0), ((5, 0), 0), ((16, 1), 1), ((17, 1), 2)]
)
def test_a_matrix_without_rows_or_columns_has_no_panels(shape, panels):
    assert panel_count(*shape) == panels
    if panels == 0:
        assert ENCODINGS["bf16"].pack(np.zeros(shape, np.uint16)).size == 0
