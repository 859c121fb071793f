"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from tpimpi.engine.generation import Completion
from tpimpi.serve.asked import Asked, read, respond, submit
from tpimpi.serve.choices import Choices
from tpimpi.serve.context import Context, beside, context_of
from tpimpi.serve.errors import ApiError
from tpimpi.serve.messages import conversation_text
from tpimpi.serve.schema import ChatRequest
from tpimpi.serve.served import Served
from tpimpi.serve.stream import while_connected
from tpimpi.serve.structures import Structures, uses_tools


async def chat(request: Request):
    """Answer a conversation."""
    body = await read(request, ChatRequest)
    _check(body)
    asked = await while_connected(request.receive, _ask(context_of(request), body))
    return await respond(request, asked)


def _check(body: ChatRequest) -> None:
    """Refuse what makes no sense together. Raises ApiError."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise ApiError(
            400, f"max_tokens is {both[0]} and max_completion_tokens {both[1]}; give one of them",
            "invalid_value", "max_tokens",
        )  # fmt: skip


async def _ask(context: Context, body: ChatRequest) -> ChatAsked:
    """Ask the engine for what a body asks for. Raises ApiError and UserError."""
    served = context.model()
    name = served.named(body.model)
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    settings = served.settings(body, most, alternatives)
    settings = replace(settings, stop=(*settings.stop, *served.template.stop))
    structures = Structures(served, body)
    ids = await beside(served, _prompt_ids, served, body)
    choices = Choices(
        served,
        context.post(),
        context.metrics,
        [ids],
        body.n or 1,
        settings,
        structures.constraint,
    )
    asked = ChatAsked(body, choices, name, structures)
    await submit(asked)
    return asked


def _prompt_ids(served: Served, body: ChatRequest) -> list[int]:
    tools = body.tools if uses_tools(body) else None
    text = conversation_text(
        served.template, body.messages, tools, body.documents, body.chat_template_kwargs
    )
    return served.text_ids(text, "messages", add_bos=False)  # the template writes BOS itself


class ChatAsked(Asked):
    """A conversation whose answer is being made."""

    kinds = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"
    body: ChatRequest

    def __init__(self, body: ChatRequest, choices: Choices, name: str, structures: Structures):
        super().__init__(body, choices, name)
        self._readers = [structures.reader() for _ in range(choices.count)]

    def take(self, index: int, text: str, tokens: Sequence) -> None:
        """Take a piece of an answer that is told as a whole."""
        reader = self._readers[index]
        if reader is not None:
            reader.push(text, tokens)

    def whole(self, index: int, done: Completion) -> dict[str, Any]:
        """Return a text that is complete."""
        reader, reason = self._readers[index], done.finish_reason
        message: dict[str, Any] = {"role": "assistant", "content": done.text, "refusal": None}
        if reader is not None:
            reader.finish()
            message["content"] = reader.content
            if reader.calls:
                message["tool_calls"] = reader.calls
            reason = reader.reason(reason)
        return {
            "index": index, "message": message,
            "logprobs": self._logprobs(index, done.tokens), "finish_reason": reason,
        }  # fmt: skip

    def begin(self, index: int) -> list[dict[str, Any]]:
        """Return what comes before a text's first piece."""
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def part(self, index: int, text: str, tokens: Sequence) -> list[dict[str, Any]]:
        """Return what is told of a piece."""
        reader = self._readers[index]
        deltas = [{"content": text}] if text else []
        if reader is not None:
            deltas = reader.push(text, tokens)
        if not self.body.logprobs:
            return [self._delta(index, delta) for delta in deltas]
        first, *others = deltas or [{"content": ""}]
        told = self._delta(index, first, self._logprobs(index, tokens))
        return [told, *(self._delta(index, delta) for delta in others)]

    def end(self, index: int, done: Completion) -> list[dict[str, Any]]:
        """Return what comes after a text's last piece."""
        reader, reason, last = self._readers[index], done.finish_reason, []
        if reader is not None:
            last = [self._delta(index, delta) for delta in reader.finish()]
            reason = reader.reason(reason)
        return [*last, self._delta(index, {}, None, reason)]

    def _logprobs(self, index: int, tokens: Sequence):
        return self.tellers[index].chat(tokens) if self.body.logprobs else None

    @staticmethod
    def _delta(index: int, delta, logprobs=None, reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
