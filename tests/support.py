"""What several test files share: a running model on the ranks of a communicator."""

from types import SimpleNamespace

from tpimpi import runtime
from tpimpi.checkpoint import Checkpoint
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.convert import ensure_shards
from tpimpi.partition import Partition


def open_session(
    comm, directory, folder, window=None, chunk=256, max_logits=64, context=128, threads=1,
    slots=1,
):  # fmt: skip
    """Return (session, group, config) of a model directory cut over the ranks of `comm`."""
    group = Group(comm)
    config = ModelConfig.from_directory(directory)
    checkpoint = Checkpoint(directory, config) if group.rank == 0 else None
    source = SimpleNamespace(config=config, partition=Partition.of(config, [1] * group.size))
    shard, _ = ensure_shards(group, config, source.partition, checkpoint, folder, False, False)
    args = SimpleNamespace(
        memory_window=window, disable_memory_schedule=window is None, prompt_chunk=chunk
    )
    session = runtime.load(group, source, shard, args, threads, context, max_logits, slots)
    return session, group, config
