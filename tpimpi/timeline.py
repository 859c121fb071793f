"""Record what each rank does during a step: compute, disk wait, network. Costs nothing when off."""

from __future__ import annotations

import time
from collections.abc import Callable

from tpimpi.comm import Group

NETWORK, DISK = "network", "disk wait"


class Recorder:
    """Note the intervals of one rank's steps, while in `with recorder:`.

    Watches the sums of `group`, the waits of `tape`, and the forward passes of `model` by standing
    in for their methods until it leaves.
    """

    def __init__(self, group: Group, tape, model):
        self._group, self._tape, self._model = group, tape, model
        self.steps: list[tuple[float, float]] = []  # begin and end of each pass
        self.waits: list[tuple[str, float, float]] = []  # what, begin, end; in seconds

    def __enter__(self) -> Recorder:
        group, model = self._group, self._model
        group.allreduce = self._watched(NETWORK, group.allreduce)
        group.gatherv_rows = self._watched(NETWORK, group.gatherv_rows)
        model.forward = self._watched(None, model.forward)
        self._tape.take = self._watched_take(self._tape.take)
        return self

    def __exit__(self, *_) -> None:
        for thing, name in (
            (self._group, "allreduce"), (self._group, "gatherv_rows"),
            (self._model, "forward"), (self._tape, "take"),
        ):  # fmt: skip
            del thing.__dict__[name]  # the method of the class is seen again

    def last(self) -> dict:
        """Return the last step: its seconds, and its waits as (what, begin, end) from its begin."""
        begin, end = self.steps[-1]
        waits = [(w, a - begin, b - begin) for w, a, b in self.waits if a >= begin and b <= end]
        return {"seconds": end - begin, "waits": waits}

    def _watched(self, what: str | None, method: Callable) -> Callable:
        def call(*arguments):
            begin = time.perf_counter()
            result = method(*arguments)
            end = time.perf_counter()
            if what is None:
                self.steps.append((begin, end))
            else:
                self.waits.append((what, begin, end))
            return result

        return call

    def _watched_take(self, take: Callable) -> Callable:
        def watched(name: str):
            tiles = iter(take(name))
            while True:
                before = self._tape.wait_seconds
                try:
                    item = next(tiles)
                except StopIteration:
                    return
                waited = self._tape.wait_seconds - before
                if waited > 0:
                    now = time.perf_counter()
                    self.waits.append((DISK, now - waited, now))
                yield item

        return watched


def totals(step: dict) -> dict[str, float]:
    """Return the seconds of a step by what they went to."""
    found = {NETWORK: 0.0, DISK: 0.0}
    for what, begin, end in step["waits"]:
        found[what] += end - begin
    return {
        "seconds": step["seconds"],
        "compute_seconds": step["seconds"] - sum(found.values()),
        "disk_wait_seconds": found[DISK],
        "network_seconds": found[NETWORK],
    }
