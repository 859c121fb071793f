"""What a request wants its answer's structure to be: JSON, a schema, calls of tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpimpi.serve.errors import ApiError, unsupported
from tpimpi.serve.schema import ChatRequest, CompletionRequest
from tpimpi.serve.served import Served


def structure(served: Served, body: ChatRequest | CompletionRequest) -> Callable[[], Any]:
    """Return what makes a constraint for each text. Raises ApiError."""
    form = body.response_format
    if form is not None and form.get("type") != "text":
        raise unsupported("response_format", "answers are free text here")
    if uses_tools(body):
        raise unsupported("tools", "the model can't be held to their calls here")
    return lambda: None


def uses_tools(body: ChatRequest | CompletionRequest) -> bool:
    """Tell whether the answer may call tools. Raises ApiError."""
    tools, choice = getattr(body, "tools", None), getattr(body, "tool_choice", None)
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(
                400,
                "tool_choice chooses among tools, and there are none",
                "invalid_value",
                "tool_choice",
            )
        return False
    return choice != "none"
