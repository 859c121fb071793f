"""Run one program as a child that can't outlive its time, this script, or its cap."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from peers.cap import Cap
from peers.worker import MISSING

GRACE = 5  # seconds between asking to end and killing


def run(command: list[str], seconds: float, cap: Cap | None = None) -> dict:
    """Return the JSON object of the last line that a command prints, or {"failed": why}."""
    child = subprocess.Popen(
        (cap.prefix() if cap else []) + command, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )  # fmt: skip
    try:
        output, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {seconds:.0f} s"}
    finally:
        _end(child)
    if cap and cap.oom_kills():
        return {"failed": "killed, out of memory"}
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if child.returncode in (0, MISSING) and lines:
        return json.loads(lines[-1])
    said = [line for line in (errors or output).splitlines() if line.strip()]
    why = said[-1].strip() if said else "it said nothing"
    return {"failed": f"exit code {child.returncode}: {why}", "stderr": errors}


def _end(child: subprocess.Popen) -> None:
    """End a child and its group; mpirun, asked in peace, ends the ranks that left the group."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if child.poll() is None:
            try:
                os.killpg(child.pid, number)
                child.wait(patience)
            except ProcessLookupError:
                child.wait()
            except subprocess.TimeoutExpired:
                continue
    for stream in (child.stdout, child.stderr):
        stream.close()
