"""The OpenAPI description of the server, made of its schema: /openapi.json."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from tpimpi import __version__
from tpimpi.serve import answers, schema
from tpimpi.serve.errors import ErrorAnswer

REF = "#/components/schemas/{model}"
_NEEDS_MODEL = (400, 401, 403, 404, 408, 413, 429, 500, 503)
_SAID = {
    400: "The request makes no sense, or asks for what is not supported", 401: "No or a wrong key",
    403: "A host or an origin that is not let in", 404: "No such model",
    408: "The body has not come in time", 413: "The body is too large",
    429: "The queue is full", 500: "A defect of the server",
    503: "The model is being loaded, the server is being stopped, or the engine has ended",
}  # fmt: skip
_POSTS = (
    ("/v1/chat/completions", schema.ChatRequest, answers.ChatAnswer, answers.ChatChunk),
    (
        "/v1/completions",
        schema.CompletionRequest,
        answers.CompletionAnswer,
        answers.CompletionChunk,
    ),
    ("/tokenize", schema.TokenizeRequest, answers.Tokens, None),
    ("/detokenize", schema.DetokenizeRequest, answers.Text, None),
)
_GETS = (
    ("/v1/models", answers.ModelList, (401, 403, 503)),
    ("/v1/models/{name}", answers.ModelEntry, (401, 403, 404, 503)),
)


def description() -> dict[str, Any]:
    """Return the description as OpenAPI 3.2 has it: the first that knows streams of events."""
    bodies = [kind for _, kind, _, _ in _POSTS]
    _, found = models_json_schema([(kind, "validation") for kind in bodies], ref_template=REF)
    schemas = dict(found["$defs"])
    shown = [answer for _, _, *several in _POSTS for answer in several if answer is not None]
    for kind in (*shown, *(answer for _, answer, _ in _GETS), answers.Health, ErrorAnswer):
        one = TypeAdapter(kind).json_schema(ref_template=REF, mode="serialization")
        schemas.update(one.pop("$defs", {}))
        schemas[kind.__name__] = one
    paths: dict[str, Any] = {}
    for path, body, answer, chunk in _POSTS:
        content = {"application/json": {"schema": _ref(answer)}}
        if chunk is not None:
            one = {"anyOf": [_ref(chunk), _ref(ErrorAnswer)]}
            data = {
                "type": "string",
                "anyOf": [
                    {"contentMediaType": "application/json", "contentSchema": one},
                    {"const": "[DONE]"},
                ],
            }
            content["text/event-stream"] = {
                "itemSchema": {"type": "object", "properties": {"data": data}}
            }
        paths[path] = {
            "post": {
                "operationId": body.__name__.removesuffix("Request").lower(),
                "summary": (body.__doc__ or "").splitlines()[0],
                "requestBody": {
                    "required": True, "content": {"application/json": {"schema": _ref(body)}},
                },
                "responses": {
                    "200": {"description": "The answer", "content": content},
                    **_errors(_NEEDS_MODEL),
                },
            }
        }  # fmt: skip
    for path, answer, errors in _GETS:
        paths[path] = {"get": _get(answer, _errors(errors))}
    paths["/v1/models/{name}"]["get"]["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    loading = {"description": "Not yet, or no more", **_json(answers.Health)}
    paths["/health"] = {"get": _get(answers.Health, {"503": loading, **_errors((403,))})}
    text = {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"responses": {"200": text, **_errors((401, 403))}}}
    return {
        "openapi": "3.2.0",
        "info": {"title": "tpimpi", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": REF.format(model=kind.__name__)}


def _json(kind: type) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _ref(kind)}}}


def _get(answer: type, others: dict[str, Any]) -> dict[str, Any]:
    return {"responses": {"200": {"description": "The answer", **_json(answer)}, **others}}


def _errors(codes) -> dict[str, Any]:
    return {str(code): {"description": _SAID[code], **_json(ErrorAnswer)} for code in codes}
