"""Who has not been heard of for how long, when that is told, and when it is the end."""

from __future__ import annotations

import time

from tpimpi.status import LEAVING, MEETING, RUNNING, STARTING, TIMEOUT, Status

TICK = 0.5  # seconds between two looks
TELL = 5.0  # ... of silence that rank 0 tells of, and of twice that, and so on
LATER = 3.0  # ... that other ranks leave to rank 0, which says why it ends


class Silence:
    """Who has not been heard of for how long, as the guard counts it."""

    def __init__(self, own: Status):
        self._status, self.over = own, False
        self._since = [0.0] * len(own.peers)
        self._beats = [0] * len(own.peers)
        self._told = [0.0] * len(own.peers)
        self._last, self._stage = time.monotonic(), 0

    def look(self) -> str | None:
        """Return what is to be told now; `over` is then whether it is the end."""
        own, now = self._status, time.monotonic()
        passed, self._last = min(now - self._last, 2 * TICK), now
        stage = own.stage
        if stage != self._stage:
            begun, self._stage = self._stage == STARTING and stage == MEETING, stage
            if begun:
                return None
            self._since = [0.0] * len(own.peers)
            self._told = [0.0] * len(own.peers)
        if stage == RUNNING:
            return self._heartbeats(passed)
        if stage == LEAVING:
            return self._leaving(passed)
        return self._meeting(passed) if stage == MEETING or own.rank == 0 else None

    def _leaving(self, passed: float) -> str | None:
        """Judge MPI_Finalize, when all work is done: rank 0 waits there for others, or has gone."""
        own = self._status
        self._since[0] += passed
        if self._since[0] >= own.timeout + LATER * min(own.rank, 2):
            self.over = True
            return (
                f"rank {own.rank} on {own.own.host} did not end within {self._seconds(0)} after "
                "all was done: it, another rank or a link stands still (--timeout)"
            )
        told = self._once(0, "waiting {} for all ranks to end")
        return told if own.rank == 0 else None

    def _meeting(self, passed: float) -> str | None:
        """Judge a wait in MPI_Init, to which all come or all hang.

        There are no heartbeats to tell a slow rank from a silent one: so it is long.
        """
        self._since[0] += passed
        later = LATER * min(self._status.rank, 2)  # so that the first to end can say why
        if self._since[0] >= max(self._status.timeout, TIMEOUT) + later:
            self.over = True
            text = (
                f"not all ranks have come to start within {self._seconds(0)} (--timeout): is each "
                "host there, and can each reach every other one, through firewalls and Wi-Fi? "
                f"{self._status.then}"
            )
            return text if self._status.rank < 2 else None
        told = self._once(0, "waiting {} for all ranks to start")
        return told if self._status.rank == 0 else None

    def _heartbeats(self, passed: float) -> str | None:
        """Judge those that this rank hears: rank 0 all, the others rank 0."""
        own = self._status
        watched = range(len(own.peers)) if own.rank == 0 else (own.rank, 0)
        back = None
        for rank in watched:
            peer = own.peers[rank]
            if peer.beats != self._beats[rank] or peer.left:
                if self._told[rank]:
                    back = f"rank {rank} on {peer.host} is back after {self._seconds(rank)}"
                self._beats[rank], self._since[rank], self._told[rank] = peer.beats, 0.0, 0.0
            else:
                self._since[rank] += passed
        if own.rank:
            return self._of_another()
        silent = max(watched, key=lambda rank: self._since[rank])
        if self._since[0] >= TELL / 2:  # it is this one that hears nothing
            silent = 0
        peer = own.peers[silent]
        if self._since[silent] >= own.timeout:
            self.over = True
            return (
                f"nothing was heard of rank {silent} on {peer.host} for {self._seconds(silent)} "
                f"(--timeout), last while {peer.doing}: it is stopped or can't be reached; "
                f"{own.then}"
            )
        more = sum(since >= TELL for since in self._since) - 1 if silent else 0
        others = f" and {more} more" if more > 0 else ""
        return self._once(silent, f"waiting {{}} for rank {silent} on {peer.host}{others}") or back

    def _of_another(self) -> str | None:
        """End a rank that hears nothing of rank 0, unless it stands still itself."""
        own = self._status
        if self._since[own.rank] >= TELL:
            self._since[0] = 0.0
        if self._since[0] < own.timeout + LATER:
            return None
        self.over = True
        if own.rank != 1:
            return None
        return (
            f"rank 1 on {own.own.host} has heard nothing of rank 0 on {own.peers[0].host} for "
            f"{self._seconds(0)} (--timeout), and ends; {own.then}"
        )

    def _once(self, rank: int, text: str) -> str | None:
        """Return the text after 5 s, 10 s, 20 s ..."""
        if self._since[rank] < max(TELL, 2 * self._told[rank]):
            return None
        self._told[rank] = self._since[rank]
        return text.format(self._seconds(rank))

    def _seconds(self, rank: int) -> str:
        return f"{self._since[rank]:.0f} s"
