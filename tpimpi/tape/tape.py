"""The weights as a tape: read ahead in the order of use, through a ring, by threads.

Panels that are kept (resident) are read on the first lap into memory of their own; the others pass
through the ring on every lap. All resident and all streamed are the two ends of the same code.
The readers run on across passes: while rank 0 samples, the next token's first tiles arrive.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tpimpi.errors import MachineError
from tpimpi.kernels.pages import huge_pages
from tpimpi.model.encoding import ROWS
from tpimpi.shards.layout import PAGE, StoredTensor
from tpimpi.shards.shard import Shard
from tpimpi.tape.directio import DirectFile
from tpimpi.tape.reads import Read, resident_reads, streamed_lap

READERS = 6  # reads in flight: enough for the disk also while other ranks have read ahead
PATIENCE = 10.0  # seconds that `close` waits for reads in flight


class Tape:
    """Serve a shard's tensors in tape order, lap after lap.

    `names` are the tensors in the order of use, which is the file's; `resident` gives the number of
    first rows to keep of each (0 where it is not named); the others pass through a ring of
    `ring_bytes`. Raises MachineError where the file can't be read as the shard tells.
    """

    def __init__(
        self, shard: Shard, names: Sequence[str], resident: Mapping[str, int], ring_bytes: int
    ):
        self._tensors = {name: shard[name] for name in names}
        offsets = [tensor.offset for tensor in self._tensors.values() if tensor.nbytes]
        if offsets != sorted(offsets):
            raise ValueError(f"the names of {shard.path}'s tape are not in the order of the file")
        lap = streamed_lap(list(self._tensors.values()), resident)
        kept = resident_reads(self._tensors.values(), resident)
        self._later, self._tiles = lap.reads, lap.tiles
        self._first = sorted((*kept, *lap.reads), key=lambda read: read.start)
        self._kept = {name: sum(r.resident == name for r in kept) for name in names}
        self._regions = {
            name: huge_pages(-(-resident[name] * self._tensors[name].panel_bytes // PAGE) * PAGE)
            for name in names
            if self._kept[name]
        }
        self._views = {
            name: _view(self._tensors[name], region, resident[name], 0)
            for name, region in self._regions.items()
        }
        empty = {n: np.empty((0, 0), np.uint8) for n, t in self._tensors.items() if not t.panels}
        # Those of which nothing streams, by name.
        self._whole = empty | {n: v for n, v in self._views.items() if not self._tiles[n]}
        total = sum(tensor.nbytes for tensor in self._tensors.values())
        self.resident_bytes = sum(read.needed for read in kept)
        self.streamed_bytes = total - self.resident_bytes  # a lap
        self.ring_bytes = max(2 * lap.largest, min(ring_bytes, lap.length))
        self._ring = huge_pages(self.ring_bytes)
        self._names = tuple(names)
        self._turn = 0  # the index of the tensor to be taken next
        self._under_way = False  # whether the parts of that tensor are being used
        self._changed = threading.Condition()
        self._next = 0  # sequence number of the read to be begun next
        self._taken = 0  # ... and of the one to be used next
        self._head = self._used = 0  # where the ring is written next; bytes of it in use
        self._spans: deque[int] = deque()  # bytes of the ring each read in it holds, in order
        self._ready: dict[int, int] = {}  # sequence number -> offset in the ring or the region
        self._error: BaseException | None = None
        self._closed = False
        self.wait_seconds = 0.0
        self.on_wait: Callable[[float, float], None] | None = None  # told begin and end of each
        self.bytes_read = 0
        self._threads: list[threading.Thread] = []
        self._file = DirectFile(shard.path, shard.fd)
        try:
            self._start(shard)
        except BaseException:
            self.close()
            raise

    def _start(self, shard: Shard) -> None:
        if not os.path.sameopenfile(self._file.fd, shard.fd):
            raise MachineError(f"{shard.path} was replaced after it was opened; start again")
        for i in range(READERS):
            thread = threading.Thread(target=self._read, name=f"tape-reader-{i}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise MachineError(
                    f"only {i} of the {READERS} threads that read weights could be started "
                    f"({error}); allow more of them (ulimit -u)"
                ) from error
            self._threads.append(thread)

    def take(self, name: str) -> Iterable[tuple[int, np.ndarray]]:
        """Return (first row, panels) of parts of the next tensor, `name`, in order.

        Panels are uint8 [P, panel_bytes], see `model.encoding`. They are valid until the next step
        of the iteration; then their memory is free for the reader. All parts must be used before
        the next tensor is taken. Raises MachineError where a read has failed, RuntimeError where
        another tensor is next.
        """
        expected = self._names[self._turn]
        if self._under_way or name != expected:
            state = "is still under way" if self._under_way else "is next"
            raise RuntimeError(f"{name} was taken from the tape, but {expected} {state}")
        if name in self._views and not self._tiles[name] and self._taken >= len(self._first):
            self._turn = (self._turn + 1) % len(self._names)
            return ((0, self._views[name]),)
        self._under_way = True
        return self._parts(self._tensors[name])

    def take_kept(self, names: Sequence[str]) -> list[np.ndarray] | None:
        """Take the next tensors, `names` in tape order, at once; return the panels of each.

        That goes where nothing of them streams and all is read. Else, or where others are next,
        None is returned and nothing is taken. A tensor without rows or columns gives no panels.
        """
        turn, whole = self._turn, self._whole
        end = turn + len(names)
        if (
            self._taken < len(self._first)
            or self._under_way
            or self._names[turn:end] != tuple(names)
            or not all(map(whole.__contains__, names))
        ):
            return None
        self._turn = end % len(self._names)
        return [whole[name] for name in names]

    def _parts(self, tensor: StoredTensor) -> Iterator[tuple[int, np.ndarray]]:
        if tensor.name in self._regions:
            if self._taken < len(self._first):
                yield from self._arriving(tensor)
            else:
                yield 0, self._views[tensor.name]
        for tile in self._tiles[tensor.name]:
            offset = self._wait()
            yield tile.panel * ROWS, _view(tensor, self._ring, tile.panels, offset + tile.at)
            if tile.last:
                self._release()
        self._turn = (self._turn + 1) % len(self._names)
        self._under_way = False

    def _arriving(self, tensor: StoredTensor) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the panels to keep as they are read, on the first lap."""
        region, size, panel = self._regions[tensor.name], tensor.panel_bytes, 0
        for _ in range(self._kept[tensor.name]):
            read = self._first[self._taken]
            self._wait()
            whole = (read.start + read.needed - tensor.offset) // size
            if whole > panel:
                yield panel * ROWS, _view(tensor, region, whole - panel, panel * size)
            panel = whole
            self._release()

    def close(self) -> None:
        """Stop the readers and close the file; who waits for weights gets a MachineError."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            self._file.close()  # else a read hangs, and keeps what it uses

    def _at(self, sequence: int) -> Read | None:
        if sequence < len(self._first):
            return self._first[sequence]
        if not self._later:
            return None
        return self._later[(sequence - len(self._first)) % len(self._later)]

    def _wait(self) -> int:
        """Return where the read to be used next lies, once it is there."""
        with self._changed:
            if self._taken not in self._ready:
                start = time.perf_counter()
                while not (self._taken in self._ready or self._error or self._closed):
                    self._changed.wait()
                end = time.perf_counter()
                self.wait_seconds += end - start
                if self.on_wait is not None:
                    self.on_wait(start, end)
            if self._error is not None:
                raise self._error
            if self._closed:
                raise MachineError("the tape of weights was closed in the middle of a pass")
            return self._ready[self._taken]

    def _release(self) -> None:
        """Go on to the next read; the memory of the last one is free if it was the ring's."""
        with self._changed:
            del self._ready[self._taken]
            if self._at(self._taken).resident is None:
                self._used -= self._spans.popleft()
                self._changed.notify_all()
            self._taken += 1

    def _place(self, read: Read) -> int | None:
        """Return where a read is to go, or None while the ring has no room."""
        if read.resident is not None:
            return read.start - self._tensors[read.resident].offset
        if not self._used:
            self._head = 0
        wrap = self._head + read.length > self.ring_bytes
        span = read.length + (self.ring_bytes - self._head if wrap else 0)
        if self._used + span > self.ring_bytes:
            return None
        offset = 0 if wrap else self._head
        self._head = offset + read.length
        self._used += span
        self._spans.append(span)
        return offset

    def _read(self) -> None:
        try:
            while True:
                with self._changed:
                    offset = None
                    while offset is None:
                        if self._closed or self._error is not None:
                            return
                        read = self._at(self._next)
                        if read is None:
                            return  # everything is resident and read
                        offset = self._place(read)
                        if offset is None:
                            self._changed.wait()
                    sequence, self._next = self._next, self._next + 1
                memory = self._ring if read.resident is None else self._regions[read.resident]
                into = memoryview(memory)[offset : offset + read.length]
                self._file.read(into, read.start, read.needed)
                with self._changed:
                    self._ready[sequence] = offset
                    self.bytes_read += read.needed
                    self._changed.notify_all()
        except BaseException as error:  # raised in the compute thread at its next wait
            with self._changed:
                self._error = error
                self._changed.notify_all()


def _view(tensor: StoredTensor, memory: mmap.mmap, panels: int, offset: int) -> np.ndarray:
    nbytes = panels * tensor.panel_bytes
    return np.frombuffer(memory, np.uint8, nbytes, offset).reshape(panels, tensor.panel_bytes)
