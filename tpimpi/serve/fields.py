"""Fields that requests may have beside those of the schema: ignored, or refused by name.

What would change the answer and can't be done is refused, except where it asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpimpi.serve.errors import ApiError, unsupported

# They are about accounts, caches and billing, or about speed: the answer is the same without.
IGNORED = frozenset(
    {
        "metadata", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
    }
)  # fmt: skip

# Why not, and what asks for nothing besides null.
_CHAT = {
    "audio": ("the model answers in text", ()),
    "function_call": ("it is OpenAI's old name; use tool_choice", ("none", "auto")),
    "functions": ("it is OpenAI's old name; use tools", ([],)),
    "modalities": ("the model answers in text", (["text"], [])),
    "moderation": ("nothing is looked at here", ()),
    "reasoning_effort": (
        "models differ in how they are told; use chat_template_kwargs, such as "
        '{"enable_thinking": false}',
        (),
    ),
    "verbosity": ("say in a message how long the answer should be", ("medium",)),
    "web_search_options": ("the model reaches nothing outside", ()),
}
_COMPLETION = {
    "best_of": ("every text is given back; use n", ()),
    "echo": ("the answer begins after the prompt", (False,)),
    "suffix": ("the model writes on from a prompt's end", ("",)),
}
REFUSED = {"chat": _CHAT, "completion": _COMPLETION, "tokenize": {}, "detokenize": {}}


def check_extra(kind: str, given: Mapping[str, Any] | None, n: int | None) -> None:
    """Refuse fields that are not in the schema of this kind of request. Raises ApiError.

    `n` is how many texts it asks for.
    """
    for name, value in (given or {}).items():
        if name in IGNORED or value is None:
            continue
        if name not in REFUSED[kind]:
            raise ApiError(
                400, f"unknown field: {name[:100]!a}; it is neither OpenAI's nor this server's",
                "unknown_parameter", name[:100],
            )  # fmt: skip
        why, nothing = REFUSED[kind][name]
        if name == "best_of":
            nothing = (n or 1,)
        if not any(value == one and type(value) is type(one) for one in nothing):
            raise unsupported(name, why)
