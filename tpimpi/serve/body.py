"""A request's body: of bounded size, within bounded time, and as the schema has it."""

from __future__ import annotations

from typing import TypeVar

import anyio
from pydantic import ValidationError
from starlette.requests import Request

from tpimpi.serve.errors import ApiError
from tpimpi.serve.fields import check_extra
from tpimpi.serve.schema import Body

B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B], most: int, seconds: float) -> B:
    """Return a request's body as what it is to be.

    Raises ApiError, and ClientDisconnect where the client leaves meanwhile.
    """
    data = bytearray()
    try:
        length = int(request.headers.get("content-length", "0"))
    except ValueError:
        raise ApiError(400, "Content-Length is no number") from None
    if length > most:
        raise _too_large(length, most)
    try:
        with anyio.fail_after(seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise _too_large(len(data), most)
    except TimeoutError:
        raise ApiError(408, f"the body has not come within {seconds:g} s") from None
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from None
    check_extra(kind.kind, body.model_extra, getattr(body, "n", None))
    return body


def _too_large(length: int, most: int) -> ApiError:
    return ApiError(
        413, f"the body has {length} bytes or more, of which no more than {most} can be a request "
        "for this context", "body_too_large",
    )  # fmt: skip


def _refusal(error: ValidationError) -> ApiError:
    """Return what is wrong with a body, by its first field that is wrong."""
    found = error.errors(include_url=False, include_input=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", "invalid_json")
    if not first["loc"]:
        return ApiError(400, f"the body is no request: {first['msg']}", "invalid_type")
    param = str(first["loc"][0])
    same = [e for e in found if e["loc"][0] == param]
    chosen = next((e for e in same if e["type"] == "unsupported"), None)
    if chosen is not None:
        return ApiError(400, f"{param}: {chosen['msg']}", "unsupported_value", param)
    deepest = max(len(e["loc"]) for e in same)  # of several forms the one that is meant
    said = dict.fromkeys(_sentence(e, param) for e in same if len(e["loc"]) == deepest)
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, "; or ".join(list(said)[:4]), code, param)


def _sentence(error, param: str) -> str:
    """Return what is wrong with one field: `messages[0].role: Input should be ...`."""
    where = param
    for step in error["loc"][1:]:
        if isinstance(step, int):
            where += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int"):
            where += f".{step}"  # other steps are names of types
    return f"{where}: {error['msg']}"
