"""Texts for other threads of rank 0, asked for at any time; the model stays in the main one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from tpimpi import status
from tpimpi.console import say
from tpimpi.engine.engine import Engine, Job
from tpimpi.engine.figures import RankFigures
from tpimpi.engine.generation import Completion, Generation
from tpimpi.engine.prompts import Prompts
from tpimpi.engine.request import Constraint, Piece
from tpimpi.engine.session import Session
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import MachineError, UserError, describe

FIGURES_EVERY = 1.0  # seconds, while somebody asks for them
ASKED_WITHIN = 5.0  # ... after which nobody does any more

Event = Piece | Completion | Exception
Listener = Callable[[Event], None]


class Busy(UserError):
    """So many wait already that one more is sent away."""


@dataclass(frozen=True)
class Snapshot:
    """What a service is doing, and has done since its start."""

    running: int  # texts
    waiting: int
    max_batch: int
    pages: int  # of the KV cache
    pages_used: int
    pages_cached: int  # that nobody uses, but may be found again
    passes: int
    prompt_tokens: int
    cached_tokens: int  # of those: found computed
    generated_tokens: int
    ranks: tuple[RankFigures, ...]


class Ticket:
    """A text that was asked for."""

    def __init__(self, service: Service, generation: Generation, listener: Listener):
        self._service, self.generation, self._listener = service, generation, listener
        self.job: Job | None = None  # once the engine has it
        self.cancelled = False

    def cancel(self) -> None:
        """End it half-way, from any thread; its listener gets what was made."""
        self._service._cancel(self)

    def tell(self, event: Event) -> None:
        """Tell the listener, whose own errors are not the engine's."""
        try:
            self._listener(event)
        except Exception as error:
            say(f"a reader of a text has failed: {describe(error)}")
            self.cancel()


class Service:
    """Make texts for any thread, up to `queue` of them waiting, while `run` runs."""

    def __init__(self, session: Session, prompts: Prompts | None, queue: int):
        self._session, self._prompts, self._queue = session, prompts, queue
        self._changed = threading.Condition()
        self._new: deque[Ticket] = deque()
        self._left: deque[Ticket] = deque()  # cancelled, and not yet ended
        self._tickets: dict[Job, Ticket] = {}
        self._until: float | None = None  # when what still runs is ended
        self._ended: str | None = None
        self._asked, self._taken = -ASKED_WITHIN, 0.0
        self._snapshot = Snapshot(0, 0, session.model.cache.slots, 0, 0, 0, 0, 0, 0, 0, ())

    def submit(
        self, prompt: str | Sequence[int], settings: GenerationSettings, listener: Listener,
        constraint: Constraint | None = None, add_bos: bool = True,
    ) -> Ticket:  # fmt: skip
        """Ask for a text, from any thread of rank 0.

        `listener` is told, in the engine's thread, each Piece and at last the Completion, or the
        Exception that ended it. Raises UserError for what can't be made, Busy where too many wait,
        and MachineError once the service has ended.
        """
        if self._prompts is None:
            raise UserError("rank 0 alone takes requests; the other ranks compute")
        generation = self._prompts.generation(prompt, settings, add_bos, constraint)
        ticket = Ticket(self, generation, listener)
        with self._changed:
            if self._ended is not None or self._until is not None:
                raise MachineError(self._ended or "the server is stopping; ask again later")
            waiting = len(self._new) + len(self._session.engine.scheduler.waiting)
            free = self._session.engine.slots - len(self._tickets) - len(self._new)
            if waiting >= self._queue and free <= 0:
                raise Busy(f"{waiting} requests are waiting already, as many as may; ask later")
            self._new.append(ticket)
            self._changed.notify()
        return ticket

    async def stream(
        self, prompt: str | Sequence[int], settings: GenerationSettings,
        constraint: Constraint | None = None, add_bos: bool = True,
    ) -> AsyncIterator[Piece | Completion]:  # fmt: skip
        """Yield a text's pieces and at last its Completion, in any event loop; raise as `submit`.

        Leaving it cancels the text.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue()
        ticket = self.submit(
            prompt, settings,
            lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            constraint, add_bos,
        )  # fmt: skip
        event: Event | None = None
        try:
            while not isinstance(event, Completion):
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            if not isinstance(event, Completion | Exception):
                ticket.cancel()

    def stop(self, seconds: float = 0.0) -> None:
        """Take no more, and let `run` end once all texts have, or after some seconds (any thread).

        Also from a signal's handler.
        """
        if self._until is None or seconds == 0.0:
            self._until = time.monotonic() + seconds
        self._wake()

    def snapshot(self) -> Snapshot:
        """Return what it is doing (any thread); the ranks' figures are some seconds old at most."""
        self._asked = time.monotonic()
        return self._snapshot

    def run(self) -> None:
        """Make texts until `stop` (collective; in the main thread of each rank).

        What fails on a machine is raised on all ranks, and told to all who wait.
        """
        error: BaseException | None = None
        try:
            with self._session.leading("serving") as runner:
                if runner is not None:
                    self._serve(self._session.engine)
        except BaseException as e:
            error = e
            raise
        finally:
            self._end(error)

    def _serve(self, engine: Engine) -> None:
        while True:
            with self._changed:
                while not self._has_work(engine):
                    status.current.begin("waiting for requests")
                    self._note(engine)
                    # A time limit, as a handler of a signal may not have been able to wake this.
                    self._session.rest()
                    self._changed.wait(FIGURES_EVERY)
                    self._session.wake()
                new, left = list(self._new), list(self._left)
                self._new.clear()
                self._left.clear()
            self._join(engine, new, left)
            if self._until is not None and (not engine.busy or time.monotonic() > self._until):
                for ticket in list(self._tickets.values()):
                    self._finish(engine, ticket)
                return
            self._step(engine)
            self._note(engine)

    def _has_work(self, engine: Engine) -> bool:
        return bool(self._new or self._left or engine.busy or self._until is not None)

    def _join(self, engine: Engine, new: list[Ticket], left: list[Ticket]) -> None:
        for ticket in new:
            ticket.job = engine.add(ticket.generation)
            self._tickets[ticket.job] = ticket
        for ticket in left:
            if ticket.job in self._tickets:
                self._finish(engine, ticket)

    def _step(self, engine: Engine) -> None:
        running = len(engine.scheduler.running)
        status.current.begin(f"computing {running} texts" if running > 1 else "computing a text")
        for job, event in engine.step():
            ticket = self._tickets[job]
            if isinstance(event, Exception):
                del self._tickets[job]
                ticket.tell(event)
                continue
            ticket.tell(event)
            if job.generation.reason:
                del self._tickets[job]
                ticket.tell(job.generation.completion)

    def _finish(self, engine: Engine, ticket: Ticket) -> None:
        """End a text half-way."""
        del self._tickets[ticket.job]
        engine.cancel(ticket.job)
        ticket.tell(ticket.generation.completion)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            if not ticket.cancelled:
                ticket.cancelled = True
                self._left.append(ticket)
                self._changed.notify()

    def _wake(self) -> None:
        # A handler runs in the main thread, which may hold the lock: then it looks before long.
        if self._changed.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):
                self._changed.notify()
            self._changed.release()

    def _note(self, engine: Engine) -> None:
        """Let others see how far it is."""
        ranks, now = self._snapshot.ranks, time.monotonic()
        if now - self._asked < ASKED_WITHIN and now - self._taken > FIGURES_EVERY:
            ranks, self._taken = tuple(self._session.runner.figures()), now
        pages = self._session.runner.pages
        self._snapshot = replace(
            self._snapshot, running=len(engine.scheduler.running),
            waiting=len(engine.scheduler.waiting), max_batch=engine.slots,
            pages=pages.count, pages_used=pages.used, pages_cached=pages.cached,
            passes=engine.passes, prompt_tokens=engine.prompt_tokens,
            cached_tokens=engine.cached_tokens, generated_tokens=engine.made_tokens, ranks=ranks,
        )  # fmt: skip

    def _end(self, error: BaseException | None) -> None:
        """Tell all who wait that nothing comes any more."""
        with self._changed:
            self._ended = "the server has stopped"
            if error is not None:
                self._ended = str(error) or type(error).__name__
            waiting = [*self._tickets.values(), *self._new]
            self._new.clear()
            self._tickets.clear()
        for ticket in waiting:
            ticket.tell(MachineError(self._ended))
