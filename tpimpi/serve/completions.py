"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from tpimpi.engine.generation import Completion
from tpimpi.serve.asked import Asked, read, respond, submit
from tpimpi.serve.choices import Choices
from tpimpi.serve.context import Context, beside, context_of
from tpimpi.serve.schema import CompletionRequest
from tpimpi.serve.served import Served
from tpimpi.serve.stream import while_connected
from tpimpi.serve.structures import Structures

LENGTH = 16  # tokens where a request says nothing, as OpenAI's API has it


async def completions(request: Request):
    """Go on from prompts."""
    body = await read(request, CompletionRequest)
    asked = await while_connected(request.receive, _ask(context_of(request), body))
    return await respond(request, asked)


async def _ask(context: Context, body: CompletionRequest) -> CompletionAsked:
    """Ask the engine for what a body asks for. Raises ApiError and UserError."""
    served = context.model()
    name = served.named(body.model)
    settings = served.settings(body, body.max_tokens or LENGTH, body.logprobs)
    structures = Structures(served, body)
    prompts = await beside(served, _prompt_ids, served, body.prompt)
    choices = Choices(
        served,
        context.post(),
        context.metrics,
        prompts,
        body.n or 1,
        settings,
        structures.constraint,
    )
    asked = CompletionAsked(body, choices, name)
    await submit(asked)
    return asked


def _prompt_ids(served: Served, prompt: str | list) -> list[list[int]]:
    """Return the ids of each prompt. Raises ApiError and UserError."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    return [
        served.text_ids(one, "prompt", add_bos=True)
        if isinstance(one, str)
        else served.checked_ids(one, "prompt")
        for one in prompt
    ]


class CompletionAsked(Asked):
    """Texts after prompts that are being made."""

    kinds = ("text_completion", "text_completion")
    prefix = "cmpl"
    body: CompletionRequest

    def whole(self, index: int, done: Completion) -> dict[str, Any]:
        """Return a text that is complete."""
        return self._choice(index, done.text, done.tokens, done.finish_reason)

    def part(self, index: int, text: str, tokens: Sequence) -> list[dict[str, Any]]:
        """Return what is told of a piece."""
        if not text and self.body.logprobs is None:
            return []
        return [self._choice(index, text, tokens, None)]

    def end(self, index: int, done: Completion) -> list[dict[str, Any]]:
        """Return what comes after a text's last piece."""
        return [self._choice(index, "", (), done.finish_reason)]

    def _choice(self, index: int, text: str, tokens, reason: str | None) -> dict[str, Any]:
        wanted, logprobs = self.body.logprobs, None
        if wanted is not None:
            logprobs = self.tellers[index].completion(tokens, wanted)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
