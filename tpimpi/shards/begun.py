"""How far an unfinished tensor is: a note in the place where its hash stands once it is whole."""

from __future__ import annotations

from dataclasses import dataclass

from tpimpi.checkpoint.fingerprint import HASH_BYTES
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.shards.layout import StoredTensor

BEGUN = 1 << 33  # in the place of a checksum
_ROWS, _CRC = 8, 4  # bytes of the numbers


@dataclass(frozen=True)
class Begun:
    """The first rows of a tensor: whole panels of a matrix that lies in panels.

    `crc` is the CRC-32 of their bytes; `origin` names what they were cut from, and the state that
    it was in (see `fingerprint.origin_of`).
    """

    rows: int
    crc: int
    origin: bytes

    def to_bytes(self) -> bytes:
        """Return the note, as long as a hash."""
        return self.rows.to_bytes(_ROWS, "little") + self.crc.to_bytes(_CRC, "little") + self.origin

    @classmethod
    def from_bytes(cls, data: bytes, tensor: StoredTensor) -> Begun | None:
        """Return what a note says; None where it can't be one of that tensor."""
        rows, crc = (int.from_bytes(part, "little") for part in (data[:_ROWS], data[_ROWS:][:_CRC]))
        found = cls(rows, crc, data[_ROWS + _CRC : HASH_BYTES])
        whole = len(tensor.shape) == 2 and 0 < rows < tensor.shape[0]
        return found if whole and rows % _unit(tensor) == 0 else None


def _unit(tensor: StoredTensor) -> int:
    return ROWS if tensor.in_panels else 1


def _unit_bytes(tensor: StoredTensor) -> int:
    if tensor.in_panels:
        return tensor.panel_bytes
    return ENCODINGS[tensor.encoding].nbytes(*tensor.shape[1:])


def bytes_of_rows(tensor: StoredTensor, rows: int) -> int:
    """Return the bytes of the first rows, a whole number of panels, of a matrix."""
    return rows // _unit(tensor) * _unit_bytes(tensor)


def rows_of_bytes(tensor: StoredTensor, nbytes: int) -> int:
    """Return how many rows of a tensor its first bytes are; 0 where that is all of it, or none."""
    if len(tensor.shape) != 2 or not 0 < nbytes < tensor.nbytes:
        return 0
    return nbytes // _unit_bytes(tensor) * _unit(tensor)
