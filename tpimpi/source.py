"""What a command works on: the model directory, its partition over the ranks, its shards."""

from __future__ import annotations

from pathlib import Path

from tpimpi.checkpoint import Checkpoint
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.convert import ensure_shards
from tpimpi.errors import UserError
from tpimpi.launch import cache_directory
from tpimpi.partition import Partition
from tpimpi.shard import Shard


class Source:
    """The model directory: config and partition everywhere, checkpoint on rank 0 (collective)."""

    def __init__(self, args, group: Group):
        self.checkpoint: Checkpoint | None = None
        config = None
        with group.together():
            if group.rank == 0:
                config = ModelConfig.from_directory(args.model)
                self.checkpoint = Checkpoint(args.model, config)
        text, fingerprint = group.comm.bcast(
            (config.to_json(), self.checkpoint.fingerprint) if config else None
        )
        self.config = ModelConfig.from_json(text)
        self.partition = Partition.of(self.config, [1] * group.size)
        self.folder = self._folder(args, group, fingerprint)

    def _folder(self, args, group: Group, fingerprint: str) -> Path:
        if getattr(args, "save_dir", None):
            return Path(args.save_dir)
        name = f"{self.config.name}-{fingerprint}"
        return cache_directory() / name / self.partition.key

    def shard(self, args, group: Group) -> tuple[Shard, bool]:
        """Open this rank's shard, cutting the checkpoint where it is missing (collective)."""
        with group.together():
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--save-dir {self.folder} is a file; it must be a folder")
        return ensure_shards(
            group, self.config, self.partition, self.checkpoint, self.folder, args.split_bin
        )
