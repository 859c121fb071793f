"""Servers as a user would start them, and clients that ask them at the same time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from peers.cap import Cap
from tpimpi.errors import MachineError

STARTING = 600.0  # seconds until a server answers, at most
GRACE = 10.0  # ... that it has to end


@dataclass(frozen=True)
class Server:
    """One row of the comparison: a command that answers OpenAI's API at a port."""

    label: str
    command: Sequence[str]  # {port} stands for the port
    files: tuple[Path, ...] = field(default=())  # what it reads, apart from memory


@dataclass(frozen=True)
class Answers:
    """What came of a number of clients that asked at the same time. Seconds, tokens."""

    clients: int
    tokens: int
    seconds: float
    each: float  # the median of a request

    @property
    def rate(self) -> float:
        """Tokens a second, of all clients together."""
        return self.tokens / self.seconds


def servers(
    model: Path, gguf: dict[str, Path], threads: int, context: int, clients: int,
    budget: str | None,
) -> list[Server]:  # fmt: skip
    """Return the servers to compare, ours first; `budget` is what ours may take, None: all.

    `gguf` are llama.cpp's files, by their encoding.
    """
    program = shutil.which("tpimpi", path=Path(sys.executable).parent) or "tpimpi"
    memory = ["--memory-budget", budget] if budget else ["--disable-memory-schedule"]
    rows = [Server("tpimpi", (
        program, "serve", "--model", str(model), "--port", "{port}", "--threads", str(threads),
        "--context", str(context), "--max-batch", str(clients), "--access-log", "off", *memory,
    ))]  # fmt: skip
    for encoding, path in gguf.items():
        rows.append(Server(f"llama.cpp {encoding.upper()}", (
            sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--port", "{port}",
            "--n_threads", str(threads), "--n_threads_batch", str(threads),
            "--n_ctx", str(context), "--interrupt_requests", "False", "--verbose", "False",
        ), (path,)))  # fmt: skip
    return rows


class Running:
    """A server that runs within a `with` block, under a cap if there is one."""

    def __init__(self, server: Server, log: Path, cap: Cap | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [part.format(port=self.port) for part in server.command]
        self._log, self._label, self._cap = log, server.label, cap
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [*(cap.prefix() if cap else []), *command], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip

    def __enter__(self) -> Running:
        end = time.monotonic() + STARTING
        while time.monotonic() < end and self._child.poll() is None:
            try:
                answer = httpx.get(f"{self.url}/v1/models", timeout=5)
                if answer.status_code == 200:
                    self.model = answer.json()["data"][0]["id"]
                    return self
            except httpx.HTTPError:
                pass  # it doesn't listen yet
            time.sleep(0.2)
        said = self._log.read_text(errors="replace").strip().splitlines()
        self.__exit__()
        if self._cap and self._cap.oom_kills():
            raise MachineError(f"{self._label} was killed while it started, out of memory")
        raise MachineError(
            f"{self._label} did not start: {said[-1] if said else 'it says nothing'}"
        )

    def __exit__(self, *_) -> None:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
            if self._child.poll() is None:
                try:
                    os.killpg(self._child.pid, number)
                    self._child.wait(patience)
                except subprocess.TimeoutExpired:
                    continue

    def ask(self, prompts: Sequence[str], clients: int, tokens: int, seconds: float) -> Answers:
        """Let each of so many clients ask with its part of the prompts, one after another."""
        made, took, failed = [], [], []

        def client(mine: Sequence[str]) -> None:
            try:
                with httpx.Client(timeout=seconds) as http:
                    for prompt in mine:
                        start = time.monotonic()
                        answer = http.post(f"{self.url}/v1/completions", json={
                            "model": self.model, "prompt": prompt, "max_tokens": tokens,
                            "temperature": 0,
                        })  # fmt: skip
                        answer.raise_for_status()
                        took.append(time.monotonic() - start)
                        made.append(answer.json()["usage"]["completion_tokens"])
            except (httpx.HTTPError, KeyError, ValueError) as error:
                failed.append(error)

        threads = [
            threading.Thread(target=client, args=(prompts[n::clients],)) for n in range(clients)
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise MachineError(f"{self._label}: {type(failed[0]).__name__}: {failed[0]}")
        return Answers(clients, sum(made), time.monotonic() - start, statistics.median(took))
