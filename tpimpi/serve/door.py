"""Who may come in: hosts, origins, keys; and the line of the access log for each who came.

Any web page that a user visits can send requests to 127.0.0.1, and one whose name is made to lead
there could read the answers (DNS rebinding). So pages of other origins are refused, unless
--allow-origin names them, and so are host names that are not this machine's.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
import time
from datetime import datetime, timezone
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpimpi.console import say
from tpimpi.serve.context import Context
from tpimpi.serve.errors import LEFT, ApiError, tell_defect

OPEN = {"/", "/health", "/openapi.json"}  # without a key: nothing of the model or of others
WATCHED = {"/health", "/metrics", "/v1/ranks"}  # asked again and again: not in the log
METHODS = "GET, POST, OPTIONS"


class Door:
    """The outermost part of the server, around the router."""

    def __init__(self, inner: ASGIApp, context: Context, paths: frozenset[str]):
        settings = context.settings
        self._inner, self._context, self._paths = inner, context, paths
        self._keys = [key.encode() for key in settings.keys]
        self._origins = {origin.rstrip("/").lower() for origin in settings.origins}
        here = {"localhost", settings.host, socket.gethostname(), f"{socket.gethostname()}.local"}
        here |= {urlsplit(origin).hostname for origin in settings.origins} - {None}
        self._hosts = {name.lower() for name in here}
        self._log = AccessLog(settings.access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            return
        begin, sent, notes = time.perf_counter(), [], {}
        scope["state"] = {"notes": notes, "error": None}
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        request_id = secrets.token_hex(8)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])
                more = MutableHeaders(scope=message)
                more["X-Request-Id"] = request_id
                if origin is not None and self._is_allowed(origin):
                    more["Access-Control-Allow-Origin"] = origin
                    more["Access-Control-Expose-Headers"] = "X-Request-Id"
                    more.add_vary_header("Origin")
            await send(message)

        try:
            try:
                refusal = self._refusal(scope, headers, origin)
                if refusal is not None:
                    notes["error"] = refusal.code
                    await refusal.response()(scope, receive, tell)
                elif scope["method"] == "OPTIONS":
                    await self._preflight(headers, origin)(scope, receive, tell)
                else:
                    await self._inner(scope, receive, tell)
            except Exception as error:
                if scope["state"]["error"] is None:
                    tell_defect(error)
                notes["error"] = "internal_error"
                sent[:] = sent or [500]
        finally:
            self._told(scope, sent[0] if sent else LEFT, time.perf_counter() - begin, request_id)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> ApiError | None:
        """Return why a request is not let in; None: it is."""
        host = headers.get("host", "")
        if not self._keys and not self._is_here(host):
            return ApiError(
                403, f"the host {host[:100]!a} is not this machine's name; start the server with "
                "--host NAME, or use its address", "wrong_host",
            )  # fmt: skip
        own = f"{scope['scheme']}://{host}".lower()
        if origin is not None and origin.lower() != own and not self._is_allowed(origin):
            return ApiError(
                403, f"pages of {origin[:100]!a} may not use this server; --allow-origin lets them",
                "wrong_origin",
            )  # fmt: skip
        if self._keys and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1", "replace")
            right = [hmac.compare_digest(given, one) for one in self._keys]
            if scheme.lower() != "bearer" or not any(right):
                what = "the API key is not right" if key else "this server wants an API key"
                return ApiError(
                    401, f"{what}: send it as Authorization: Bearer KEY", "invalid_api_key"
                )
        return None

    def _is_here(self, host: str) -> bool:
        """Tell whether a Host header means this machine.

        An address can't be made to lead here, and every browser sends the header.
        """
        if not host:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True

    def _is_allowed(self, origin: str) -> bool:
        return origin.lower() in self._origins or "*" in self._origins

    def _preflight(self, headers: Headers, origin: str | None) -> Response:
        """Answer what a browser asks before it sends a request of another origin's page."""
        wanted = headers.get("access-control-request-headers", "authorization, content-type")
        return Response(
            status_code=204,
            headers={
                "Allow": METHODS, "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": wanted, "Access-Control-Max-Age": "600",
            }
            if origin is not None
            else {"Allow": METHODS},
        )  # fmt: skip

    def _told(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # A path that is none of ours may hold anything, and there is no end of such.
        path = scope["path"] if scope["path"] in self._paths else "other"
        if path == "other" and scope["path"].startswith("/v1/models/"):
            path = "/v1/models/{name}"
        self._context.metrics.answered(path, status, seconds)
        if path in WATCHED and status in (200, 503):
            return
        client = scope.get("client")
        state = scope["state"]
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": request_id,
            "client": client[0] if client else None,
            "method": scope["method"] if scope["method"].isalpha() else "other",
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            **state["notes"],
        }
        line["error"] = state["notes"].get("error") or state["error"]
        self._log.write({key: value for key, value in line.items() if value is not None})


class AccessLog:
    """A line of JSON for each request: who, when, how much; no prompts, no texts, no keys."""

    def __init__(self, path: str | None):
        self._file = None
        if path == "-":
            self._file = sys.stdout
        elif path is not None:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - as long as the server

    def write(self, line: dict) -> None:
        """Write a line; where that can't be, say so once and go on without a log."""
        if self._file is None:
            return
        try:
            print(json.dumps(line), file=self._file, flush=True)
        except (OSError, ValueError) as error:
            self._file = None
            say(f"the access log can't be written any more ({error}); requests are still answered")
