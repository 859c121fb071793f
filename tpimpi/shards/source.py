"""What a command works on: the model directory, its partition over the ranks, its shards."""

from __future__ import annotations

from pathlib import Path

from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.paths import cache_directory
from tpimpi.shards.conversion import ensure_shards
from tpimpi.shards.shard import Shard


class Source:
    """A model directory: config and partition everywhere, checkpoint on rank 0 (collective).

    `save_dir` is where each rank keeps its shard; None: a folder in the cache. Raises UserError.
    """

    sparse = False  # its weights are there, see SyntheticSource

    def __init__(self, group: Group, directory: str | Path, save_dir: str | Path | None = None):
        self.checkpoint: Checkpoint | None = None
        config = None
        with group.together():
            if group.rank == 0:
                config = ModelConfig.from_directory(directory)
                self.checkpoint = Checkpoint(directory, config)
        text, fingerprint = group.comm.bcast(
            (config.to_json(), self.checkpoint.fingerprint) if config else None
        )
        self.config = ModelConfig.from_json(text)
        self.partition = Partition.of(self.config, [1] * group.size)
        name = f"{self.config.name}-{fingerprint}"
        self.folder = Path(save_dir or cache_directory() / name / self.partition.key)

    def shard(self, group: Group, again: bool = False) -> tuple[Shard, bool]:
        """Open this rank's shard, cutting the checkpoint where it is missing (collective).

        With `again` it is cut whether missing or not. Returns the shard and whether any rank's was
        cut now.
        """
        with group.together():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--save-dir {self.folder} is a file; it must be a folder")
        return ensure_shards(
            group, self.config, self.partition, self.checkpoint, self.folder, again
        )
