"""A thread that packs and writes what has come, while the next comes. It is never in MPI."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from tpimpi.checkpoint.fingerprint import ORIGIN_BYTES
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.message import HEADER_BYTES, header
from tpimpi.shards.writer import ShardWriter


class WriterThread:
    """Write messages to a shard, in order. What it fails with stands in `error`.

    After an error what comes is thrown away, so that nobody waits for it.
    """

    def __init__(self, writer: ShardWriter):
        self._writer = writer
        self.error: BaseException | None = None
        self._come: queue.SimpleQueue = queue.SimpleQueue()
        self._gone: queue.SimpleQueue = queue.SimpleQueue()
        self._pending = 0  # taken and not yet yielded by `written`
        self._left = False
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something that was taken has yet to be yielded by `written`."""
        return self._pending > 0

    def take(self, data: np.ndarray) -> None:
        """Write a message's rows, or complete its tensor."""
        self._pending += 1
        self._come.put(data)

    def written(self, wait: bool = False) -> Iterator[np.ndarray]:
        """Yield the messages that are written; with `wait` one at least, if there is one."""
        while self._pending:
            try:
                data = self._gone.get(block=wait)
            except queue.Empty:
                return
            self._pending, wait = self._pending - 1, False
            yield data

    def close(self, leave: bool = False) -> None:
        """Write what was taken, or `leave` all but what is being written, and end the thread."""
        self._left = leave
        self._come.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (data := self._come.get()) is not None:
            if self.error is None and not self._left:
                try:
                    self._write(data)
                except OSError as error:
                    self.error = self._writer.failure(error)
                except BaseException as error:
                    self.error = error
            self._gone.put(data)

    def _write(self, data: np.ndarray) -> None:
        index, rows, nbytes, source = header(data)
        if rows == 0:
            self._writer.complete(index, source)
            return
        tensor = self._writer.tensors[index]
        raw = data[HEADER_BYTES : HEADER_BYTES + nbytes]
        shape = (rows, *tensor.shape[1:])
        self._writer.write(index, ENCODINGS[tensor.encoding].raw(raw, shape), source[:ORIGIN_BYTES])
