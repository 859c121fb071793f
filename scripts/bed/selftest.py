"""Measure whether a bed keeps the delays and rates that were asked for, idle and under load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bed import assembly, devices, probe
from bed.links import Port
from bed.quantities import BedError, BedMistake, written_duration, written_rate
from bed.state import State
from bed.topology import Node

TOLERANCE = 0.1
_TRIPS, _TRIPS_TIME = 51, 0.6  # round trips of a pair, and seconds that they may take
_SECONDS = 1.0  # of a bulk transfer
_LONGEST_TRIP, _LEAST_RATE = 0.5, 1e6 / 8  # what can be measured in that time
# What a link sends for each packet that TCP fills, and what of it is the sender's data.
_WIRE, _DATA = 1514, 1448


@dataclass
class Measurement:
    """What was asked of a way between devices, and what was found: seconds or bytes a second."""

    name: str
    unit: str  # "s" or "B/s"
    asked: float  # 0 where there is no limit
    found: float
    loaded: bool

    @property
    def error(self) -> float:
        """By which part the finding is off; 0 where nothing was asked."""
        return self.found / self.asked - 1 if self.asked else 0.0

    def __str__(self) -> str:
        """Return a line for people."""
        written = written_duration if self.unit == "s" else written_rate
        asked = f"of {written(self.asked)}, {self.error:+.1%}" if self.asked else "(no limit)"
        return (
            f"{self.name:24} {'loaded' if self.loaded else 'idle':8} {written(self.found)} {asked}"
        )


def measure(state: State) -> Iterator[Measurement]:
    """Yield each measurement as it is made."""
    options, members = state.read()
    if len(members) < 2:
        raise BedMistake("the bed has one device, and so no link to measure")
    cut = [n.name for n, port in zip(members, options["ports"], strict=False) if not port["up"]]
    if cut:
        raise BedMistake(f"the link of {', '.join(cut)} is down; `testbed link DEVICE up`")
    assembly.engine(state, options).require_alive()
    _require_measurable(options, members)
    for loaded in (False, True):
        with _load(state, members) if loaded else contextlib.nullcontext(), probe.punctual():
            for way in _ways(state, options, members, loaded):
                yield _sure(way)


def _require_measurable(options: dict, members: list[Node]) -> None:
    trip = max(_asked(options, members[0], there) for there in members[1:])
    slowest = min(port["rate"] or _LEAST_RATE for port in options["ports"])
    if trip > _LONGEST_TRIP or slowest < _LEAST_RATE:
        raise BedError(
            f"the bed's longest round trip is {written_duration(trip)} and its slowest link has "
            f"{written_rate(slowest)}; what can be measured is up to "
            f"{written_duration(_LONGEST_TRIP)} and from {written_rate(_LEAST_RATE)}"
        )


def _sure(way: Callable[[], Measurement]) -> Measurement:
    """Measure once; where that is off, twice more, and take the middle of the three."""
    found = [way()]
    if abs(found[0].error) > TOLERANCE:
        found += [way(), way()]
    return sorted(found, key=lambda measurement: measurement.found)[len(found) // 2]


def _ways(
    state: State, options: dict, members: list[Node], loaded: bool
) -> Iterator[Callable[[], Measurement]]:
    for there in members[1:]:
        yield partial(_round_trip, state, options, members[0], there, loaded)
    yield from _transfers(state, options, members, loaded)


@contextlib.contextmanager
def _load(state: State, members: list[Node]) -> Iterator[None]:
    """Let a process compute on each device."""
    enter = [lambda node=node: devices.become(state, node) for node in members]
    with probe.busy(len(members), lambda number: enter[number]()):
        yield


def _asked(options: dict, a: Node, b: Node) -> float:
    """Return the seconds that a byte shall take there and back; 0 without a delay."""
    ends = [Port(**options["ports"][node.number - 1]) for node in (a, b)]
    return 2 * sum(end.byte for end in ends) if any(end.side for end in ends) else 0.0


def _round_trip(state: State, options: dict, a: Node, b: Node, loaded: bool) -> Measurement:
    asked = _asked(options, a, b)
    count = max(11, min(_TRIPS, int(_TRIPS_TIME / asked))) if asked else _TRIPS
    with probe.connected(state, a, b) as connection:
        found = probe.round_trip(connection, count)
    return Measurement(f"round trip {a.name} {b.name}", "s", asked, found, loaded)


def _transfers(
    state: State, options: dict, members: list[Node], loaded: bool
) -> Iterator[Callable[[], Measurement]]:
    rate = {node.name: options["ports"][node.number - 1]["rate"] for node in members}
    first, others = members[0], members[1:]
    around = list(zip(members, [*others, first], strict=True))
    plans = {f"{first.name} to {others[0].name}": [(first, others[0])]}
    if len(others) > 1:
        plans["all to " + first.name] = [(other, first) for other in others]
        plans[first.name + " to all"] = [(first, other) for other in others]
        plans["each to the next"] = around
    for name, ways in plans.items():
        slowest = [min(rate[a.name], rate[b.name]) for a, b in ways]
        limits = [sum(slowest)] if name == "each to the next" else [sum(slowest), rate[first.name]]
        asked = min(limits) if all(rate.values()) else 0.0
        yield partial(_transfer, state, options, name, ways, asked, loaded)


def _transfer(
    state: State,
    options: dict,
    name: str,
    ways: list[tuple[Node, Node]],
    asked: float,
    loaded: bool,
) -> Measurement:
    trip = max(_asked(options, a, b) for a, b in ways)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(probe.connected(state, a, b)) for a, b in ways]
        found = sum(probe.transfer(opened, _SECONDS, trip)) * _WIRE / _DATA
    return Measurement(name, "B/s", asked, found, loaded)


def check(state: State, quiet: bool = False) -> None:
    """Print what is measured. Raises BedError where it isn't what was asked for."""
    wrong = []
    try:
        for measurement in measure(state):
            if not quiet:
                print(measurement, flush=True)
            if abs(measurement.error) > TOLERANCE:
                wrong.append(str(measurement))
    except BedError:
        options, _ = state.read()
        assembly.engine(state, options).require_alive()  # that would be why
        raise
    if wrong:
        raise BedError(
            "the links are off by more than 10 %, so no time measured on this bed now means "
            f"anything ({'; '.join(' '.join(text.split()) for text in wrong)}); is other work "
            "running, or too much asked of this machine?"
        )
    if not quiet:
        print(f"all within {TOLERANCE:.0%}")
