"""What the server's parts share: the settings, the model once it runs, how all is going."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request

from tpimpi import status
from tpimpi.serve.answers import Health
from tpimpi.serve.body import Bodies
from tpimpi.serve.errors import SOON, ApiError
from tpimpi.serve.mailbox import Mailbox
from tpimpi.serve.metrics import Metrics
from tpimpi.serve.served import Served
from tpimpi.serve.settings import FaceSettings


@dataclass
class Context:
    """The state of a server; `served` is None while the model is loaded."""

    settings: FaceSettings
    metrics: Metrics = field(default_factory=Metrics)
    served: Served | None = None
    state: Literal["loading", "ok", "stopping", "ended"] = "loading"
    why: str = ""  # it has ended
    mailbox: Mailbox | None = None
    bodies: Bodies = field(default_factory=Bodies)
    _begin: float = field(default_factory=time.monotonic)

    def model(self) -> Served:
        """Return the model. Raises ApiError while there is none."""
        if self.state == "ended":
            raise ApiError(503, f"the engine has ended: {self.why}", "engine_ended")
        if self.state == "stopping":
            raise ApiError(503, "the server is being stopped", "server_stopping")
        if self.served is None:
            found = self.health()
            far = f" ({found['progress']})" if found["progress"] else ""
            raise ApiError(
                503, f"the model is being loaded: {found['doing']}{far}, since "
                f"{found['seconds']:.0f} s", "loading", retry_after=SOON,
            )  # fmt: skip
        return self.served

    def health(self) -> Health:
        """Return how the server is."""
        if self.state == "ended":
            return {"status": "ended", "message": self.why}
        if self.state != "loading":
            return {"status": self.state}
        own = status.current
        return {
            "status": "loading",
            "doing": own.own.doing,
            "progress": own.figures,
            "fraction": own.percent / 100 if own.percent <= 100 else None,
            "seconds": time.monotonic() - self._begin,
            "ranks": [
                {"rank": rank, "host": peer.host, "doing": peer.doing}
                for rank, peer in enumerate(own.peers)
            ],
        }

    def post(self) -> Mailbox:
        """Return what brings the engine's words to this event loop."""
        if self.mailbox is None:
            self.mailbox = Mailbox(asyncio.get_running_loop())
        return self.mailbox


def context_of(request: Request) -> Context:
    """Return the server's state."""
    return request.app.state.context


async def beside(served: Served, work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `work` returns in a thread of its own, where it may take long."""
    return await asyncio.get_running_loop().run_in_executor(served.worker, work, *arguments)
