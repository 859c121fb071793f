"""What answers look like: the shapes of OpenAI's API, of which /openapi.json is made, too."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # before Python 3.12 pydantic wants these

from tpimpi.serve.logprobs import ChatLogprobs, CompletionLogprobs

Finish = Literal["stop", "length", "tool_calls"]


class PromptDetails(TypedDict):
    """Tokens of the prompt that were found again, and not computed."""

    cached_tokens: int


class Usage(TypedDict):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(TypedDict, total=False):
    """What the assistant says; or calls, where it was given tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]]


class ChatChoice(TypedDict):
    """One text of a chat."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatAnswer(TypedDict):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(TypedDict):
    """What has come of one text of a chat."""

    index: int
    delta: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(TypedDict):
    """An event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDelta]
    usage: NotRequired[Usage | None]


class CompletionChoice(TypedDict):
    """One text after a prompt, or what has come of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class CompletionAnswer(TypedDict):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(TypedDict):
    """An event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class ModelEntry(TypedDict):
    """A name of the model that is served. `max_model_len`: tokens of prompt and text."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """The answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelEntry]


class RankState(TypedDict):
    """What a rank does while there is no model yet."""

    rank: int
    host: str
    doing: str


class Health(TypedDict, total=False):
    """The answer of /health. While loading: what is being done, and how far it is."""

    status: Literal["loading", "ok", "stopping", "ended"]
    doing: str
    progress: str
    fraction: float | None
    seconds: float
    ranks: list[RankState]
    message: str


class Tokens(TypedDict):
    """The answer of /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(TypedDict):
    """The answer of /detokenize."""

    prompt: str


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Return the first fields of an answer: a new id, the time, the model's name."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()),
        "model": model,
    }  # fmt: skip


def usage(prompts: Sequence[int], cached: Sequence[int], generated: int) -> Usage:
    """Return the account of a request; a prompt counts once, however many texts follow it."""
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": generated,
        "total_tokens": sum(prompts) + generated,
        "prompt_tokens_details": {"cached_tokens": sum(cached)},
    }
