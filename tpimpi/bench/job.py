"""What a model asks of the ranks that are to run it: sums, disk, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tpimpi.bench.findings import Job
from tpimpi.comm.group import Group
from tpimpi.engine.needs import needs_of
from tpimpi.engine.opened import OpenModel
from tpimpi.errors import UserError
from tpimpi.memory.account import Work
from tpimpi.memory.plan import RankRequest, plan_ranks
from tpimpi.memory.process import free_memory
from tpimpi.memory.request import AUTO, MemoryRequest
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.shapes import shape_config
from tpimpi.model.tensors import pieces
from tpimpi.shards.layout import shard_name, stored, tape_layout
from tpimpi.shards.request import ShardRequest

EXAMPLE = "tinyllama-1.1b"  # whose sums are told of where no model is named
CONTEXT = 2048  # tokens that memory must do for


@dataclass(frozen=True)
class Asked:
    """A model or a shape as it would be cut over the ranks."""

    config: ModelConfig
    partition: Partition
    encoding_of: Callable[[str], str]  # by a tensor's name in the checkpoint
    folder: Path | None  # where its shards lie or will lie
    tokenizer: int  # bytes in this process

    @classmethod
    def of_model(cls, group: Group, directory: str, save_dir: str | None) -> Asked:
        """Open a model directory (collective). Raises UserError."""
        model, found = OpenModel(group, directory, ShardRequest(save_dir)), None
        source = model.source
        if source.checkpoint:
            found = {name: tensor.encoding for name, tensor in source.checkpoint.tensors.items()}
        encodings = group.comm.bcast(found)
        return cls(
            source.config, source.partition, encodings.__getitem__, source.folder,
            model.tokenizer_bytes,
        )  # fmt: skip

    @classmethod
    def of_shape(cls, group: Group, shape: str, layers: int | None, dtype: str) -> Asked:
        """Take a named shape (collective). Raises UserError."""
        config = None
        with group.together():
            config = shape_config(shape, layers)
        partition = Partition.of(config, [1] * group.size)
        return cls(config, partition, lambda source: dtype, None, 0)

    @classmethod
    def example(cls, ranks: int) -> Asked:
        """Take a small model, where none is named."""
        config = shape_config(EXAMPLE, None)
        return cls(config, Partition.of(config, [1] * ranks), lambda source: "bf16", None, 0)

    def sums(self) -> Job:
        """Return what it asks of the links alone."""
        return Job(self.config.name, 2 * self.config.num_layers, 4 * self.config.hidden_size)

    def job(self, group: Group, threads: int) -> Job:
        """Return what it asks of all ranks, whose kernels are loaded (collective)."""
        config, mine = self.config, self.partition.ranks[group.rank]
        parts = pieces(config, mine)
        need = sum(stored(p, self.encoding_of(p.source)).nbytes for p in parts)
        name = shard_name(group.rank, group.size)
        if self.folder and (self.folder / name).exists():
            need = 0
        context = min(CONTEXT, config.max_positions)
        work = Work(max(1, context // 2), context)
        tape = tape_layout(parts, self.encoding_of)
        needs = needs_of(config, mine, tape, work, threads, self.tokenizer)
        request = RankRequest(group.rank, group.host, AUTO, needs, free_memory())
        ranks, trouble = group.comm.allgather(request), None
        try:
            plan_ranks(ranks, MemoryRequest(), work)
        except UserError as error:
            trouble = str(error)
        shard_bytes = tuple(group.comm.allgather(need))
        return replace(self.sums(), shard_bytes=shard_bytes, trouble=trouble)
