"""What requests may say: their fields, types and limits. Read strictly, a "1" is no number."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from tpimpi.engine.settings import MOST_BIAS, MOST_PENALTY

MOST_CHOICES, MOST_STOPS, MOST_STOP = 128, 16, 1024
MOST_TOKENS = 1 << 24  # longer than any model's context
MOST_LOGPROBS, MOST_BIASES = 20, 4096
_ID = Annotated[int, Field(ge=0, lt=1 << 31)]
_Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP)]
# The first wrong item is enough: a sentence for each of a million takes hundreds of megabytes.
_Ids = Annotated[list[_ID], Field(fail_fast=True)]
_Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
_Penalty = Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)] | None


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise PydanticCustomError(
            "too_many", "{count} tokens are more than {most}",
            {"count": len(value), "most": MOST_BIASES},
        )  # fmt: skip
    return value


def _few_prompts(value: Any) -> Any:
    several = isinstance(value, list) and value and not isinstance(value[0], int)
    if several and len(value) > MOST_CHOICES:
        raise PydanticCustomError(
            "too_many", "{count} prompts are more than {most}",
            {"count": len(value), "most": MOST_CHOICES},
        )  # fmt: skip
    return value


_Bias = Annotated[
    dict[
        Annotated[str, Field(pattern="^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS)],
    ],
    Field(max_length=MOST_BIASES), BeforeValidator(_few),
]  # fmt: skip


class Body(BaseModel):
    """A request's body. What it has beside these fields is looked at by `fields.check_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    kind: ClassVar[str]
    asked: ClassVar[tuple[str, ...]] = ()  # the fields that the texts are made of

    def forget(self) -> None:
        """Drop what only the making of the texts needs: many answers wait, and each has a body."""
        for name in self.asked:
            setattr(self, name, None)


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against those who watch sizes: none is added


class Choosing(Body):
    """How to choose tokens and where to end. Where a request is silent, the model's files speak."""

    model: (
        Annotated[str, Field(description="one of /v1/models; the model, if it is left out")] | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES, description="texts of each prompt")] | None = (
        None
    )
    temperature: (
        Annotated[float, Field(ge=0, le=100, description="0: the likeliest token always")] | None
    ) = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS, description="0, -1: all")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    logit_bias: _Bias | None = None
    seed: (
        Annotated[
            int, Field(ge=-(1 << 63), lt=1 << 63, description="text i of a request has seed + i")
        ]
        | None
    ) = None
    stop: _Stop | Annotated[list[_Stop], Field(fail_fast=True, max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[_Ids, Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text"]
    text: str

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value):
        if isinstance(value, str) and value != "text":
            raise PydanticCustomError(
                "unsupported", "{part} is not supported: the model reads text only",
                {"part": f"a content part of type {value[:40]!a}"},
            )  # fmt: skip
        return value


class CalledFunction(BaseModel):
    """A function that the assistant called; `arguments` are JSON."""

    model_config = ConfigDict(strict=True, extra="ignore")
    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool in an earlier answer."""

    model_config = ConfigDict(strict=True, extra="ignore")
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None  # of an earlier answer, sent back


class Conversation(Body):
    """What a chat template is given."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    tools: _Objects | None = None
    documents: _Objects | None = None
    chat_template_kwargs: (
        Annotated[
            dict[str, Any], Field(description="what else the model's template asks for by name")
        ]
        | None
    ) = None


class ChatRequest(Choosing, Conversation):
    """POST /v1/chat/completions."""

    kind = "chat"
    asked = (
        "messages", "tools", "documents", "chat_template_kwargs", "response_format", "logit_bias",
    )  # fmt: skip
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None


class CompletionRequest(Choosing):
    """POST /v1/completions. The prompt is a text, its ids, or a list of those."""

    kind = "completion"
    asked = ("prompt", "response_format", "logit_bias")
    prompt: Annotated[
        str
        | Annotated[_Ids, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[
            list[Annotated[_Ids, Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_CHOICES),
        ],
        BeforeValidator(_few_prompts),
    ]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or messages as the chat template writes them."""

    kind = "tokenize"
    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)] | None = None
    tools: _Objects | None = None
    documents: _Objects | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(Body):
    """POST /detokenize."""

    kind = "detokenize"
    model: str | None = None
    tokens: _Ids
