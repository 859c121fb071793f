"""A conversation with a running model: questions and commands in, answers out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from tpimpi.chat.choices import Choices
from tpimpi.chat.conversation import Conversation, Prompt
from tpimpi.chat.editor import Editor
from tpimpi.chat.interrupts import Interrupts
from tpimpi.chat.screen import Screen
from tpimpi.chat.thinking import Thinking
from tpimpi.engine.figures import RankFigures, decode_rate
from tpimpi.engine.generation import Completion
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import UserError
from tpimpi.progress import Waiting

RESERVE = 4  # of a context an answer has a fourth to itself where old turns are dropped for it


class Text(Protocol):
    """An answer as it is made, see `engine.stream`."""

    completion: Completion

    def __iter__(self) -> Iterator[str]:
        """Yield its pieces."""

    def cancel(self) -> None:
        """Let it end before the next pass, from any thread or a signal's handler."""

    def close(self) -> None:
        """End it early."""


class Leader(Protocol):
    """What a running model does for a conversation, see `LLM.leading`."""

    def stream(self, prompt: list[int], settings: GenerationSettings) -> Text:
        """Return the text after these ids."""

    def figures(self) -> list[RankFigures]:
        """Return all ranks' figures since the start."""

    def keep(self, ids: list[int], folder: str) -> int:
        """Save what is computed of these ids in a folder of each rank; return of how many."""

    def recall(self, ids: list[int], folder: str) -> None:
        """Take what was saved of exactly these ids."""


@dataclass(frozen=True)
class Known:
    """What is known of the model beforehand."""

    name: str
    fingerprint: str
    form: str  # in which conversations are written
    context: int  # tokens that memory was planned for
    memory: str  # what it holds, for people
    drop_oldest: bool  # where the context is full


@dataclass
class Totals:
    """What was done since the beginning. Tokens, seconds."""

    answers: int = 0
    prompt: int = 0
    cached: int = 0
    made: int = 0
    seconds: float = 0.0
    first: float = 0.0

    def add(self, done: Completion) -> None:
        """Count an answer."""
        self.answers += 1
        self.prompt += len(done.prompt_ids)
        self.cached += done.cached_tokens
        self.made += len(done.ids)
        self.seconds += done.seconds
        self.first += done.first_token_seconds


class Session:
    """One conversation, from the first question to the last."""

    def __init__(
        self, leader: Leader, conversation: Conversation, choices: Choices, known: Known,
        screen: Screen, interrupts: Interrupts,
    ):  # fmt: skip
        self.leader, self.conversation, self.choices = leader, conversation, choices
        self.known, self.screen, self._interrupts = known, screen, interrupts
        self.totals = Totals()
        self.keys: tuple[str, ...] = ()  # what may be typed beside questions, a line each
        self._shown = False  # something of this answer
        self.asked: str | None = None  # the last question
        self.kept = False  # ... is the last turn
        self.refused = False  # ... got no answer
        self.file: str | None = None  # where it was last saved

    def run(self, editor: Editor, command: Callable[[Session, str], bool]) -> None:
        """Answer until the user leaves. `command(session, text)` does one, and tells if it ends."""
        leaving, self.keys = False, editor.keys
        while True:
            try:
                text = editor.read()
            except EOFError:
                return
            except KeyboardInterrupt as interrupt:
                if interrupt.args:  # another signal, which ends the program
                    raise
                if leaving:
                    return
                leaving = True
                self.screen.note("Ctrl-C again, Ctrl-D or /exit leaves")
                continue
            leaving = False
            if text.startswith("/") and not text.startswith("//"):
                if command(self, text):
                    return
            else:
                self.ask(text.removeprefix("/") if text.startswith("//") else text)

    def ask(self, question: str) -> None:
        """Answer a question, or say why that can't be done."""
        self.asked, self.kept, self.refused = question, False, True
        try:
            prompt = self._prompt(question)
            room = self.known.context - len(prompt.ids)
            self._answer(question, prompt, self.choices.next(room))
        except UserError as error:
            self.screen.note(str(error))

    def _prompt(self, question: str) -> Prompt:
        """Return what the question is answered from, within the context. Raises UserError."""
        talk, most = self.conversation, self.known.context
        prompt = talk.prompt(question)
        if self.known.drop_oldest:
            reserve = min(self.choices.length(most), most // RESERVE)
            dropped = talk.drop_to(most - reserve, question)
            if dropped:
                turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
                self.screen.note(
                    f"the conversation would have {len(prompt.ids)} tokens of {most}: {turns} "
                    "forgotten"
                )
                prompt = talk.prompt(question)
        if len(prompt.ids) < most:
            return prompt
        if not talk.turns:
            raise UserError(
                f"the question makes {len(prompt.ids)} tokens, and the context has {most}; shorten "
                "it, or start with a longer --context"
            )
        raise UserError(
            f"with this question the conversation has {len(prompt.ids)} tokens, and the context "
            f"{most}; /undo takes the last turn back, /clear all of them (--drop-oldest forgets "
            "the oldest ones by itself)"
        )

    def _answer(self, question: str, prompt: Prompt, settings: GenerationSettings) -> None:
        screen, thinking = self.screen, Thinking(prompt.thinking)
        self._shown = False
        stream = self.leader.stream(prompt.ids, settings)
        with contextlib.closing(stream), self._interrupts.answering(stream.cancel):
            pieces = iter(stream)
            with Waiting("waiting for the first text", 0) as waiting:
                waiting.begin()
                first = next(pieces, "")
            for piece in chain([first], pieces):
                self._show(thinking.push(piece))
        self._show(thinking.finish())
        screen.end_line()
        done = stream.completion
        self.totals.add(done)
        self.conversation.remember([*done.prompt_ids, *done.ids])
        screen.note(self._figures(done, settings))
        answer = thinking.answer
        if answer.strip():
            self.conversation.add(question, answer)
            self.kept, self.refused = True, False
        else:
            why = "it was still thinking" if thinking.thought else "there is no answer"
            screen.note(f"{why}, so the question is not kept; /retry asks it again")
        screen.gap()

    def _show(self, parts: list[tuple[bool, str]]) -> None:
        for is_thinking, text in parts:
            if not self._shown:  # some models begin with a space, or with a line
                text = text.lstrip()
            self._shown = self._shown or bool(text)
            self.screen.write(text, is_thinking)

    def _figures(self, done: Completion, settings: GenerationSettings) -> str:
        """Return what is told of an answer."""
        made, prompt = len(done.ids), len(done.prompt_ids)
        per_second = decode_rate(made, done.first_token_seconds, done.seconds)
        parts = [
            f"{made} tokens after a prompt of {prompt}, {done.cached_tokens} of them cached",
            f"first token {done.first_token_seconds:.2f} s",
            f"{per_second:.2f} tokens/s",
        ]
        if done.finish_reason == "cancelled":
            parts.append("stopped")
        elif done.finish_reason == "length" and prompt + made >= self.known.context:
            parts.append(f"the context of {self.known.context} tokens is full")
        elif done.finish_reason == "length":
            parts.append(f"ended at {settings.max_new_tokens} tokens (/set length)")
        return " | ".join(parts)
