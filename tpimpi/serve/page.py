"""The chat page: one file, which may run its own script only and talk to this server only."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from tpimpi.serve.errors import ApiError

PAGE = Path(__file__).with_name("page.html")


async def page(request: Request) -> Response:
    """Show the chat page."""
    try:
        content, policy = _page()
    except OSError:
        raise ApiError(404, f"there is no chat page in this installation: {PAGE}") from None
    return Response(
        content, media_type="text/html",
        headers={
            "Content-Security-Policy": policy, "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        },
    )  # fmt: skip


@lru_cache(1)
def _page() -> tuple[bytes, str]:
    """Return the page, and the policy that a browser keeps it to."""
    content = PAGE.read_bytes()
    return content, policy(content.decode())


def policy(text: str) -> str:
    """Return the policy of a page: its one script and its one style, known by their hashes."""
    return (
        f"default-src 'none'; script-src {_digest(text, 'script')}; "
        f"style-src {_digest(text, 'style')}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digest(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    inside = found[1] if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
