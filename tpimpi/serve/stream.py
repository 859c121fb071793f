"""Answers that take long: sent as they come, and ended when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from tpimpi.serve.errors import ApiError, api_error

T = TypeVar("T")
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather tokens
]


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it when the client leaves. Raises ClientLeft."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(content: Any) -> bytes:
    """Return one event of a stream."""
    return (
        b"data: "
        + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        + b"\n\n"
    )


class EventStream:
    """An answer of server-sent events, with pings while nothing else has come.

    An error that comes later than the answer's status is an event, after which it ends. `close` is
    called at the end, however it comes. `notes` are the access log's.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], None], ping_seconds: float,
        notes: dict[str, Any],
    ):  # fmt: skip
        self._events, self._close, self._ping, self._notes = events, close, ping_seconds, notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        try:
            await while_connected(receive, self._answer(send))
        except ClientLeft:
            self._notes["error"] = "client_left"
        finally:
            self._close()

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._last = asyncio.get_running_loop().time()
        pings = asyncio.ensure_future(self._pings(send))
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    await self._send(send, data)
        except Exception as error:
            told = error if isinstance(error, ApiError) else api_error(error)
            self._notes["error"] = told.code
            await self._send(send, event(told.body))
        else:
            await self._send(send, DONE)
        finally:
            pings.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._last = asyncio.get_running_loop().time()

    async def _pings(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._last + self._ping - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._send(send, PING)
