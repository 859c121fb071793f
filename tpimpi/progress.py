"""How far long work is, and that a wait lasts: a bar on a terminal, else a line every two seconds.

Under every mpirun a rank's standard error is a pipe, where bars would turn themselves off.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from tpimpi import status
from tpimpi.units import duration, rate, size

EVERY_SECONDS = 2.0
FEW, MANY = 3, 8  # devices of which a line tells all, and a sudden end still each


class Progress:
    """Tell how much of `total` is done; `total` counts bytes, or what `unit` names.

    Where `speaks` is false, as on ranks other than 0, nothing is told. Where the units are not
    `even`, but take very different times, no rate and no time left are told.
    """

    def __init__(
        self, title: str, total: int, unit: str = "B", speaks: bool = True, even: bool = True,
        bar: bool = True,
    ):  # fmt: skip
        self._title, self._total, self._unit = title, total, unit
        self._done, self._start = 0, time.monotonic()
        self._speaks, self._last, self._even = speaks, self._start, even
        self._bar, self._teller, self._lock = None, None, threading.Lock()
        self._on_terminal = speaks and sys.stderr is not None and sys.stderr.isatty()
        if self._on_terminal and bar:
            plain = "{l_bar}{bar}| {n_fmt} of {total_fmt} {unit}"
            self._bar = tqdm(
                total=total, desc=title, unit=unit, unit_scale=unit == "B", unit_divisor=1024,
                leave=False, bar_format=None if even else plain,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        self._before = status.current.own.doing
        status.current.begin(self._title)
        if self._speaks and not self._on_terminal:
            self._teller = _Teller(self._tell)
        return self

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._teller is not None:
            self._teller.close()
        if kind is None:
            status.current.begin(self._before)

    def update(self, amount: int = 0) -> None:
        """Count `amount` more as done, and tell it when it is time."""
        self._done += amount
        status.current.figures = self._figures()
        status.current.percent = min(100 * self._done // max(self._total, 1), 100)
        if self._bar is not None:
            self._bar.update(amount)
        elif self._speaks and not self._on_terminal:
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last >= EVERY_SECONDS:
                self._last = now
                print(f"tpimpi: {self._line(now - self._start)}", file=sys.stderr, flush=True)

    def _figures(self) -> str:
        """Return what is told of it at a sudden end."""
        return self._count()

    def _count(self) -> str:
        if self._unit == "B":
            return f"{size(self._done)} of {size(self._total)}"
        return f"{self._done} of {self._total} {self._unit}"

    def _line(self, seconds: float) -> str:
        text = f"{self._title}: {self._count()}"
        if self._unit == "B":
            pace = rate(self._done / seconds)
        else:
            per_second = self._done / seconds
            pace = (
                f"{per_second:,.0f} a second" if per_second >= 10 else f"{per_second:.1f} a second"
            )
        if not self._done or not self._even:
            return text
        left = seconds * (self._total - self._done) / self._done
        return f"{text}, {pace}, {duration(left)} left"


class DeviceProgress(Progress):
    """Tell how far each of several devices is, in bytes; `totals` are theirs by their names.

    A few are told with rate and time left, more of them in per cent, all on one line. On a terminal
    each has a bar.
    """

    def __init__(self, title: str, totals: dict[str, int]):
        super().__init__(title, sum(totals.values()), speaks=True, bar=False)
        self._totals, self._dones = totals, dict.fromkeys(totals, 0)
        self._bars = {}
        if self._on_terminal:
            self._bars = {
                name: tqdm(
                    total=total, desc=f"{title}: {name}", unit="B", unit_scale=True,
                    unit_divisor=1024, leave=False, position=position,
                )
                for position, (name, total) in enumerate(totals.items())
            }  # fmt: skip

    def __exit__(self, *error) -> None:
        for bar in self._bars.values():
            bar.close()
        super().__exit__(*error)

    def arrived(self, name: str, amount: int) -> None:
        """Count `amount` more as done on a device."""
        self._dones[name] += amount
        if name in self._bars:
            self._bars[name].update(amount)
        self.update(amount)

    def _line(self, seconds: float) -> str:
        few = len(self._totals) <= FEW
        parts = [self._part(name, few, seconds) for name in self._totals]
        return super()._line(seconds) + (
            f"; {'; '.join(parts)}" if few else f" ({', '.join(parts)})"
        )

    def _figures(self) -> str:
        if len(self._totals) > MANY:
            return self._count()
        parts = [self._part(name, False, 0.0) for name in self._totals]
        return f"{self._count()} ({', '.join(parts)})"

    def _part(self, name: str, few: bool, seconds: float) -> str:
        done, total = self._dones[name], self._totals[name]
        part = f"{name} {100 * done // max(total, 1)} %"
        if not few or not done or done == total:
            return part
        left = duration(seconds * (total - done) / done)
        return f"{part}, {rate(done / seconds)}, {left} left"


class Waiting:
    """From `begin()` to the end of the block tell every two seconds that `title` still lasts.

    For a wait in MPI or in the system, or for work that knows no steps. Ranks other than 0 are
    silent.
    """

    def __init__(self, title: str, rank: int):
        self._title, self._speaks = title, rank == 0
        self._teller: _Teller | None = None

    def __enter__(self) -> Waiting:
        return self

    def begin(self) -> Waiting:
        """Begin to wait: what this rank told of its own work has come to its end."""
        if self._speaks:
            self._start = time.monotonic()
            self._teller = _Teller(self._tell)
        return self

    def __exit__(self, *_) -> None:
        if self._teller is not None:
            self._teller.close()

    def _tell(self) -> None:
        seconds = duration(time.monotonic() - self._start)
        print(f"tpimpi: {self._title}, for {seconds}", file=sys.stderr, flush=True)


class _Teller:
    """Call `tell` every two seconds from a thread, as the main one may be in MPI or in a kernel."""

    def __init__(self, tell: Callable[[], None]):
        self._tell, self._over = tell, threading.Event()
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(max(EVERY_SECONDS, 0.05)):
            self._tell()
