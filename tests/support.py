"""What several test files share: a running model on the ranks of a communicator."""

from tpimpi.comm.group import Group
from tpimpi.engine.session import load_session
from tpimpi.memory.account import Work
from tpimpi.memory.request import Budgets, MemoryRequest
from tpimpi.shards import feed, message, receive
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.shard import Shard
from tpimpi.shards.source import Source


def open_session(
    comm, directory, folder, window=None, chunk=256, max_logits=64, context=128, threads=1,
    slots=1, budget=None, shares=None, pool=None,
):  # fmt: skip
    """Return (session, group, config) of a model directory cut over the ranks of `comm`."""
    group = Group(comm)
    source = Source(group, directory, ShardRequest(folder, shares))
    shard, _ = source.shard(group)
    request = MemoryRequest(window=window, everything=window is None, chunk=chunk)
    if budget is not None:
        request = MemoryRequest(Budgets((budget,)), chunk=chunk)
    work = Work(context - 1, context, slots, pool, logits=max_logits)
    return load_session(group, source, shard, request, work, threads), group, source.config


def cut(group, directory, folder, again=False):
    """Cut what is missing of a model's shards; return the path of this rank's."""
    shard, written = Source(group, directory, ShardRequest(folder)).shard(group, again)
    shard.close()
    assert written
    return shard.path


def content(path):
    """Return what a whole shard holds: names, checksums, hashes of what they were cut from."""
    shard = Shard(path)
    shard.verify()
    shard.close()
    return [(t.name, shard._sums[i], shard.sources[i]) for i, t in enumerate(shard.tensors)]


def in_small_messages(monkeypatch, nbytes):
    """Let shards travel in messages of so many bytes of rows."""
    for module in (feed, receive, message):
        monkeypatch.setattr(module, "CHUNK", nbytes)
