"""The server as an ASGI application: paths, and what stands around them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tpimpi.errors import MachineError, UserError
from tpimpi.serve import errors, others
from tpimpi.serve.chat import chat
from tpimpi.serve.completions import completions
from tpimpi.serve.context import Context
from tpimpi.serve.door import Door
from tpimpi.serve.openapi import description
from tpimpi.serve.page import page
from tpimpi.serve.stream import ClientLeft


def application(context: Context) -> ASGIApp:
    """Return the server of a context."""
    described = description()

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", others.models),
        Route("/v1/models/{name:path}", others.model),
        Route("/health", others.health),
        Route("/metrics", others.figures),
        Route("/v1/ranks", others.ranks),
        Route("/tokenize", others.tokenize, methods=["POST"]),
        Route("/detokenize", others.detokenize, methods=["POST"]),
        Route("/openapi.json", openapi),
        Route("/", page),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            errors.ApiError: errors.answer_api_error,
            UserError: errors.answer_error,
            MachineError: errors.answer_error,
            HTTPException: errors.answer_http_error,
            ClientLeft: errors.answer_nobody,
            ClientDisconnect: errors.answer_nobody,
            Exception: errors.answer_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return Door(app, context, frozenset(route.path for route in routes))
