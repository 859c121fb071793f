"""A run's figures for people and for --report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tpimpi.engine.figures import RankFigures, binding, made
from tpimpi.errors import MachineError
from tpimpi.units import rate, size

_MADE = ("tokens", "prompt_tokens", "first_token_seconds", "tokens_per_second")


def line(figures: dict, ranks: list[RankFigures]) -> str:
    """Return the one line that people read after a run."""
    return (
        made(*(figures[name] for name in _MADE)) + " | "
        f"peak memory {size(figures['peak_memory_bytes'])} a rank | "
        f"read {size(figures['bytes_read'])}, {rate(figures['read_bytes_per_second'])} | "
        f"{binding(ranks)}"
    )


def write(path: str, figures: dict, ranks: list[RankFigures]) -> None:
    """Write all figures as JSON. Raises MachineError."""
    write_json(path, {"figures": figures, "ranks": [asdict(r) for r in ranks]})


def write_json(path: str, content: dict) -> None:
    """Write the file that --report names. Raises MachineError."""
    try:
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise MachineError(
            f"--report {path} can't be written ({error.strerror}); name another file"
        ) from error
