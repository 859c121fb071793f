"""The smaller endpoints: models, health, metrics, ranks, tokens."""

from __future__ import annotations

from dataclasses import asdict
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tpimpi.serve import metrics
from tpimpi.serve.answers import ModelEntry
from tpimpi.serve.body import read_body
from tpimpi.serve.context import beside, context_of
from tpimpi.serve.errors import SOON, ApiError
from tpimpi.serve.messages import conversation_text
from tpimpi.serve.schema import Body, DetokenizeRequest, TokenizeRequest
from tpimpi.serve.served import Served
from tpimpi.serve.settings import most_body

B = TypeVar("B", bound=Body)


async def models(request: Request) -> Response:
    """List the names of the model."""
    served = context_of(request).model()
    return JSONResponse({"object": "list", "data": [_entry(served, n) for n in served.names]})


async def model(request: Request) -> Response:
    """Describe the model of one name."""
    served = context_of(request).model()
    return JSONResponse(_entry(served, served.named(request.path_params["name"])))


def _entry(served: Served, name: str) -> ModelEntry:
    return {
        "id": name, "object": "model", "created": served.created, "owned_by": "tpimpi",
        "max_model_len": served.context,
    }  # fmt: skip


async def health(request: Request) -> Response:
    """Tell how the server is: 200 where it answers requests, else 503."""
    found = context_of(request).health()
    if found["status"] == "ok":
        return JSONResponse(found)
    return JSONResponse(found, 503, headers={"Retry-After": str(SOON)})


async def ranks(request: Request) -> Response:
    """Tell what is going on: the engine's and each rank's figures, counted since the start."""
    return JSONResponse(asdict(context_of(request).model().service.snapshot()))


async def figures(request: Request) -> Response:
    """Tell Prometheus the figures."""
    return Response(
        context_of(request).metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE}
    )


async def tokenize(request: Request) -> Response:
    """Cut a text, or a conversation, to tokens."""
    served, body = await _read(request, TokenizeRequest)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", "invalid_value", "prompt")
    ids = await beside(served, _ids, served, body)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.context})


async def _read(request: Request, kind: type[B]) -> tuple[Served, B]:
    """Return the model, and a request's body, which may name it. Raises ApiError."""
    context = context_of(request)
    served = context.model()
    most, seconds = most_body(served.context), context.settings.body_seconds
    body = await read_body(request, kind, most, seconds, context.bodies)
    served.named(body.model)
    return served, body


def _ids(served: Served, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return served.tokenizer.encode(body.prompt, add_bos=body.add_special_tokens is not False)
    text = conversation_text(
        served.template, body.messages, body.tools, body.documents, body.chat_template_kwargs,
        body.add_generation_prompt is not False,
    )  # fmt: skip
    return served.tokenizer.encode(text, add_bos=False)


async def detokenize(request: Request) -> Response:
    """Put tokens together to a text."""
    served, body = await _read(request, DetokenizeRequest)
    if max(body.tokens, default=0) >= served.config.vocab_size:
        raise ApiError(
            400, f"id {max(body.tokens)} is beyond the vocabulary of {served.config.vocab_size} "
            "tokens", "invalid_value", "tokens",
        )  # fmt: skip
    text = await beside(served, served.tokenizer.decode, body.tokens)
    return JSONResponse({"prompt": text})
