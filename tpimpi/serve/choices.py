"""The texts of one request while they are made: asked of the engine, told as they come, ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpimpi.engine.generation import Completion
from tpimpi.engine.settings import GenerationSettings
from tpimpi.serve.answers import Usage, usage
from tpimpi.serve.errors import ApiError, api_error
from tpimpi.serve.mailbox import Mailbox
from tpimpi.serve.metrics import Metrics
from tpimpi.serve.served import Served, Ticket, of_choice


@dataclass
class Choices:
    """`n` texts after each of the prompts, in the order of the prompts.

    They are numbered through. To be left by `close`, which ends what still runs.
    """

    served: Served
    mailbox: Mailbox
    metrics: Metrics
    prompts: Sequence[list[int]]
    n: int
    settings: GenerationSettings
    constraint: Callable[[], Any] = lambda: None  # of each text its own
    completions: dict[int, Completion] = field(default_factory=dict)
    _tickets: list[Ticket] = field(default_factory=list)
    _closed: bool = False
    _queue: asyncio.Queue = field(default_factory=asyncio.Queue)
    _begin: float = field(default_factory=time.perf_counter)

    @property
    def count(self) -> int:
        """How many texts there are."""
        return self.n * len(self.prompts)

    def submit(self) -> None:
        """Ask the engine for all texts, in any thread. Raises ApiError; then for none.

        A long prompt takes the engine some milliseconds to look at.
        """
        if self.count > self.served.queue:
            raise ApiError(
                400, f"the request asks for {self.count} texts, and {self.served.queue} may wait "
                "for their turn (--queue); ask for fewer", "invalid_value", "n",
            )  # fmt: skip
        try:
            for index in range(self.count):
                self._tickets.append(
                    self.served.service.submit(
                        self.prompts[index // self.n], of_choice(self.settings, index),
                        self.mailbox.listener(self._queue, index), self.constraint(),
                    )
                )  # fmt: skip
                if self._closed:  # meanwhile, in the event loop's thread
                    self.close()
                    return
        except Exception as error:
            self.close()
            if isinstance(error, ApiError):
                raise
            raise api_error(error) from error

    async def events(self) -> AsyncIterator[tuple[int, Any]]:
        """Yield (a text's number, Piece or Completion) until all have ended. Raises ApiError."""
        last = [self._begin] * self.count
        while len(self.completions) < self.count:
            index, event = await self._queue.get()
            now = time.perf_counter()
            if isinstance(event, Completion):
                self.completions[index] = event
                if event.finish_reason == "cancelled":
                    raise ApiError(
                        503, "the server is being stopped, and ended the answer", "server_stopping"
                    )
            elif isinstance(event, BaseException):
                raise api_error(event) from event
            elif event.tokens:
                first = last[index] == self._begin
                self.metrics.came(now - last[index], len(event.tokens), first)
                last[index] = now
            yield index, event

    def close(self) -> None:
        """End the texts that are still made (any thread)."""
        self._closed = True
        for index, ticket in enumerate(self._tickets):
            if index not in self.completions:
                ticket.cancel()

    def usage(self) -> Usage:
        """Return the account of what has come."""
        firsts = [self.completions.get(at * self.n) for at in range(len(self.prompts))]
        return usage(
            [len(prompt) for prompt in self.prompts],
            [done.cached_tokens if done else 0 for done in firsts],
            sum(len(done.ids) for done in self.completions.values()),
        )

    def account(self) -> dict[str, Any]:
        """Return what the access log tells of it."""
        count = self.usage()
        reasons = {done.finish_reason for done in self.completions.values()}
        return {
            "prompt_tokens": count["prompt_tokens"],
            "cached_tokens": count["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": count["completion_tokens"],
            "finish_reason": ",".join(sorted(reasons)) or None,
        }  # fmt: skip
