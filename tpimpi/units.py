"""How numbers of bytes and seconds are written for people: the one place that knows."""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30


def size(nbytes: float) -> str:
    """Return bytes as `512 MiB` or `1.25 GiB`; below 10 MiB with one digit, below 1 MiB in KiB."""
    if nbytes >= GIB:
        return f"{nbytes / GIB:.2f} GiB"
    if nbytes >= 10 * MIB:
        return f"{nbytes / MIB:.0f} MiB"
    if nbytes >= MIB:
        return f"{nbytes / MIB:.1f} MiB"
    return f"{nbytes / 1024:.0f} KiB" if nbytes >= 1024 else f"{nbytes:.0f} bytes"


def rate(bytes_per_second: float) -> str:
    """Return a rate as `310 MB/s` or `2.41 GB/s`, decimal as disks and networks are sold."""
    if bytes_per_second >= 1e9:
        return f"{bytes_per_second / 1e9:.2f} GB/s"
    return f"{bytes_per_second / 1e6:.0f} MB/s"


def duration(seconds: float) -> str:
    """Return seconds as `8 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
