"""A request while its texts are made: the answer as a whole, or event by event."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse

from tpimpi.engine.generation import Completion
from tpimpi.serve.answers import head
from tpimpi.serve.body import read_body
from tpimpi.serve.choices import Choices
from tpimpi.serve.context import beside, context_of
from tpimpi.serve.errors import ApiError
from tpimpi.serve.logprobs import Teller
from tpimpi.serve.schema import Choosing
from tpimpi.serve.settings import most_body
from tpimpi.serve.stream import EventStream, event, while_connected

B = TypeVar("B", bound=Choosing)


class Asked(ABC):
    """What both kinds of requests have in common; they differ in how they say it."""

    kinds: ClassVar[tuple[str, str]]  # the object's name of an answer, of an event
    prefix: ClassVar[str]  # of ids

    def __init__(self, body: Choosing, choices: Choices, name: str):
        self.body, self.choices, self.name = body, choices, name
        hidden = choices.served.hidden(choices.settings)
        self.tellers = [Teller(choices.served.tokenizer, hidden) for _ in range(choices.count)]

    @abstractmethod
    def whole(self, index: int, done: Completion) -> dict[str, Any]:
        """Return a text that is complete."""

    def begin(self, index: int) -> list[dict[str, Any]]:
        """Return what comes before a text's first piece."""
        return []

    @abstractmethod
    def part(self, index: int, text: str, tokens: Sequence) -> list[dict[str, Any]]:
        """Return what is told of a piece."""

    @abstractmethod
    def end(self, index: int, done: Completion) -> list[dict[str, Any]]:
        """Return what comes after a text's last piece."""

    def take(self, index: int, text: str, tokens: Sequence) -> None:  # noqa: B027 - may be nothing
        """Take a piece of an answer that is told as a whole."""

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer. Raises ApiError."""
        async for index, told in self.choices.events():
            if not isinstance(told, Completion):
                self.take(index, told.text, told.tokens)
        texts = [self.choices.completions[index] for index in range(self.choices.count)]
        return {
            **head(self.kinds[0], self.prefix, self.name),
            "choices": [self.whole(index, done) for index, done in enumerate(texts)],
            "usage": self.choices.usage(),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it is made. Raises ApiError."""
        options = self.body.stream_options
        with_usage = bool(options and options.include_usage)
        chunk = head(self.kinds[1], self.prefix, self.name)
        if with_usage:
            chunk["usage"] = None
        for index in range(self.choices.count):
            for choice in self.begin(index):
                yield event({**chunk, "choices": [choice]})
        async for index, told in self.choices.events():
            if isinstance(told, Completion):
                choices = self.end(index, told)
            else:
                choices = self.part(index, told.text, told.tokens)
            for choice in choices:
                yield event({**chunk, "choices": [choice]})
        if with_usage:
            yield event({**chunk, "choices": [], "usage": self.choices.usage()})


async def read(request: Request, kind: type[B]) -> B:
    """Return a request's body, once there is a model. Raises ApiError."""
    context = context_of(request)
    most = most_body(context.model().context)
    body = await read_body(request, kind, most, context.settings.body_seconds, context.bodies)
    check_stream(body)
    return body


def check_stream(body: Choosing) -> None:
    """Refuse stream_options without a stream, and those that are not known. Raises ApiError."""
    options = body.stream_options
    if options is None:
        return
    why = "stream_options needs stream: true"
    for name, value in (options.model_extra or {}).items():
        if value is not None:
            why = f"stream_options has an unknown field: {name[:100]!a}"
            break
    else:
        if body.stream:
            return
    raise ApiError(400, why, "invalid_value", "stream_options")


async def submit(asked: Asked) -> None:
    """Ask the engine for a request's texts; for none of them where the client leaves meanwhile."""
    choices = asked.choices
    try:
        await beside(choices.served, choices.submit)
    except BaseException:
        choices.close()
        raise
    asked.body.forget()
    del choices.constraint


async def respond(request: Request, asked: Asked):
    """Return the response in which the answer is made."""
    notes, choices = request.state.notes, asked.choices
    notes["model"], notes["stream"] = asked.name, bool(asked.body.stream)

    def close() -> None:
        choices.close()
        notes.update(choices.account())

    if asked.body.stream:
        return EventStream(asked.events(), close, context_of(request).settings.ping_seconds, notes)
    try:
        return JSONResponse(await while_connected(request.receive, asked.answer()))
    finally:
        close()
