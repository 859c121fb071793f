"""Take what rank 0 sends of a shard: the next messages come while the last ones are written."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.model.encoding import ENCODINGS
from tpimpi.shards.message import CHUNK, END, header
from tpimpi.shards.post import RECEIVES, STOP, Inbox, rest_until
from tpimpi.shards.writer import ShardWriter
from tpimpi.shards.writing import WriterThread


def receive_all(group: Group, writer: ShardWriter, arrived: Callable[[int], None]) -> None:
    """Write what rank 0 sends, until it says that nothing more will come.

    `arrived` is told the bytes of each message. A rank that fails to write tells rank 0 at once,
    and raises once that has stopped: MachineError.
    """
    inbox, thread = Inbox(group.comm, _longest(writer)), WriterThread(writer)
    told = None

    def ready() -> bool:
        for data in thread.written():
            inbox.give_back(data)
        return not inbox.empty and inbox.ready()

    try:
        ends = 0
        while ends < RECEIVES:
            # Waiting in MPI would take a core from rank 0, where that is on this machine.
            rest_until(ready)
            data = inbox.take()
            index, _, nbytes, _ = header(data)
            if index == END:
                ends += 1
                continue
            thread.take(data)
            arrived(nbytes)
            if thread.error is not None and told is None:
                told = group.comm.Isend(np.zeros(1, np.uint8), dest=0, tag=STOP)
        thread.close()
    except BaseException:
        thread.close(leave=True)
        inbox.abandon()
        raise
    if told is not None:
        told.Wait()
    if thread.error is not None:
        raise thread.error


def _longest(writer: ShardWriter) -> int:
    """Return the bytes of rows in the longest message that may come: one row at least."""
    return max(
        CHUNK, *(ENCODINGS[t.encoding].nbytes(math.prod(t.shape[1:])) for t in writer.tensors)
    )
