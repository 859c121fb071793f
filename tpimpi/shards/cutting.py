"""Bring what is missing of all ranks' shards to where it belongs, and tell how far it is.

A rank that has a copy of the checkpoint cuts its shard from that. It is sent those tensors whose
hashes are not those of rank 0's checkpoint. Every other rank is sent all of its shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tpimpi.checkpoint.fingerprint import TensorHashes, origin_of
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import Piece
from tpimpi.progress import DeviceProgress, Progress, Waiting
from tpimpi.shards.devices import device_names, found_sentence
from tpimpi.shards.feed import Feed, Job
from tpimpi.shards.layout import Identity
from tpimpi.shards.local import LocalCheckpoint, tell_unusable
from tpimpi.shards.receive import receive_all
from tpimpi.shards.writer import ShardWriter
from tpimpi.shards.writing import WriterThread


@dataclass(frozen=True)
class Wanted:
    """The shard that this rank is to have: where it lies, whose it is, what is in it."""

    path: Path
    identity: Identity
    pieces: list[Piece]
    encodings: list[str]  # of the pieces
    anew: bool  # whatever there is of it
    local: Path | None  # where this machine may have the checkpoint
    notes: Path  # the folder in which hashes are noted


class Cutting:
    """The cutting of the shards that are `missing`, of all ranks (collective).

    `lists` are all ranks' pieces; `true` gives the hashes of the tensors that any rank asks for,
    `hashes` are rank 0's, None elsewhere.
    """

    def __init__(
        self, group: Group, checkpoint: Checkpoint | None, hashes: TensorHashes | None,
        true: Callable[[set[str]], dict[str, bytes]], mine: Wanted, lists: list[list[Piece]],
        missing: list[bool],
    ):  # fmt: skip
        self._group, self._checkpoint, self._hashes, self._true = group, checkpoint, hashes, true
        self._mine, self._lists, self._missing = mine, lists, missing
        self._names = device_names(group)
        self._writer: ShardWriter | None = None
        self._done = [not missing[group.rank]] * len(mine.pieces)
        self._rows = [0] * len(mine.pieces)  # that are there of what is not done

    def run(self) -> None:
        """Write what is still to be written (collective)."""
        group, hashes = self._group, self._hashes
        with ExitStack() as held:
            if hashes:
                held.callback(hashes.save)
            held.callback(self._close)
            self._open()
            self._find()
            local = self._open_local(held)
            self._resume(local)
            self._tell()
            self._round(local)
            if any(group.comm.allgather(local is not None)):
                self._compare(local)
                self._round(None)
            with group.together():
                if hashes:
                    hashes.check_unchanged()
            syncing = Waiting("waiting for the disks to take the shards", group.rank)
            with syncing, group.together():
                syncing.begin()
                if self._writer:
                    self._writer.finish()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()

    def _open(self) -> None:
        """Open the writers of the missing shards."""
        group, mine, first = self._group, self._mine, self._missing.index(True)
        # One before the others: of two conversions at once that one goes on which has the first.
        for turn in (True, False):
            with group.together():
                if self._missing[group.rank] and (group.rank == first) == turn:
                    self._writer = ShardWriter(
                        mine.path, mine.identity, mine.pieces, mine.encodings, anew=mine.anew
                    )

    def _find(self) -> None:
        """Find what is there of an earlier run."""
        group, found = self._group, [None] * len(self._mine.pieces)
        checking = Waiting("waiting for ranks that check what they have", group.rank)
        with checking, group.together():
            if self._writer:
                found = self._writer.done(speaks=group.rank == 0)
            checking.begin()
        self._settle(found)

    def _tell(self) -> None:
        """Tell what is there of an earlier run."""
        group = self._group
        told = group.comm.gather((self._writer.kept, self._writer.nbytes) if self._writer else None)
        sentence = found_sentence(self._names, told) if told else None
        if sentence:
            say(sentence)

    def _settle(self, found: list[bytes | None]) -> None:
        """Take those tensors as done that were cut from the numbers that there are now."""
        mine = self._mine.pieces
        true = self._true({p.source for p, f in zip(mine, found, strict=True) if f})
        if not self._writer:
            return
        for index, (piece, source) in enumerate(zip(mine, found, strict=True)):
            self._done[index] = source is not None and source == true[piece.source]
            if not self._done[index]:
                self._writer.restart(index)

    def _resume(self, local: LocalCheckpoint | None) -> None:
        """Go on with tensors that were begun, if they were cut from files as they are now."""
        group, mine = self._group, self._mine.pieces
        begun = {} if self._writer is None else self._writer.begun
        begun = {index: note for index, note in begun.items() if not self._done[index]}
        asked = group.comm.gather({mine[index].source for index in begun})
        true = None
        if asked is not None and self._checkpoint:
            true = {s: origin_of(self._checkpoint, s) for s in sorted(set().union(*asked))}
        true = group.comm.bcast(true)
        for index, note in begun.items():
            source = mine[index].source
            now = origin_of(local.checkpoint, source) if local else true[source]
            if note.origin == now:
                self._rows[index] = self._writer.resume(index)

    def _open_local(self, held: ExitStack) -> LocalCheckpoint | None:
        """Open this machine's own checkpoint, None where it is not to be used or can't be."""
        group, mine, local = self._group, self._mine, None
        with group.together():
            if mine.local and group.rank != 0 and not all(self._done):
                local = LocalCheckpoint(mine.local, mine.identity.fingerprint, mine.notes)
                held.callback(local.close)
        tell_unusable(group, self._names, local.why if local else None)
        return local if local and local.checkpoint else None

    def _round(self, local: LocalCheckpoint | None) -> None:
        """Bring what is not done: from rank 0's checkpoint, or from this rank's own one."""
        group, left = self._group, self._left()
        takes = not all(self._done) and local is None
        there = [None if done else r for done, r in zip(self._done, self._rows, strict=True)]
        asked = group.comm.gather(there if local is None else [None] * len(there))
        hashed = group.comm.gather(self._sources() if local else set())
        lefts = group.comm.gather((takes, left))
        waiting = Waiting("waiting for ranks that write their shards", group.rank)
        with waiting, group.together(), _all_coming(group):
            if group.rank == 0:
                self._feed(self._pending(asked, set().union(*hashed)), lefts)
            elif local is not None:
                self._cut_from(local)
            elif takes:
                with self._progress("receiving its shard") as bar:
                    receive_all(group, self._writer, bar.update)
            waiting.begin()
        if takes:
            self._done = [True] * len(self._done)

    def _progress(self, title: str) -> Progress:
        """Return what notes how much of this rank's shard is there, from an earlier run, too."""
        whole = sum(self._nbytes())
        bar = Progress(title, whole, speaks=False)
        bar.update(whole - self._left())
        return bar

    def _nbytes(self) -> list[int]:
        """Return the bytes of each piece's rows."""
        mine = zip(self._mine.pieces, self._mine.encodings, strict=True)
        return [ENCODINGS[encoding].nbytes(*piece.shape) for piece, encoding in mine]

    def _left(self) -> int:
        """Return the bytes of rows that are not there yet."""
        left = 0
        for index, (piece, nbytes) in enumerate(
            zip(self._mine.pieces, self._nbytes(), strict=True)
        ):
            if not self._done[index] and nbytes:
                left += nbytes - nbytes * self._rows[index] // piece.shape[0]
        return left

    def _sources(self) -> set[str]:
        """Return the tensors of which something is not there yet."""
        return {p.source for p, done in zip(self._mine.pieces, self._done, strict=True) if not done}

    def _pending(self, there: list[list[int | None]], hashed: set[str]) -> dict[str, list[Job]]:
        """Group what is not done by source, in the order of the tape.

        Those whose hash is asked for, but not known, are there in any case.
        """
        jobs: dict[str, list[Job]] = {piece.source: [] for piece in self._lists[0]}  # it uses all
        for rank, (pieces, rows) in enumerate(zip(self._lists, there, strict=True)):
            for index, piece in enumerate(pieces):
                if rows[index] is not None:
                    jobs[piece.source].append(Job(rank, index, piece, rows[index]))
        unknown = {source for source in hashed if self._hashes.get(source) is None}
        return {source: some for source, some in jobs.items() if some or source in unknown}

    def _feed(self, jobs: dict[str, list[Job]], lefts: list[tuple[bool, int]]) -> None:
        """Send to all ranks that take something, this one among them."""
        title, names = "cutting the checkpoint", self._names
        takers = [rank for rank, (takes, _) in enumerate(lefts) if takes]
        if not jobs and not takers:
            return
        own = WriterThread(self._writer) if 0 in takers else None
        with ExitStack() as held:
            if own:
                held.callback(own.close, leave=True)
            bar = DeviceProgress(title, {names[rank]: lefts[rank][1] for rank in takers})
            held.enter_context(bar)
            feed = Feed(
                self._group, self._checkpoint, self._hashes, own, jobs,
                lambda rank, nbytes: bar.arrived(names[rank], nbytes),
            )  # fmt: skip
            feed.run([rank for rank in takers if rank != 0])

    def _cut_from(self, local: LocalCheckpoint) -> None:
        """Cut this rank's shard from its own checkpoint; note it where that can't be read."""
        rank, own, jobs = self._group.rank, WriterThread(self._writer), {}
        for index, (piece, done) in enumerate(zip(self._mine.pieces, self._done, strict=True)):
            if not done:
                job = Job(rank, index, piece, self._rows[index])
                jobs.setdefault(piece.source, []).append(job)
        with ExitStack() as held:
            held.callback(own.close, leave=True)
            bar = held.enter_context(self._progress("cutting its shard"))
            feed = Feed(
                self._group, local.checkpoint, local.hashes, own, jobs,
                lambda _, nbytes: bar.update(nbytes),
            )  # fmt: skip
            with local.noting_failure():
                feed.run([])
                local.hashes.check_unchanged()

    def _compare(self, local: LocalCheckpoint | None) -> None:
        """Take as done what was cut from a local checkpoint where the hashes agree (collective)."""
        sources = self._sources()
        true, other = self._true(sources), None
        if local is not None:
            for index, piece in enumerate(self._mine.pieces):
                if self._done[index]:
                    continue
                if local.hash(piece.source) == true[piece.source]:
                    self._done[index] = True
                else:
                    self._writer.restart(index)
                    self._rows[index] = 0
                    other = other or f"{local.directory} has another {piece.source} than rank 0's"
            other = local.why or other
        tell_unusable(self._group, self._names, other)


@contextmanager
def _all_coming(group: Group):
    """Run a block, then sleep until all ranks are through theirs (collective).

    MPI's own waiting would take a core from the rank that is waited for, where that is here.
    """
    error = None
    try:
        yield
    except Exception as e:
        error = e
    group.rest_until(group.comm.Ibarrier().Test)
    if error is not None:
        raise error
