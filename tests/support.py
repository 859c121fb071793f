"""What several test files share: a running model on the ranks of a communicator."""

from types import SimpleNamespace

from tpimpi import runtime
from tpimpi.budget import Budgets, MemoryRequest
from tpimpi.checkpoint import Checkpoint
from tpimpi.comm import Group
from tpimpi.config import ModelConfig
from tpimpi.convert import ensure_shards
from tpimpi.partition import Partition
from tpimpi.plan import Work


def open_session(
    comm, directory, folder, window=None, chunk=256, max_logits=64, context=128, threads=1,
    slots=1, budget=None,
):  # fmt: skip
    """Return (session, group, config) of a model directory cut over the ranks of `comm`."""
    group = Group(comm)
    config = ModelConfig.from_directory(directory)
    checkpoint = Checkpoint(directory, config) if group.rank == 0 else None
    source = SimpleNamespace(config=config, partition=Partition.of(config, [1] * group.size))
    shard, _ = ensure_shards(group, config, source.partition, checkpoint, folder, False, False)
    request = MemoryRequest(window=window, everything=window is None, chunk=chunk)
    if budget is not None:
        request = MemoryRequest(Budgets((budget,)), chunk=chunk)
    work = Work(context - 1, context, slots, logits=max_logits)
    return runtime.load(group, source, shard, request, work, threads), group, config
