"""What was said so far, and the ids that a model goes on from. Knows no terminal and no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tpimpi.chat.thinking import opens_thinking
from tpimpi.checkpoint.template import ChatTemplate


@dataclass(frozen=True)
class Turn:
    """A question and its answer, without what was thought before it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """What a model goes on from; `thinking`: it is to begin within a thought."""

    ids: list[int]
    thinking: bool


class Conversation:
    """The turns, and what the model is told before them. `encode` turns a text into ids.

    The template writes special tokens itself, BOS among them, so `encode` must add none. `written`
    tells which bytes an id is in a text. With it the ids that a model has chosen stand for what
    they say from then on, though the same text may be cut to others, which would be computed anew.
    """

    def __init__(
        self, template: ChatTemplate, encode: Callable[[str], list[int]],
        written: Callable[[int], bytes] | None = None,
    ):  # fmt: skip
        self.template, self._cut, self._written = template, encode, written
        self._known: list[int] = []  # of the last prompt and its answer
        self.turns: list[Turn] = []
        self.system: str | None = None

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """Return the conversation as templates take it, then a question that has no answer yet."""
        found = [_message("system", self.system)] if self.system else []
        for turn in self.turns:
            found += [_message("user", turn.question), _message("assistant", turn.answer)]
        return found if question is None else [*found, _message("user", question)]

    def prompt(self, question: str) -> Prompt:
        """Return what the model answers a question from. Raises UserError of the template."""
        text = self.template.render(self.messages(question))
        return Prompt(self._encode(text), opens_thinking(text))

    def ids(self) -> list[int]:
        """Return the ids of all that was said, as the next question's prompt begins with them."""
        if not self.turns:
            return []
        return self._encode(self.template.render(self.messages(), add_generation_prompt=False))

    def remember(self, ids: Sequence[int]) -> None:
        """Know the ids of a prompt and of what a model has made after it."""
        self._known = list(ids)

    def _encode(self, text: str) -> list[int]:
        """Return a text's ids: those that are known as far as they say the same, then others."""
        ids = self._cut(text)
        if self._written is None or not self._known:
            return ids
        parts = [self._written(token) for token in ids]
        whole = b"".join(parts)
        ends = {end: count for count, end in enumerate(accumulate(map(len, parts)), 1)}
        at, taken, left = 0, 0, 0  # so many are known, and stand in place of so many
        for count, token in enumerate(self._known, 1):
            part = self._written(token)
            if not whole.startswith(part, at):
                break
            at += len(part)
            if at in ends:
                taken, left = count, ends[at]
        return self._known[:taken] + ids[left:]

    def tell(self, system: str | None) -> None:
        """Let the model be told this before all turns; None: nothing.

        Raises UserError where the template takes no such message; then it stays as it was.
        """
        before, self.system = self.system, system
        try:
            self.template.render(self.messages("?"))
        except BaseException:
            self.system = before
            raise

    def add(self, question: str, answer: str) -> None:
        """Add a turn."""
        self.turns.append(Turn(question, answer))

    def undo(self) -> str | None:
        """Take the last turn back; return its question, None where there is none."""
        return self.turns.pop().question if self.turns else None

    def clear(self) -> None:
        """Forget all turns; what the model is told before stays."""
        self.turns.clear()

    def drop_to(self, most: int, question: str) -> int:
        """Forget the oldest turns until a question's prompt has `most` tokens; return how many."""
        before = len(self.turns)
        while self.turns and len(self.prompt(question).ids) > most:
            del self.turns[0]
        return before - len(self.turns)

    def take(self, messages: Iterable[Mapping[str, str]]) -> None:
        """Become the conversation that messages tell, as `messages` gives them.

        Raises UserError where the template takes none such; then it stays as it was.
        """
        kept, before = list(messages), (self.system, self.turns)
        system = kept.pop(0)["content"] if kept and kept[0]["role"] == "system" else None
        pairs = zip(kept[::2], kept[1::2], strict=True)
        self.turns = [Turn(asked["content"], said["content"]) for asked, said in pairs]
        try:
            self.tell(system)
        except BaseException:
            self.system, self.turns = before
            raise


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
