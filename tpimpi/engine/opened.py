"""A model directory before anything of it is in memory: its config, its tokenizer, its wishes."""

from __future__ import annotations

from pathlib import Path

from tpimpi.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tpimpi.comm.group import Group
from tpimpi.comm.sums import AUTO
from tpimpi.engine.llm import LLM
from tpimpi.engine.prompts import prompt_ids
from tpimpi.engine.session import load_session
from tpimpi.engine.shares import settle
from tpimpi.memory.account import Work
from tpimpi.memory.process import resident_bytes
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.config import ModelConfig
from tpimpi.model.generation import sampling_defaults
from tpimpi.shards.request import DEFAULT, ShardRequest
from tpimpi.shards.source import Source


class OpenModel:
    """A model directory that is known, on all ranks; `load` brings it to life (collective).

    `directory` and `tokenizer` are on rank 0 alone; `tokenizer_bytes` is what it took there.
    """

    def __init__(self, group: Group, model: str | Path, shards: ShardRequest = DEFAULT):
        self.group, self._shards = group, shards
        self.source = Source(group, model, shards)
        self.directory = self.source.directory
        self.config: ModelConfig = self.source.config
        self.tokenizer: Tokenizer | None = None
        self.tokenizer_bytes = 0
        self.defaults: dict[str, object] = {}  # of sampling, on rank 0
        with group.together():
            if group.rank == 0:
                before = resident_bytes()
                self.defaults = sampling_defaults(self.directory)
                self.tokenizer = load_tokenizer(self.directory, self.config)
                self.tokenizer_bytes = max(resident_bytes() - before, 0)

    def prompt_ids(self, text: str, add_bos: bool = True) -> list[int]:
        """Return a prompt's ids (rank 0). Raises UserError for one that can't be gone on from."""
        return prompt_ids(self.tokenizer, self.config, text, add_bos)

    def load(self, memory: MemoryRequest, work: Work, threads: int, allreduce: str = AUTO) -> LLM:
        """Cut the shards that are missing, plan the memory and start (collective).

        `allreduce` names how sums are merged, see `comm.sums`. Raises UserError where the memory
        is too small for `work`.
        """
        settle(self.group, self.source, self._shards, memory, threads)
        shard, _ = self.source.shard(self.group, self._shards.again)
        session = load_session(
            self.group, self.source, shard, memory, work, threads, self.tokenizer_bytes, allreduce
        )
        return LLM(self, session)
