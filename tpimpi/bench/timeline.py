"""Record what each rank does during a step: compute, disk wait, network. Costs nothing when off."""

from __future__ import annotations

from tpimpi.comm.group import Group

NETWORK, DISK = "network", "disk wait"


class Recorder:
    """Note the intervals of one rank's steps, while in `with recorder:`.

    It listens to the waits that the group and the tape time anyway, and to the runner's passes.
    """

    def __init__(self, group: Group, tape, runner):
        self._group, self._tape, self._runner = group, tape, runner
        self.steps: list[tuple[float, float]] = []  # begin and end of each pass
        self.waits: list[tuple[str, float, float]] = []  # what, begin, end; in seconds

    def __enter__(self) -> Recorder:
        self._group.on_wait = lambda begin, end: self.waits.append((NETWORK, begin, end))
        self._tape.on_wait = lambda begin, end: self.waits.append((DISK, begin, end))
        self._runner.on_pass = lambda begin, end: self.steps.append((begin, end))
        return self

    def __exit__(self, *_) -> None:
        self._group.on_wait = self._tape.on_wait = self._runner.on_pass = None

    def last(self) -> dict:
        """Return the last step: its seconds, and its waits as (what, begin, end) from its begin."""
        begin, end = self.steps[-1]
        waits = [(w, a - begin, b - begin) for w, a, b in self.waits if a >= begin and b <= end]
        return {"seconds": end - begin, "waits": waits}


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
