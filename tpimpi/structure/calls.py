"""Calls of tools in a text: parsed as it comes, into the parts of OpenAI's streamed messages."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from tpimpi.structure.forms import HERMES, ToolForm
from tpimpi.structure.object_reader import ObjectReader
from tpimpi.structure.tools import tools_of

Delta = dict[str, Any]
_BLANK = " \t\n\r"
_BARE = re.compile(r'\s*\{\s*("type"\s*:\s*"function"\s*,\s*)?"name"')
_BARE_BEGINNINGS = ('{"name"', '{"type":"function","name"')


class ToolCallParser:
    """Split a text into what the user reads and calls of tools, piece by piece.

    `push` and `finish` return what is new, each a `delta` of a streamed message: `{"content": ...}`
    or `{"tool_calls": [{"index", "id", "type", "function": {"name", "arguments": ""}}]}`, then
    `{"tool_calls": [{"index", "function": {"arguments": fragment}}]}`. Of a call that was cut off
    is told what came of it. `called` is how many calls have begun.
    """

    def __init__(self, form: ToolForm = HERMES):
        self._form, self._opening_id = form, form.id_of(form.opening)
        self._marks = [
            mark for mark in (form.opening, form.closing) if mark and form.id_of(mark) is None
        ]
        self._held, self._reader = "", ObjectReader(form.key)
        self._step = self._start if form.bare else self._text
        self._blanks, self._spoken = "", False
        self.called = 0

    def push(self, text: str, ids: Sequence[int] = ()) -> list[Delta]:
        """Take the next piece of a text, with the ids of its tokens: a mark may have no text."""
        self._held += text
        if self._opening_id in ids and self._step != self._call:
            self.open()
        return self._run()

    def open(self) -> None:
        """Take what comes as behind a mark."""
        self._step = self._before

    def finish(self) -> list[Delta]:
        """Return what was held back, of a text that has ended."""
        if self._step in (self._start, self._text):
            content, self._held = self._held, ""
            return self._told(content, last=True)
        return []

    def _run(self) -> list[Delta]:
        found: list[Delta] = []
        before = None
        while self._held and before != (self._step, len(self._held)):
            before = self._step, len(self._held)
            found += self._step()
        return found

    def _start(self) -> list[Delta]:
        """Wait until it is clear whether the text begins with a call."""
        dense = "".join(self._held.split())
        if _BARE.match(self._held):
            self.open()
        elif not any(begin.startswith(dense) for begin in _BARE_BEGINNINGS):
            self._step = self._text
        return []

    def _text(self) -> list[Delta]:
        """Give out text up to where a mark begins, or may have begun."""
        mark = self._form.opening
        if mark not in self._marks:
            return self._give(len(self._held))
        at = self._held.find(mark)
        if at < 0:
            return self._give(len(self._held) - _begun(self._held, mark))
        content = self._give(at)
        self._held = self._held[len(mark) :]
        self.open()
        return content

    def _give(self, length: int) -> list[Delta]:
        content, self._held = self._held[:length], self._held[length:]
        return self._told(content)

    def _told(self, content: str, last: bool = False) -> list[Delta]:
        """Return content as a delta; blanks before all else wait, and go if a call is first."""
        content, self._blanks = self._blanks + content, ""
        if not last and not self._spoken and not content.strip():
            self._blanks = content
            return []
        self._spoken = True
        return [{"content": content}] if content else []

    def _before(self) -> list[Delta]:
        """Wait for the object of a call; what stands before it, but blanks and a bracket, is text.

        Such text was there before a mark without text, in the same piece.
        """
        at = self._held.find("{")
        if at < 0:
            return []
        content = self._held[:at].rstrip(_BLANK + ("[" if self._form.listed else ""))
        self._held, self._reader = self._held[at:], ObjectReader(self._form.key)
        self._step = self._call
        return self._told(content)

    def _call(self) -> list[Delta]:
        name, arguments, self._held = self._reader.push(self._held)
        found: list[Delta] = []
        if name is not None:
            self._blanks = ""
            call = {"index": self.called, "id": _new_id(self._form), "type": "function"}
            found.append({"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]})
            self.called += 1
        if arguments:
            part = {"index": self.called - 1, "function": {"arguments": arguments}}
            found.append({"tool_calls": [part]})
        if self._reader.ended:
            self._step = self._after
        return found

    def _after(self) -> list[Delta]:
        """Skip what closes a call, up to the next one or to text."""
        self._held = self._held.lstrip(_BLANK + ("]" if self._form.listed else ""))
        if self._form.listed and self._held.startswith(","):
            self._held = self._held[1:]
            self.open()
        elif mark := next((mark for mark in self._marks if self._held.startswith(mark)), None):
            self._held = self._held[len(mark) :]
            if mark == self._form.opening:
                self.open()
        elif not any(mark.startswith(self._held) for mark in self._marks):
            self._step = self._text
        return []


def parse_tool_calls(
    text: str, tools: Any, form: ToolForm = HERMES
) -> tuple[str | None, list[dict[str, Any]]]:
    """Return what a whole text says, None for nothing, and the calls in it in OpenAI's form.

    A mark that has no text is found by the call of one of `tools` behind it. The arguments of a
    call that was cut off are what came of them.
    """
    parser, content, calls = ToolCallParser(form), "", []
    parts = [text]
    if form.id_of(form.opening) is not None:
        names = "|".join(re.escape(tool.name) for tool in tools_of(tools))
        first = re.search(rf'(\[\s*)?\{{\s*"name"\s*:\s*"({names})"\s*,\s*"{form.key}"', text)
        parts = [text[: first.start()], text[first.start() :]] if first and names else [text]
    for i, part in enumerate(parts):
        ids = [form.id_of(form.opening)] if i else []
        for delta in [*parser.push("", ids), *parser.push(part)]:
            content += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    calls.append({key: call[key] for key in ("id", "type")})
                    calls[-1]["function"] = dict(call["function"])
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    content += "".join(delta["content"] for delta in parser.finish())
    return content or None, calls


def _begun(text: str, mark: str) -> int:
    """Return how many letters at the end of a text may begin a mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


def _new_id(form: ToolForm) -> str:
    """Return an id for a call. Mistral's templates refuse one that has not nine letters."""
    return secrets.token_hex(5)[:9] if form.listed else "call_" + secrets.token_hex(12)
