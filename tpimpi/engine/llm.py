"""A model on all ranks, for text: what `tpimpi.load` returns. All methods are collective.

Every rank makes the same calls, as MPI programs do. Rank 0's prompts count, and rank 0 gets the
text; the other ranks compute their part and get nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.engine import figures
from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.leader import Leader
from tpimpi.engine.prompts import Prompts
from tpimpi.engine.service import Service
from tpimpi.engine.session import Session
from tpimpi.engine.settings import GenerationSettings, whole_number
from tpimpi.engine.stream import Stream
from tpimpi.errors import MachineError, UserError
from tpimpi.memory.account import MemoryPlan
from tpimpi.model.config import ModelConfig

if TYPE_CHECKING:
    from tpimpi.engine.opened import OpenModel


@dataclass(frozen=True)
class Score:
    """How likely a text is: the sum of -log p of its tokens in nats, each scored once."""

    nll: float
    tokens: int


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
    def directory(self) -> Path | None:
        """Where the model's files are, whether a path or a name was given, on rank 0."""
        return self._model.directory

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, on rank 0."""
        return self._model.tokenizer

    @property
    def defaults(self) -> dict[str, object]:
        """How to choose where nothing is said, as generation_config.json has it (rank 0)."""
        return self._model.defaults

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
            if not self._group.ended and not self._session.runner.failed:
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
        if not told and not self._group.ended and not self._session.runner.failed:
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
        SamplingSettings by name, such as `max_new_tokens=50, temperature=0`; what they are silent
        about is as the model's generation_config.json has it. Raises UserError on all ranks.
        """
        (generation,) = self._generations([prompt], settings, add_bos, choices) or (None,)
        self._stream = Stream(self._session, generation)
        return self._stream

    def generate(
        self, prompts: Sequence[str | Sequence[int]], settings: GenerationSettings | None = None,
        add_bos: bool = True, **choices,
    ) -> list[Completion]:  # fmt: skip
        """Return the completions of several prompts, made together; [] on other ranks."""
        generations = self._generations(prompts, settings, add_bos, choices)
        with self._session.leading() as runner:
            if runner is None:
                return []
            engine = self._session.engine
            try:
                for generation in generations:
                    engine.add(generation)
                while engine.busy:
                    for _, piece in engine.step():
                        if isinstance(piece, Exception):
                            raise piece
            finally:
                engine.clear()
        return [generation.completion for generation in generations]

    @contextmanager
    def leading(self) -> Iterator[Leader | None]:
        """Let rank 0 make texts in a block while the other ranks compute (collective).

        They get None, once rank 0 has left it. While nothing is made they sleep.
        """
        self._begin()
        with self._session.leading() as runner:
            leader = None
            if runner is not None:
                leader = Leader(self._session, self._prompts, self.defaults)
            try:
                yield leader
            finally:
                if leader is not None:
                    self._session.wake()
                    self._session.engine.clear()

    def service(self, queue: int = 64) -> Service:
        """Return what makes texts for other threads of rank 0, once it runs (collective)."""
        self._begin()
        return Service(self._session, self._prompts, queue)

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
        with self._session.leading() as runner:
            if runner is None:
                return None
            total, tokens = 0.0, 0
            for part in parts:
                losses = runner.score(part)
                total, tokens = total + float(losses.sum()), tokens + len(losses)
                on_progress(len(losses))
        return Score(total, tokens)

    def figures(self) -> list[figures.RankFigures] | None:
        """Return all ranks' figures since the start on rank 0 (None on others)."""
        self._begin()
        return self._session.figures()

    @property
    def _prompts(self) -> Prompts | None:
        """What checks prompts, on rank 0."""
        tokenizer = self._model.tokenizer
        return Prompts(tokenizer, self.config, self.plan.context) if tokenizer else None

    def _generations(
        self, prompts: Sequence[str | Sequence[int]], settings: GenerationSettings | None,
        add_bos: bool, choices: dict,
    ) -> list[Generation]:  # fmt: skip
        """Return the texts to be made, on rank 0 (collective). Raises UserError on all ranks."""
        self._begin()
        with self._group.together():
            if settings is not None and choices:
                raise UserError(f"give settings, or {', '.join(sorted(choices))}, but not both")
            wanted = settings or GenerationSettings.of(self.defaults, **choices)
            if self._group.rank != 0:
                return []
            if isinstance(prompts, str) or not isinstance(prompts, Iterable):
                raise UserError(
                    f"generate wants a list of prompts, not {type(prompts).__name__}; put one "
                    "into a list"
                )
            make = self._prompts.generation
            return [make(prompt, wanted, add_bos) for prompt in prompts]

    def _windows(self, text: str | Sequence[int], window: int) -> list[list[int]]:
        """Cut a text to what is scored at once (rank 0)."""
        tokenizer = self._model.tokenizer
        is_text = isinstance(text, str)
        ids = tokenizer.encode(text, add_bos=False) if is_text else self._prompts.checked(text)
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

    def _begin(self) -> None:
        """Come to the same point on all ranks, from which they can go on (collective)."""
        if self._closed:
            raise UserError("the model was closed; load it again")
        if self._session.runner.failed:
            raise MachineError("a pass was interrupted, so the model can't go on; load it again")
        if self._group.left:
            raise MachineError("another rank has left the model with an error; load it again")
        self._end_stream()
        if self._session.is_led:
            raise UserError("the other ranks serve what rank 0 leads: a leader, or a service")
        self._group.agree(self._session.model.failure)

    def _end_stream(self) -> None:
        """Finish a text that was left half-way, so that all ranks are at the same point."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
