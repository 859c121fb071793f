"""What a model thinks before it answers, told apart from the answer while both are made."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class Thinking:
    """Tell the pieces of one text apart: what stands in <think>...</think> at its beginning.

    `opened`: the prompt ends within <think> already, as some templates have it. Tags may come in
    pieces and are not part of what is told. Such words later in an answer are a part of it.
    """

    def __init__(self, opened: bool = False):
        self._held = ""
        self._inside, self._may_open = opened, True
        self._answer: list[str] = []
        self.thought = opened  # whether there was anything to tell apart

    @property
    def answer(self) -> str:
        """The answer so far."""
        return "".join(self._answer)

    def push(self, piece: str) -> list[tuple[bool, str]]:
        """Add a piece; return what may be shown of it: (is it thinking, text)."""
        self._held += piece
        found: list[tuple[bool, str]] = []
        if self._may_open:
            begun = self._held.lstrip()
            if OPEN.startswith(begun) and begun != OPEN:
                return []  # it may become the tag
            if begun.startswith(OPEN):
                self._held, self._inside, self.thought = begun[len(OPEN) :], True, True
            self._may_open = False
        if self._inside:
            text, tag, rest = self._held.partition(CLOSE)
            if not tag:
                keep = _begun(text)
                text, rest = text[: len(text) - keep], text[len(text) - keep :]
            self._held, self._inside = rest, not tag
            found += [(True, text)] if text else []
        if not self._inside:
            found += self._told()
        return found

    def finish(self) -> list[tuple[bool, str]]:
        """Return what was held back when the text has ended."""
        self._may_open = False
        if self._inside:
            text, self._held = self._held, ""
            return [(True, text)] if text else []
        return self._told()

    def _told(self) -> list[tuple[bool, str]]:
        """Return what is held as a piece of the answer: after thinking it begins with a letter."""
        text, self._held = self._held, ""
        if self.thought and not self._answer:
            text = text.lstrip()
        if not text:
            return []
        self._answer.append(text)
        return [(False, text)]


def opens_thinking(prompt: str) -> bool:
    """Return whether a prompt ends where a model is to go on thinking."""
    return prompt.rstrip().endswith(OPEN)


def _begun(text: str) -> int:
    """Return how many characters at the end of a text may begin the closing tag."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:length]):
            return length
    return 0
