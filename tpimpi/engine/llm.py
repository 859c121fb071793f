"""A model on all ranks, for text: what `tpimpi.load` returns. All methods are collective.

Every rank makes the same calls, as MPI programs do. Rank 0's prompts count, and rank 0 gets the
text; the other ranks compute their part and get nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpimpi.checkpoint.tokenizer import Tokenizer, load_tokenizer
from tpimpi.comm.group import Group
from tpimpi.engine import figures
from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.session import Session, load_session
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import UserError
from tpimpi.memory.account import MemoryPlan, Work
from tpimpi.memory.process import resident_bytes
from tpimpi.memory.request import MemoryRequest
from tpimpi.model.config import ModelConfig
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

    def __init__(self, group: Group, directory: str | Path, save_dir: str | Path | None = None):
        self.group, self.source = group, Source(group, directory, save_dir)
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

    def load(self, memory: MemoryRequest, work: Work, threads: int, again: bool = False) -> LLM:
        """Cut the shards that are missing, plan the memory and start (collective).

        `again`: cut them even so. Raises UserError where the memory is too small for `work`.
        """
        shard, _ = self.source.shard(self.group, again)
        session = load_session(
            self.group, self.source, shard, memory, work, threads, self.tokenizer_bytes
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
        self.close(kind is None or getattr(error, "agreed", False))

    def close(self, together: bool = True) -> None:
        """Give all memory back; `together`: whether all ranks call it, and so part from MPI too.

        Once is enough; another time does nothing.
        """
        if self._closed:
            return
        self._closed = True
        if together:
            self._end_stream()
        self._session.close()
        if together:
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
        self._end_stream()
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
        found = []
        count = self._group.comm.bcast(len(prompts) if self._group.rank == 0 else 0)
        for index in range(count):
            prompt = prompts[index] if self._group.rank == 0 else ""
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

        It is scored in windows of BOS and `window` - 1 tokens (None: as long as the context is).
        `on_progress` is told how many tokens a window has scored. Raises UserError on all ranks.
        """
        self._end_stream()
        parts: list[list[int]] = []
        with self._group.together():
            if self._group.rank == 0:
                parts = self._windows(text, min(window or self.plan.context, self.plan.context))
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
        self._end_stream()
        return self._session.figures()

    def _generation(
        self, prompt: str | Sequence[int], settings: GenerationSettings, add_bos: bool
    ) -> Generation:
        """Check a prompt against the context that there is memory for (rank 0)."""
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
        bos = [self.config.bos_token_id] if self.config.bos_token_id is not None else []
        step = window - len(bos)
        parts = [bos + ids[at : at + step] for at in range(0, len(ids), step)]
        return [part for part in parts if len(part) > 1]

    def _checked(self, ids: Sequence[int]) -> list[int]:
        """Return ids as a list. Raises UserError for one that the model doesn't know."""
        ids = [int(i) for i in ids]
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise UserError(
                    f"id {token} is beyond the vocabulary of {self.config.vocab_size} tokens"
                )
        if not ids:
            raise UserError("there are no ids; give some")
        return ids

    def _end_stream(self) -> None:
        """Finish a text that was left half-way, so that all ranks are at the same point."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class Stream:
    """The text after one prompt as it is made; rank 0 gets the pieces, others none.

    Leaving it half-way is fine: it ends with `close`, or with the model's next call.
    """

    def __init__(self, session: Session, generation: Generation | None):
        self._session, self._generation = session, generation
        self._begun = self._left = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._begun = True
        return next(self._pieces)

    @property
    def completion(self) -> Completion | None:
        """What was made so far, on rank 0."""
        return self._generation.completion if self._generation else None

    def close(self) -> None:
        """End the text on all ranks (collective); do nothing once it has ended."""
        self._left = True
        if self._begun and self._generation:
            self._pieces.close()
        else:  # others serve to the end; a text that was not begun makes nothing
            for _ in self._pieces:
                pass

    def _run(self) -> Iterator[str]:
        with self._session.leading() as engine:
            if engine is None or self._left:
                return
            try:
                yield from self._generation.pieces()
            finally:
                engine.release(0)
