"""Read what people write for times, rates and sizes; refuse the rest in a sentence."""

from __future__ import annotations

import re


class BedError(Exception):
    """Say in a sentence what this machine lacks or could not do."""

    exit_code = 1


class BedMistake(BedError):
    """Say in a sentence what was asked wrongly, and what would be right."""

    exit_code = 2


_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z/%]*)")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BYTES = {"": 1, "B": 1} | {
    name: factor
    for power, prefix in enumerate("KMG", 1)
    for name, factor in (
        (prefix, 1024**power), (f"{prefix}iB", 1024**power), (f"{prefix}B", 1000**power)
    )
}  # fmt: skip


def _read(text: str, units: dict[str, float], what: str, examples: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    if not found or found[2] not in units:
        raise BedMistake(f"{text!r} is no {what}; write it as {examples}")
    return float(found[1]) * units[found[2]]


def duration(text: str) -> float:
    """Return seconds of `1ms`, `100us`, `0.5s`; `0` is none."""
    return 0.0 if text == "0" else _read(text, _SECONDS, "time", "1ms, 100us or 0.5s")


def rate(text: str) -> float:
    """Return bytes a second of `300mbit`, `1gbit`; `0` is without a limit."""
    return 0.0 if text == "0" else _read(text, _BITS, "rate of a link", "300mbit or 1gbit") / 8


def size(text: str) -> int:
    """Return bytes of `3G`, `512MiB`, `3GB`."""
    return int(_read(text, _BYTES, "size", "3G, 512MiB or 3GB"))


def disk_rate(text: str) -> int:
    """Return bytes a second of `50MB/s`, `50MB`."""
    return int(_read(text.removesuffix("/s"), _BYTES, "rate of a disk", "50MB/s"))


def share(text: str) -> float:
    """Return the fraction of `50%`."""
    fraction = _read(text, {"%": 0.01}, "share", "50%")
    if not 0 < fraction <= 1:
        raise BedMistake(f"a share of {text} is not between 0% and 100%")
    return fraction


def written_duration(seconds: float) -> str:
    """Return a time as `1.00 ms` or `100 us`."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def written_rate(bytes_per_second: float) -> str:
    """Return the rate of a link as `300 Mbit/s`."""
    return f"{bytes_per_second * 8 / 1e6:.4g} Mbit/s" if bytes_per_second else "no limit"
