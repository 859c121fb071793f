"""What a request wants its answer's structure to be: JSON, a schema, calls of tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tpimpi.errors import UserError
from tpimpi.serve.errors import ApiError
from tpimpi.serve.schema import ChatRequest, CompletionRequest
from tpimpi.serve.served import Served
from tpimpi.structure import ToolCallParser, structure_of


def uses_tools(body: ChatRequest | CompletionRequest) -> bool:
    """Tell whether the answer may call tools."""
    return bool(getattr(body, "tools", None)) and getattr(body, "tool_choice", None) != "none"


class Structures:
    """What keeps each text of a request to the structure that is asked for. Raises ApiError."""

    def __init__(self, served: Served, body: ChatRequest | CompletionRequest):
        self._served = served
        form = body.response_format
        self._form = None if form is None or form.get("type") == "text" else form
        self._asked: dict[str, Any] = {}
        choice = getattr(body, "tool_choice", None)
        if uses_tools(body):
            parallel = body.parallel_tool_calls is not False
            self._asked = {
                "tools": body.tools, "tool_choice": choice, "parallel_tool_calls": parallel,
                "form": served.tool_form,
            }  # fmt: skip
        elif choice not in (None, "none", "auto"):
            raise ApiError(
                400, "tool_choice chooses among tools, and there are none; add some",
                "invalid_value", "tool_choice",
            )  # fmt: skip

    def constraint(self) -> Any:
        """Return what one text is kept to (any thread; it may take long). Raises ApiError."""
        if self._form is None and not self._asked:
            return None
        try:
            return structure_of(
                self._served.tokenizer, self._served.config, self._form, **self._asked
            )
        except UserError as error:
            param = "tools" if self._form is None else "response_format"
            raise ApiError(400, str(error), "invalid_value", param) from None

    def reader(self) -> Reader | None:
        """Return what finds calls of tools in one text; None where there are none."""
        return Reader(self._served) if self._asked else None


class Reader:
    """A message as it comes: its content, and calls of tools in it, put together."""

    def __init__(self, served: Served):
        self._parser = ToolCallParser(served.tool_form)
        self.content: str | None = None
        self.calls: list[dict[str, Any]] = []

    def push(self, text: str, tokens: Sequence) -> list[dict[str, Any]]:
        """Take a piece; return the deltas of the message that come of it."""
        return list(self._taken(self._parser.push(text, [token.id for token in tokens])))

    def finish(self) -> list[dict[str, Any]]:
        """Return the last deltas."""
        return list(self._taken(self._parser.finish()))

    def reason(self, reason: str) -> str:
        """Return why the text has ended, of which the engine says `reason`."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _taken(self, deltas: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for delta in deltas:
            if "content" in delta:
                self.content = (self.content or "") + delta["content"]
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    self.calls.append(
                        {"id": call["id"], "type": call["type"], "function": dict(call["function"])}
                    )
                else:
                    self.calls[call["index"]]["function"]["arguments"] += call["function"][
                        "arguments"
                    ]
            yield delta
