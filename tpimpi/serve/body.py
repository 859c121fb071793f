"""A request's body: of bounded size, within bounded time, and as the schema has it."""

from __future__ import annotations

from typing import TypeVar

import anyio
from pydantic import ValidationError
from starlette.requests import Request

from tpimpi.serve.errors import SOON, ApiError
from tpimpi.serve.fields import check_extra
from tpimpi.serve.schema import Body
from tpimpi.serve.settings import FREE, HELD

B = TypeVar("B", bound=Body)


class Bodies:
    """How many bytes of bodies are in memory that are being read, of all connections."""

    def __init__(self) -> None:
        self._held = 0

    def grow(self, more: int, most: int) -> None:
        """Take some more bytes, `most` in all. Raises ApiError where there is no room for them."""
        if self._held + more > most:
            raise ApiError(
                503, "too many long requests are coming at the same time; ask again soon", "busy",
                retry_after=SOON,
            )  # fmt: skip
        self._held += more

    def shrink(self, bytes_: int) -> None:
        """Give bytes back."""
        self._held -= bytes_


async def read_body(
    request: Request, kind: type[B], most: int, seconds: float, bodies: Bodies
) -> B:
    """Return a request's body as what it is to be.

    Raises ApiError, and ClientDisconnect where the client leaves meanwhile.
    """
    data, counted = bytearray(), 0
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
                more = max(len(data) - FREE - counted, 0)
                bodies.grow(more, HELD * most)
                counted += more
        body = kind.model_validate_json(data)
    except TimeoutError:
        raise ApiError(408, f"the body has not come within {seconds:g} s") from None
    except ValidationError as error:
        raise _refusal(error) from None
    finally:
        bodies.shrink(counted)
    check_extra(kind.kind, body.model_extra, getattr(body, "n", None))
    if body.model_extra:
        body.model_extra.clear()  # what is ignored is not kept until the answer is made
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
