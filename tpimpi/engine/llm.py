"""A model on all ranks, for text: what `tpimpi.load` returns. All methods are collective.

Every rank makes the same calls, as MPI programs do. Rank 0's prompts count, and rank 0 gets the
text; the other ranks compute their part and get nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpimpi.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tpimpi.comm.group import Group
from tpimpi.comm.sums import AUTO
from tpimpi.engine import figures
from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.session import Session, load_session
from tpimpi.engine.settings import GenerationSettings, whole_number
from tpimpi.engine.shares import settle
from tpimpi.engine.stream import Stream
from tpimpi.errors import MachineError, UserError
from tpimpi.memory.account import MemoryPlan, Work
from tpimpi.memory.process import resident_bytes
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.config import ModelConfig
from tpimpi.shards.request import DEFAULT, ShardRequest
from tpimpi.shards.source import Source

LOGITS_BYTES = 32 << 20  # of rank 0, for the logits of one pass that scores


@dataclass(frozen=True)
class Score:
    """How likely a text is: the sum of -log p of its tokens in nats, each scored once."""

    nll: float
    tokens: int


class OpenModel:
    """A model directory before anything of it is in memory: config and tokenizer (collective).

    `tokenizer` is on rank 0 alone; `tokenizer_bytes` is what it took there.
    """

    def __init__(self, group: Group, directory: str | Path, shards: ShardRequest = DEFAULT):
        self.group, self._shards = group, shards
        self.source = Source(group, directory, shards)
        self.config: ModelConfig = self.source.config
        self.tokenizer: Tokenizer | None = None
        self.tokenizer_bytes = 0
        with group.together():
            if group.rank == 0:
                before = resident_bytes()
                self.tokenizer = load_tokenizer(directory, self.config)
                self.tokenizer_bytes = max(resident_bytes() - before, 0)

    def prompt_ids(self, text: str, add_bos: bool = True) -> list[int]:
        """Return a prompt's ids (rank 0). Raises UserError for one that can't be gone on from."""
        most = self.config.max_positions
        if not text:
            raise UserError("the prompt is empty; give some text")
        ids = self.tokenizer.encode(text, add_bos=add_bos, most=most)
        if not ids:
            raise UserError("the prompt has no tokens; give some more text")
        if len(ids) >= most:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the model's context {most}; shorten it so "
                "that something can follow"
            )
        return ids

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


class LLM:
    """A running model. In `with` it is left on all ranks together."""

    def __init__(self, model: OpenModel, session: Session):
        self._model, self._session = model, session
        self._group, self._stream, self._closed = model.group, None, False
        self.on_close: Callable[[], None] = lambda: None  # after all ranks have closed it

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._model.config

    @property
    def plan(self) -> MemoryPlan:
        """This rank's memory account."""
        return self._session.plan

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind, error, _) -> None:
        if error is None:
            self.close()
        else:
            self._leave(error)

    def close(self) -> None:
        """Give all memory back. Once is enough; another time does nothing.

        Raises MachineError where another rank has left the model with an error.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._group.ended and not self._session.engine.failed:
                if not self._group.left:
                    self._end_stream()
                    self._group.agree(None)
                self.on_close()
        finally:
            self._session.close()

    def _leave(self, error: BaseException) -> None:
        """Give all memory back and let the other ranks know why, if they can be told.

        Else they would wait for this one, in their next call or in MPI's end.
        """
        if self._closed:
            return
        self._closed = True
        told = self._group.left  # then all know, and the first has gone
        if not told and not self._group.ended and not self._session.engine.failed:
            with contextlib.suppress(UserError, MachineError):  # the first error is what counts
                self._end_stream()
            told = self._group.tell(error)
        self._session.close()
        if told:
            self.on_close()

    def stream(
        self, prompt: str | Sequence[int], settings: GenerationSettings | None = None,
        add_bos: bool = True, **choices,
    ) -> Stream:  # fmt: skip
        """Return the text after a prompt, piece by piece: to be iterated on every rank.

        `prompt` is a text or its ids. `choices` are the fields of GenerationSettings and of
        SamplingSettings by name, such as `max_new_tokens=50, temperature=0`. Raises UserError on
        all ranks.
        """
        self._begin()
        generation = None
        with self._group.together():
            wanted = settings or GenerationSettings.of(**choices)
            if self._group.rank == 0:
                generation = self._generation(prompt, wanted, add_bos)
        self._stream = Stream(self._session, generation)
        return self._stream

    def generate(
        self, prompts: Sequence[str | Sequence[int]], settings: GenerationSettings | None = None,
        add_bos: bool = True, **choices,
    ) -> list[Completion]:  # fmt: skip
        """Return the completions of several prompts, one after another; [] on other ranks."""
        self._begin()
        found, given = [], []
        with self._group.together():
            if self._group.rank == 0:
                if isinstance(prompts, str) or not isinstance(prompts, Iterable):
                    raise UserError(
                        f"generate wants a list of prompts, not {type(prompts).__name__}; put one "
                        "into a list"
                    )
                given = list(prompts)
        for index in range(self._group.comm.bcast(len(given))):
            prompt = given[index] if self._group.rank == 0 else ""
            stream = self.stream(prompt, settings, add_bos, **choices)
            for _ in stream:
                pass
            found += [stream.completion] if stream.completion else []
        return found

    def score(
        self, text: str | Sequence[int], window: int | None = None,
        on_progress: Callable[[int], None] = lambda tokens: None,
    ) -> Score | None:  # fmt: skip
        """Return how likely a text, or its ids, is; None on other ranks.

        It is scored in windows of BOS, or without one of the token before, and `window` - 1 tokens
        (None: as long as the context is). `on_progress` is told how many tokens a window has
        scored. Raises UserError on all ranks.
        """
        self._begin()
        parts: list[list[int]] = []
        with self._group.together():
            if self._group.rank == 0:
                parts = self._windows(text, self._window(window))
        with self._session.leading() as engine:
            if engine is None:
                return None
            total, tokens = 0.0, 0
            for part in parts:
                losses = engine.score(part)
                total, tokens = total + float(losses.sum()), tokens + len(losses)
                on_progress(len(losses))
        return Score(total, tokens)

    def figures(self) -> list[figures.RankFigures] | None:
        """Return all ranks' figures since the start on rank 0 (None on others)."""
        self._begin()
        return self._session.figures()

    def _generation(
        self, prompt: str | Sequence[int], settings: GenerationSettings, add_bos: bool
    ) -> Generation:
        """Check a prompt against the context that there is memory for (rank 0)."""
        named = [("stop id", token) for token in settings.stop_ids]
        named += [("the logit_bias's id", token) for token, _ in settings.sampling.logit_bias]
        for what, token in named:
            if token >= self.config.vocab_size:
                raise UserError(
                    f"{what} {token} is beyond the vocabulary of {self.config.vocab_size} tokens"
                )
        text = isinstance(prompt, str)
        ids = self._model.prompt_ids(prompt, add_bos) if text else self._checked(prompt)
        room = self.plan.context - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens, and memory was planned for a context of "
                f"{self.plan.context}; shorten it, or load the model with a longer context"
            )
        return Generation(
            self._session.engine, self._model.tokenizer, ids, settings, self.config.eos_token_ids,
            min(settings.max_new_tokens, room),
        )  # fmt: skip

    def _windows(self, text: str | Sequence[int], window: int) -> list[list[int]]:
        """Cut a text to what is scored at once (rank 0)."""
        tokenizer = self._model.tokenizer
        is_text = isinstance(text, str)
        ids = tokenizer.encode(text, add_bos=False) if is_text else self._checked(text)
        if len(ids) < 2:
            raise UserError(f"the text has {len(ids)} tokens; give a longer one to score")
        step, bos = window - 1, self.config.bos_token_id
        if bos is None:
            return [ids[at : at + window] for at in range(0, len(ids) - 1, step)]
        return [[bos, *ids[at : at + step]] for at in range(0, len(ids), step)]

    def _window(self, window: int | None) -> int:
        """Return the length of the windows to score in. Raises UserError."""
        most = self.plan.context
        if window is None:
            return most
        if whole_number("window", window, 2) > most:
            raise UserError(f"window is {window}, but memory was planned for {most} tokens")
        return window

    def _checked(self, ids: Sequence[int]) -> list[int]:
        """Return ids as a list. Raises UserError for one that the model doesn't know."""
        if isinstance(ids, bytes | bytearray) or not isinstance(ids, Iterable):
            raise UserError(f"give a text or a list of ids, not {type(ids).__name__}")
        ids = [whole_number("an id", i, 0) for i in ids]
        for token in ids:
            if token >= self.config.vocab_size:
                raise UserError(
                    f"id {token} is beyond the vocabulary of {self.config.vocab_size} tokens"
                )
        if not ids:
            raise UserError("there are no ids; give some")
        return ids

    def _begin(self) -> None:
        """Come to the same point on all ranks, from which they can go on (collective)."""
        if self._closed:
            raise UserError("the model was closed; load it again")
        if self._session.engine.failed:
            raise MachineError("a pass was interrupted, so the model can't go on; load it again")
        if self._group.left:
            raise MachineError("another rank has left the model with an error; load it again")
        self._end_stream()
        self._group.agree(self._session.model.failure)

    def _end_stream(self) -> None:
        """Finish a text that was left half-way, so that all ranks are at the same point."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
