"""A rank's own copy of the checkpoint, from which it cuts its shard without being sent it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

from tpimpi.checkpoint.fingerprint import TensorHashes
from tpimpi.checkpoint.hub import cached_directory
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.errors import MachineError, UserError, describe
from tpimpi.model.config import ModelConfig
from tpimpi.shards.devices import listed

_UNUSABLE = (UserError, MachineError, OSError)


class LocalCheckpoint:
    """A checkpoint in a directory, or the hub's cache, of this machine; its tensors' hashes.

    `why` says why it can't be used; None where it can. Hashes are noted in the folder `notes`.
    """

    def __init__(self, given: str | Path, fingerprint: str, notes: Path):
        self.directory, self.checkpoint, self.hashes, self.why = Path(given), None, None, None
        try:
            self.directory = directory = cached_directory(given)
            checkpoint = Checkpoint(directory, ModelConfig.from_directory(directory))
        except _UNUSABLE as error:
            self.why = _words(error)
            return
        if checkpoint.fingerprint == fingerprint:
            self.checkpoint, self.hashes = checkpoint, TensorHashes(checkpoint, notes)
            return
        self.why = f"{directory} has fingerprint {checkpoint.fingerprint}, rank 0's {fingerprint}"
        checkpoint.close()

    def hash(self, source: str) -> bytes | None:
        """Return the hash of a tensor; None if it was not read, or this can't be used."""
        return None if self.why else self.hashes.get(source)

    @contextmanager
    def noting_failure(self):
        """Run a block in which it is read; note in `why` that it could not be."""
        try:
            yield
        except (UserError, OSError) as error:
            self.why = _words(error)

    def close(self) -> None:
        """Close its files."""
        if self.checkpoint:
            self.hashes.save()
            self.checkpoint.close()
            self.checkpoint = None


def _words(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else str(error)


def tell_unusable(group: Group, names: list[str], why: str | None) -> None:
    """Tell which ranks are sent shards though they were to cut them, and why (collective)."""
    reasons = group.comm.gather(why)
    if group.rank != 0:
        return
    for reason in dict.fromkeys(r for r in reasons if r):
        ranks = [name for name, one in zip(names, reasons, strict=True) if one == reason]
        say(f"{listed(ranks)} {'is' if len(ranks) == 1 else 'are'} sent what is missing: {reason}")
