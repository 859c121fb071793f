"""Read what people write for times, rates and sizes; refuse the rest in a sentence."""

from __future__ import annotations

import re


class BedError(Exception):
    """Say in a sentence what this machine lacks or could not do."""

    exit_code = 1


class BedMistake(BedError):
    """Say in a sentence what was asked wrongly, and what would be right."""

    exit_code = 2


_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z/%]*)")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES = {"": 1, "B": 1, "kB": 1000} | {
    name: factor
    for power, prefix in enumerate("KMG", 1)
    for name, factor in (
        (prefix, 1024**power), (f"{prefix}iB", 1024**power), (f"{prefix}B", 1000**power)
    )
}  # fmt: skip


def _read(text: str, units: dict[str, float], what: str, examples: str) -> float:
    """Return the number in its smallest unit; it may be too large for anything."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or found[2] not in units:
        raise BedMistake(f"{text!r} is no {what}; write it as {examples}")
    return float(found[1]) * units[found[2]]


def _within(text: str, value: float, least: float, most: float, what: str, between: str) -> float:
    # A little is left to rounding: 0.1 gbit is not quite 100 mbit.
    if not least * (1 - 1e-9) <= value <= most * (1 + 1e-9):
        raise BedMistake(f"{text!r} is no {what} that a bed can have; take {between}")
    return value


def whole(text: str, flag: str, least: int, most: int) -> int:
    """Return the whole number of a flag."""
    if not re.fullmatch(r"-?[0-9]{1,20}", text.strip()):
        raise BedMistake(f"{flag} {text!r} is no whole number; take {least} to {most}")
    if not least <= int(text) <= most:
        raise BedMistake(f"{flag} {int(text)} is not between {least} and {most}")
    return int(text)


def duration(text: str) -> float:
    """Return seconds of `1ms`, `100us`, `0.5s`; `0` is none."""
    if text.strip() == "0":
        return 0.0
    seconds = _read(text, _SECONDS, "time", "1ms, 100us or 0.5s")
    return _within(text, seconds, 0, 60, "delay", "60s at most")


def rate(text: str) -> float:
    """Return bytes a second of `300mbit`, `1gbit`; `0` is without a limit."""
    bits = 0.0 if text.strip() == "0" else _read(text, _BITS, "rate of a link", "300mbit or 1gbit")
    return bits and _within(text, bits, 1e3, 1e11, "rate", "1kbit to 100gbit, or 0 (no limit)") / 8


def memory(text: str) -> int:
    """Return bytes of `3G`, `512MiB`, `3GB`; `0` is without a limit."""
    nbytes = _read(text, _BYTES, "size", "3G, 512MiB or 3GB")
    # A device's own processes are a sleep and, while it is made and for each command, a Python.
    between = "16MiB to 1048576G, or 0 (no limit)"
    return int(nbytes and _within(text, nbytes, 16 << 20, 1 << 50, "memory", between))


def disk_rate(text: str) -> int:
    """Return bytes a second of `50MB/s`, `50MB`; `0` is without a limit."""
    nbytes = _read(text.removesuffix("/s"), _BYTES, "rate of a disk", "50MB/s")
    between = "100kB/s to 1000GB/s, or 0 (no limit)"
    return int(nbytes and _within(text, nbytes, 1e5, 1e12, "rate of a disk", between))


def cores(text: str) -> float:
    """Return how many cores' worth `0.5` is."""
    found = _read(text, {"": 1.0}, "number of cores", "0.5 or 2")
    return _within(text, found, 0.1, 1024, "number of cores", "0.1 to 1024")


def share(text: str) -> float:
    """Return the fraction of `50%`."""
    fraction = _read(text, {"%": 0.01}, "share", "50%")
    return min(1.0, _within(text, fraction, 0.01, 1, "share", "1% to 100%"))


def written_duration(seconds: float) -> str:
    """Return a time as `2 s`, `1.00 ms` or `100 us`."""
    if seconds >= 1:
        return f"{seconds:.4g} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def written_rate(bytes_per_second: float) -> str:
    """Return the rate of a link as `300 Mbit/s`."""
    megabits = bytes_per_second * 8 / 1e6
    return f"{megabits:.{4 if megabits < 1e4 else 6}g} Mbit/s" if megabits else "no limit"
