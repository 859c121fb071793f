"""What travels to the ranks that own pieces of tensors: messages, each a header and rows.

The header is [tensor, rows, bytes of them, 0, 4 words of hash]. No rows: the tensor has come to its
end, and the hash is that of its source. With rows the same place names their origin, so that an
interrupted run can go on after them. Tensor -1: nothing more will come. Whoever gets rows packs
them.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from tpimpi.checkpoint.fingerprint import HASH_BYTES

HEADER_BYTES = 64
CHUNK = 2 << 20  # bytes of rows in a message at most, but that one row goes whole
END = -1


class Buffers:
    """The memory of messages that have arrived, `most` bytes of it, for others of the same length.

    To get as much from the system anew would cost about as much as to send it.
    """

    def __init__(self, most: int):
        self._most, self._spare = most, deque()

    def take(self, nbytes: int) -> np.ndarray:
        """Return memory for a message (in any thread)."""
        for _ in range(len(self._spare)):
            try:
                data = self._spare.popleft()
            except IndexError:  # another thread was faster
                break
            if len(data) == nbytes:
                return data
            self._spare.append(data)
        return np.empty(nbytes, np.uint8)

    def give_back(self, data: np.ndarray) -> None:
        """Keep a message's memory, in place of that which was longest of no use."""
        self._spare.append(data)
        while sum(map(len, list(self._spare))) > self._most:
            self._spare.popleft()


def message(
    index: int, rows: int = 0, nbytes: int = 0, source: bytes = b"", memory: Buffers | None = None
) -> np.ndarray:
    """Return a message with its header, and room for `nbytes` of rows behind it."""
    nbytes += HEADER_BYTES
    data = memory.take(nbytes) if memory else np.empty(nbytes, np.uint8)
    header = data[:HEADER_BYTES].view(np.int64)
    header[:] = 0
    header[:3] = index, rows, nbytes - HEADER_BYTES
    if source:
        data[HEADER_BYTES - HASH_BYTES : HEADER_BYTES] = np.frombuffer(
            source.ljust(HASH_BYTES, b"\0"), np.uint8
        )
    return data


def header(data: np.ndarray) -> tuple[int, int, int, bytes]:
    """Return a message's tensor, rows, bytes of them, and hash."""
    index, rows, nbytes = (int(n) for n in data[:24].view(np.int64))
    return index, rows, nbytes, data[HEADER_BYTES - HASH_BYTES : HEADER_BYTES].tobytes()
