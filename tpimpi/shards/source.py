"""What a command works on: the model's directory, its partition over the ranks, its shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tpimpi import status
from tpimpi.checkpoint.hub import local_directory
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.ratio import fixed_shares, shares_of
from tpimpi.shards.conversion import ensure_shards
from tpimpi.shards.layout import Identity, shards_folder
from tpimpi.shards.request import DEFAULT, ShardRequest
from tpimpi.shards.shard import Shard

LONG_NAP = 0.02  # seconds


def check_folder(folder: Path) -> None:
    """Refuse a file where a folder of shards should be."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; it must be a folder for shards, see --save-dir")


class Source:
    """A model: config and partition everywhere, directory and checkpoint on rank 0 (collective).

    `model` is a path, or names a model on the Hugging Face hub, see `local_directory`. Where the
    ranks are to be measured first, shares are equal until then. Raises UserError.
    """

    sparse = False  # its weights are there, see SyntheticSource

    def __init__(self, group: Group, model: str | Path, request: ShardRequest = DEFAULT):
        local = request.local
        self._local = None if local is None else (local or model)
        self.directory: Path | None = None
        self.checkpoint: Checkpoint | None = None
        config = None
        with group.together():
            try:
                if group.rank == 0:
                    self.directory = local_directory(model)
            finally:  # a download may take hours, in which the others sleep
                group.rest_until(group.comm.Ibarrier().Test, LONG_NAP)
        with group.together():
            if group.rank == 0:
                config = ModelConfig.from_directory(self.directory)
                self.checkpoint = Checkpoint(self.directory, config)
                config = self.checkpoint.config
        if self.checkpoint:
            for warning in self.checkpoint.warnings:
                say(warning)
        told = None
        if self.checkpoint:
            encodings = {name: t.encoding for name, t in self.checkpoint.tensors.items()}
            told = config.to_json(), self.checkpoint.fingerprint, encodings
        text, self.fingerprint, self._encodings = group.comm.bcast(told)
        self.config = ModelConfig.from_json(text)
        self.save_dir = Path(request.folder) if request.folder else None
        with group.together():
            self.cut(shares_of(fixed_shares(request.ratio), group.size))

    def cut(self, shares: Sequence[int]) -> None:
        """Cut the model in this proportion from now on; the same on all ranks."""
        self.keep(Partition.of(self.config, shares))

    def keep(self, partition: Partition) -> None:
        """Let the model be cut like this from now on; the same on all ranks."""
        self.partition = partition
        self.folder = self.save_dir or shards_folder(self.fingerprint, partition)

    def encoding_of(self, source: str) -> str:
        """Return the encoding of a tensor by its name in the checkpoint."""
        return self._encodings[source]

    def identity(self, group: Group) -> Identity:
        """Return what this rank's shard must agree on."""
        cut, config = self.partition.to_json(), self.config.to_json()
        return Identity(self.fingerprint, cut, group.rank, group.size, config)

    def shard(self, group: Group, again: bool = False) -> tuple[Shard, bool]:
        """Open this rank's shard, cutting the checkpoint where it is missing (collective).

        With `again` it is cut whether missing or not. Returns the shard and whether any rank's was
        cut now.
        """
        with group.together():
            check_folder(self.folder)
        then = "starts over" if again else "goes on with what is there"
        status.current.begin("making its shard", f"the same command {then}", unfinished=True)
        found = ensure_shards(
            group, self.config, self.partition, self.checkpoint, self.folder, again,
            replace=self.save_dir is None, local=self._local,
        )  # fmt: skip
        status.current.begin("loading the model", "the same command starts with the shards there")
        return found
