"""The switch in a program of its own (switch.c), for kernels without netem: build, start, ask."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bed import devices, kernel
from bed.links import Port, ip, superframe, tc
from bed.quantities import BedError
from bed.state import State
from bed.topology import INTERFACE

SOURCES = Path(__file__).resolve().parent
_PATIENCE = 10  # seconds for the switch to answer
_BUFFER = 0.02  # seconds of the link's rate that wait at a port before frames are dropped
_LEAST_BUFFER = 1 << 20


def program() -> Path:
    """Return the compiled switch, and compile it where these sources have not been yet."""
    digest = hashlib.sha256()
    for name in ("switch.c", "CMakeLists.txt"):
        digest.update((SOURCES / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tpimpi" / "testbed" / digest.hexdigest()[:16]
    if not (folder / "switch").exists():
        _build(folder)
    return folder / "switch"


def _build(folder: Path) -> None:
    beside = Path(sys.executable).parent, SOURCES.parents[1] / ".venv" / "bin"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, beside)])
    cmake = shutil.which("cmake", path=path)
    if not cmake:
        raise BedError("the switch must be compiled, and there is no cmake (apt install cmake)")
    parent = os.getpid()

    def die() -> None:
        kernel.die_with_parent(parent)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as build:
        for command in ([cmake, "-S", str(SOURCES), "-B", build], [cmake, "--build", build]):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False,
                preexec_fn=die,
            )  # fmt: skip
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise BedError(
                    "the switch can't be compiled; is there a C compiler (apt install gcc make)? "
                    f"cmake says: {' '.join(said[:3])}"
                )
        (Path(build) / "switch").replace(folder / "switch")


class Switch:
    """The running switch of a bed."""

    def __init__(self, state: State):
        """Take the bed that it belongs to."""
        self._state = state

    @staticmethod
    def require() -> None:
        """Raise BedError with what this machine lacks for it, where it lacks something."""
        if not Path("/dev/net/tun").exists():
            raise BedError("there is no /dev/net/tun, which the switch needs (modprobe tun)")
        program()

    def create(self, ports: list[Port]) -> None:
        """Start the switch and give each node its interfaces."""
        self._start(ports)
        pid = self._state.holder("switch")
        moves = [
            f"link set p{number} netns {self._state.holder(port.node)} name {INTERFACE}"
            for number, port in enumerate(ports)
        ]
        ip(pid, moves)
        for port in ports:
            self._shape(port)

    def _shape(self, port: Port) -> None:
        """Let a node send at the rate of its link: it waits itself, as for its own network card.

        Else all that TCP has to send would lie in the switch, before whatever comes next.
        """
        pid, whole = self._state.holder(port.node), superframe(port.rate)
        segments = max(1, whole // 1448)
        ip(pid, [f"link set {INTERFACE} gso_max_size {whole} gso_max_segs {segments}"])
        burst, limit = round(1.1 * whole) + 2000, self._buffer([port])
        bucket = f"tbf rate {round(port.rate * 8)}bit burst {burst} limit {limit}"
        tc(
            pid,
            [f"qdisc replace dev {INTERFACE} root {bucket if port.rate else 'pfifo_fast'}"],
        )

    @staticmethod
    def _buffer(ports: list[Port]) -> int:
        return int(max(_LEAST_BUFFER, _BUFFER * max(port.rate for port in ports)))

    def _start(self, ports: list[Port]) -> None:
        buffer = self._buffer(ports)
        # What a frame may come too early: little against the shortest delay.
        slack = _nanoseconds(min([5e-5, *(port.side / 12 for port in ports)]))
        arguments = [
            f"p{number}:{_nanoseconds(port.kept)}:{round(port.rate)}:{port.forwards}"
            for number, port in enumerate(ports)
        ]
        command = [
            str(program()), str(self._state.control), str(buffer), str(slack), *arguments
        ]  # fmt: skip
        parent = os.getpid()
        if os.fork() == 0:
            try:
                kernel.die_with_parent(parent)
                devices.detach()
                log = os.open(self._state.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(log, 2)
                self._state.enlist("switch")
                kernel.unshare("net")
                kernel.outlive_parent()  # it is enlisted: `down` finds it
                os.execv(command[0], command)
            except OSError as error:
                os.write(2, f"{error}\n".encode())
            finally:
                os._exit(1)
        start = time.monotonic()
        while not self._state.control.exists():
            said = self._state.log.read_text().strip() if self._state.log.exists() else ""
            late = time.monotonic() - start > _PATIENCE
            if late or (said and self._state.process("switch") is None):
                raise BedError(f"the switch didn't start: {said or 'it does not answer'}")
            time.sleep(0.005)

    def apply(self, number: int, port: Port) -> None:
        """Make a port what `port` says, while frames pass."""
        self._ask(f"{'up' if port.up else 'down'} {number}")
        self._ask(f"delay {number} {_nanoseconds(port.kept)}")
        self._ask(f"rate {number} {round(port.rate)}")
        self._shape(port)

    def require_alive(self) -> None:
        """Raise BedError where the switch is gone."""
        if self._state.process("switch") is None:
            raise self._state.gone(f"the switch (see {self._state.log})")

    def _ask(self, question: str) -> str:
        mine = self._state.folder / f"asking-{os.getpid()}"
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as asking:
            asking.settimeout(_PATIENCE)
            try:
                asking.bind(str(mine))
                asking.sendto(question.encode(), str(self._state.control))
                answer = asking.recv(65536).decode()
            except OSError:
                raise self._state.gone(f"the switch (see {self._state.log})") from None
            finally:
                mine.unlink(missing_ok=True)
        if answer == "unknown command\n":
            raise BedError(f"the switch does not know {question!r}")
        return answer

    def traffic(self) -> list[dict[str, int]]:
        """Return the bytes from and to each port, and the frames dropped there."""
        found = []
        for line in self._ask("status").splitlines():
            if line.startswith("port "):
                numbers = [int(word) for word in line.split()[1:]]
                found.append({
                    "sent": numbers[0], "received": numbers[2],
                    "dropped": numbers[1] + numbers[3],
                })  # fmt: skip
        return found

    def remarks(self) -> list[str]:
        """Return what the switch has said since it started, and how late frames were for it."""
        frames, total, most = map(int, self._ask("status").splitlines()[0].split()[1:])
        late = f"{total / max(1, frames) / 1e3:.0f} us on average, {most / 1e3:.0f} us at most"
        return [
            *self._state.log.read_text().splitlines(),
            f"{frames} frames delivered late by {late}",
        ]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
