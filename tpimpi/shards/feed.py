"""Cut a checkpoint's tensors and feed all ranks at once: read, hash, send and write overlap.

Threads read runs of rows, hash them and cut out what each rank owns; the main thread, the only one
in MPI, sends. A run is read once the ranks that it is for have room for it, so that a slow rank
keeps none of the others waiting: of several tensors in turn that one goes on whose ranks have room.
Memory is bounded by `POOL`, however many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tpimpi.checkpoint.fingerprint import TensorHashes, new_hash, origin_of
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.model.tensors import Piece
from tpimpi.shards.message import CHUNK, HEADER_BYTES, Buffers, message
from tpimpi.shards.post import Outbox, rest_until
from tpimpi.shards.writing import WriterThread

POOL = 16 << 20  # bytes of messages on their way to all ranks, and being read for them
MANY = 8  # ranks that share the pool; where there are more they take turns
THREADS = 2  # that read and hash


@dataclass(frozen=True)
class Job:
    """A piece that a rank is to get: the rank, its number of the tensor, what it owns of it."""

    rank: int
    index: int
    piece: Piece
    done: int = 0  # rows of it that the rank has already

    @property
    def start(self) -> int:
        """The row of the tensor from which on the rank needs it."""
        return self.piece.rows.start + self.done

    def needs(self, row: int) -> bool:
        """Whether the rank is to get that row of the tensor, or some of it."""
        return self.start <= row < self.piece.rows.stop and self.piece.size > 0


@dataclass
class _Tensor:
    """One tensor that is being cut: where it goes on, and what is read of it just now."""

    source: str
    jobs: list[Job]
    known: bytes | None  # its hash, if it need not be taken
    origin: bytes  # see `fingerprint.origin_of`
    rows: int
    row_bytes: int
    at: int = 0  # row
    digest: object = field(default_factory=new_hash)
    reading: Future | None = None

    def next_rows(self) -> slice:
        """Return the rows that are read next: such as are for the same ranks."""
        at, bounds = self._wanted(self.at), [self.rows]
        for job in self.jobs:
            bounds += [job.start, job.piece.rows.stop]
        end = min(at + max(1, CHUNK // max(self.row_bytes, 1)), self.rows)
        return slice(at, min([end, *(bound for bound in bounds if bound > at)]))

    def _wanted(self, at: int) -> int:
        """Return the next row that somebody needs; the hash needs all of them."""
        if self.known is None:
            return at
        later = [
            max(at, job.start) for job in self.jobs
            if job.piece.rows.stop > max(at, job.start) and job.piece.size
        ]  # fmt: skip
        return min(later, default=self.rows)

    def owners(self, rows: slice) -> list[Job]:
        """Return for whom these rows are."""
        return [job for job in self.jobs if job.needs(rows.start)]

    def nbytes(self, rows: slice, piece: Piece) -> int:
        """Return the bytes of a piece's part of these rows."""
        whole = (rows.stop - rows.start) * self.row_bytes
        if piece.columns is None:
            return whole
        return whole * piece.shape[1] // piece.tensor.shape[1]


class Feed:
    """Bring what is pending to the writers of all ranks that `jobs` name.

    `jobs` are those of each source, in the order in which they are begun. `own` is
    this rank's writer; `arrived` is told rank and bytes of what was written here or came there.
    Tensors whose hash is not known are read whole, hashed, and noted in `hashes`.
    """

    def __init__(
        self, group: Group, checkpoint: Checkpoint, hashes: TensorHashes, own: WriterThread | None,
        jobs: dict[str, list[Job]], arrived: Callable[[int, int], None],
    ):  # fmt: skip
        self._group, self._comm, self._own = group, group.comm, own
        self._checkpoint, self._hashes = checkpoint, hashes
        self._coming, self._arrived = iter(jobs.items()), arrived
        self._outbox = Outbox(group.comm, own)
        self._memory = Buffers(POOL // 4)
        self._open: list[_Tensor] = []
        self._most_open = min(max(2, group.size), MANY)
        self._on_the_way = [0] * group.size  # bytes
        self._room = POOL // self._most_open  # of one rank

    def run(self, others: list[int]) -> None:
        """Feed until all has arrived, or one of the ranks can't take it; then tell the `others`.

        Raises what reading or this rank's own writing fails with, after the others were told.
        """
        failed = None
        pool = ThreadPoolExecutor(THREADS, "shard reader")
        try:
            try:
                self._feed(pool)
            except Exception as error:  # the others wait for the end, whatever happened here
                failed = error
            for rank in others:
                self._outbox.end(rank)
            rest_until(self._nothing_left)
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self._outbox.abandon()
            raise
        if failed is not None:
            raise failed

    def _feed(self, pool: ThreadPoolExecutor) -> None:
        self._outbox.refused()  # forget what was told after the end of an earlier conversion
        self._begin()
        self._read(pool)
        while self._open or self._outbox.busy:
            rest_until(self._moves)
            self._read(pool)
            if self._own is not None and self._own.error is not None:
                raise self._own.error
            if self._outbox.refused():
                return

    def _moves(self) -> bool:
        """Return whether something has arrived or was read, so that there is room for more."""
        return self._collect() + self._post() > 0

    def _begin(self) -> None:
        """Open further tensors, as far as there may be more at a time."""
        while len(self._open) < self._most_open:
            source, jobs = next(self._coming, (None, None))
            if source is None:
                return
            tensor = self._checkpoint.weight(source)
            rows = tensor.shape[0]
            known, row_bytes = self._hashes.get(source), tensor.nbytes // max(rows, 1)
            origin = origin_of(self._checkpoint, source)
            self._open.append(_Tensor(source, jobs, known, origin, rows, row_bytes))

    def _collect(self) -> int:
        """Count what has arrived."""
        count = 0
        for rank, data in self._outbox.arrived():
            nbytes = len(data) - HEADER_BYTES
            self._on_the_way[rank] -= nbytes
            if nbytes:
                self._memory.give_back(data)
            self._arrived(rank, nbytes)
            count += 1
        return count

    def _read(self, pool: ThreadPoolExecutor) -> int:
        """Begin to read what there is room for, of those tensors first that were opened first."""
        count = 0
        for tensor in self._open:
            if tensor.reading is not None:
                continue
            rows = tensor.next_rows()
            owners = tensor.owners(rows)
            shares = {job.rank: tensor.nbytes(rows, job.piece) for job in owners}
            if any(
                self._on_the_way[rank] and self._on_the_way[rank] + nbytes > self._room
                for rank, nbytes in shares.items()
            ):
                continue
            if sum(self._on_the_way) + sum(shares.values()) > POOL and any(self._on_the_way):
                return count
            for job in owners:
                self._on_the_way[job.rank] += tensor.nbytes(rows, job.piece)
            tensor.at = rows.stop
            tensor.reading = pool.submit(self._cut, tensor, rows)
            count += 1
        return count

    def _cut(self, tensor: _Tensor, rows: slice) -> list[tuple[int, np.ndarray]]:
        """Read rows, hash them, and return what each rank is to get of them (in a thread)."""
        if rows.start == rows.stop:
            return []
        owners, count = tensor.owners(rows), rows.stop - rows.start
        cut = [
            (job.rank, message(
                job.index, count, tensor.nbytes(rows, job.piece), tensor.origin, self._memory
            ))
            for job in owners
        ]  # fmt: skip
        straight = len(owners) == 1 and owners[0].piece.columns is None
        whole = (
            cut[0][1][HEADER_BYTES:] if straight else self._memory.take(count * tensor.row_bytes)
        )
        data = self._checkpoint.read(tensor.source, rows, None, whole)
        if tensor.known is None:
            tensor.digest.update(whole)
        if not straight:
            for (_, one), job in zip(cut, owners, strict=True):
                columns = job.piece.columns
                part = data if columns is None else data[:, columns]
                one[HEADER_BYTES:].view(data.dtype).reshape(part.shape)[...] = part
            self._memory.give_back(whole)
        return cut

    def _post(self) -> int:
        """Send what was read, and close the tensors that have come to their end."""
        count = 0
        for tensor in [t for t in self._open if t.reading is not None and t.reading.done()]:
            for rank, one in tensor.reading.result():
                self._outbox.post(rank, one)
            tensor.reading = None
            count += 1
            if tensor.next_rows().start == tensor.rows:
                self._open.remove(tensor)
                self._complete(tensor)
        self._begin()
        return count

    def _complete(self, tensor: _Tensor) -> None:
        # Nobody may believe that these rows are what the hash is of, even after a sudden end.
        self._hashes.check_unchanged(tensor.source)
        digest = tensor.known or tensor.digest.digest()
        if tensor.known is None:
            self._hashes.put(tensor.source, digest)
        for job in tensor.jobs:
            self._outbox.post(job.rank, message(job.index, source=digest))

    def _nothing_left(self) -> bool:
        self._collect()
        return not self._outbox.busy
