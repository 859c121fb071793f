"""What several test files share: a running model on the ranks of a communicator."""

from tpimpi.comm.group import Group
from tpimpi.engine.session import load_session
from tpimpi.memory.account import Work
from tpimpi.memory.request import Budgets, MemoryRequest
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source


def open_session(
    comm, directory, folder, window=None, chunk=256, max_logits=64, context=128, threads=1,
    slots=1, budget=None, shares=None,
):  # fmt: skip
    """Return (session, group, config) of a model directory cut over the ranks of `comm`."""
    group = Group(comm)
    source = Source(group, directory, ShardRequest(folder, shares))
    shard, _ = source.shard(group)
    request = MemoryRequest(window=window, everything=window is None, chunk=chunk)
    if budget is not None:
        request = MemoryRequest(Budgets((budget,)), chunk=chunk)
    work = Work(context - 1, context, slots, logits=max_logits)
    return load_session(group, source, shard, request, work, threads), group, source.config
