"""From the messages of OpenAI's API to what chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpimpi.checkpoint.template import ChatTemplate
from tpimpi.serve.errors import ApiError
from tpimpi.serve.schema import Message

# A template gets these from elsewhere, or writes with them.
_TAKEN = ("self", "messages", "tools", "documents", "add_generation_prompt")


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as templates know them: text, calls with their arguments read.

    Parts of a text are put together with newlines; a developer is a system to them. Raises
    ApiError.
    """
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Message, where: str) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise ApiError(400, f"{where} has no content", "invalid_value", "messages")
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": content or ""}
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            found[name] = value
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id, "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments, where),
                },
            }
            for call in message.tool_calls
        ]  # fmt: skip
    return found


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(
            400, f"{where} calls a function with arguments that are no JSON object",
            "invalid_value", "messages",
        )  # fmt: skip
    return found


def conversation_text(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence | None = None,
    documents: Sequence | None = None, more: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:  # fmt: skip
    """Return a conversation as the model's template writes it. Raises UserError, ApiError."""
    more = more or {}
    for name in more:
        if name in _TAKEN or name in template.special:
            raise ApiError(
                400, f"chat_template_kwargs has {name!a}, which the template gets from elsewhere",
                "invalid_value", "chat_template_kwargs",
            )  # fmt: skip
    return template.render(
        template_messages(messages), tools or None, documents or None, add_generation_prompt,
        **more,
    )  # fmt: skip
