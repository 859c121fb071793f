"""How far long work is: a bar on a terminal, elsewhere a plain line every two seconds.

Under every mpirun a rank's standard error is a pipe, where bars would turn themselves off.
"""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from tpimpi.units import duration, rate, size

EVERY_SECONDS = 2.0


class Progress:
    """Tell how much of `total` is done; `total` counts bytes, or what `unit` names.

    Where `speaks` is false, as on ranks other than 0, nothing is told. Where the units are not
    `even`, but take very different times, no rate and no time left are told.
    """

    def __init__(
        self, title: str, total: int, unit: str = "B", speaks: bool = True, even: bool = True
    ):
        self._title, self._total, self._unit = title, total, unit
        self._done, self._start = 0, time.monotonic()
        self._speaks, self._last, self._even = speaks, self._start, even
        self._bar = None
        if speaks and sys.stderr is not None and sys.stderr.isatty():
            plain = "{l_bar}{bar}| {n_fmt} of {total_fmt} {unit}"
            self._bar = tqdm(
                total=total, desc=title, unit=unit, unit_scale=unit == "B", unit_divisor=1024,
                leave=False, bar_format=None if even else plain,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, amount: int = 0) -> None:
        """Count `amount` more as done, and tell it when it is time."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif self._speaks:
            now = time.monotonic()
            if now - self._last >= EVERY_SECONDS:
                self._last = now
                print(f"tpimpi: {self._line(now - self._start)}", file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        if self._unit == "B":
            text = f"{self._title}: {size(self._done)} of {size(self._total)}"
            pace = rate(self._done / seconds)
        else:
            text = f"{self._title}: {self._done} of {self._total} {self._unit}"
            pace = f"{self._done / seconds:.3g} a second"
        if not self._done or not self._even:
            return text
        left = seconds * (self._total - self._done) / self._done
        return f"{text}, {pace}, {duration(left)} left"
