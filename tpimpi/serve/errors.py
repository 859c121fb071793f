"""What a client is told when something is wrong, in the form of OpenAI's API."""

from __future__ import annotations

import traceback

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from tpimpi.console import say
from tpimpi.engine.service import Busy
from tpimpi.errors import MachineError, UserError

LEFT = 499  # status in log and metrics where the client has left, as nginx has it
SOON = 5  # seconds after which it may be worth to ask again


class ErrorContent(TypedDict):
    """What is wrong: a sentence, its kind, the field that it is about, a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """The body of an answer that says what is wrong."""

    error: ErrorContent


class ApiError(Exception):
    """An answer with a status that is none of success, and one sentence."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def body(self) -> ErrorAnswer:
        """The answer's body."""
        kind = _KINDS.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code
            }
        }  # fmt: skip

    def response(self) -> Response:
        """Return the whole answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


def unsupported(param: str, why: str) -> ApiError:
    """Return the refusal of something that this server can't do."""
    return ApiError(400, f"{param} is not supported: {why}", "unsupported_parameter", param)


def api_error(error: BaseException) -> ApiError:
    """Return what a client is told of an error of the program."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        busy = isinstance(error, Busy)
        return (
            ApiError(429, str(error), "queue_full", retry_after=SOON) if busy
            else ApiError(400, str(error))
        )  # fmt: skip
    if isinstance(error, MachineError):
        return ApiError(503, f"the engine has ended: {error}", "engine_ended")
    tell_defect(error)
    return ApiError(500, "internal error; the server's log says where", "internal_error")


def tell_defect(error: BaseException) -> None:
    """Say where the program failed; without the error's words, in which there may be a prompt."""
    traceback.print_tb(error.__traceback__)
    say(f"internal error in the server: {type(error).__name__}")


async def answer_api_error(request: Request, error: ApiError) -> Response:
    """Answer an ApiError."""
    request.state.error = error.code or error.body["error"]["type"]
    return error.response()


async def answer_http_error(request: Request, error) -> Response:
    """Answer what the router refuses: no such path, no such method there."""
    known = {404: f"there is no {request.method} {request.url.path[:200]} here; /openapi.json has "
                  "what there is",
             405: f"{request.url.path[:200]} doesn't take {request.method}"}  # fmt: skip
    found = ApiError(error.status_code, known.get(error.status_code, str(error.detail)))
    found.headers.update(error.headers or {})
    return await answer_api_error(request, found)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer any other error of the program."""
    return await answer_api_error(request, api_error(error))


async def answer_nobody(request: Request, error: Exception) -> Response:
    """End a request whose client has left."""
    request.state.error = "client_left"
    return Response(status_code=LEFT)
