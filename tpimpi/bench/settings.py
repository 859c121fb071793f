"""What `tpimpi bench` is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass

from tpimpi.comm import ALLREDUCES
from tpimpi.memory.request import Budgets

MODES = ("window", "budget", "resident")
PROMPTS = (8, 64, 512)  # tokens, as far as the context holds them
STEPS = (1, 2, 4, 8, 16)  # rows of one decode step


@dataclass(frozen=True)
class Settings:
    """Modes and prompts (None: all that fit), how often, how long, in what memory."""

    modes: tuple[str, ...] | None = None
    prompts: tuple[int, ...] | None = None  # tokens
    context: int | None = None  # tokens; None: the longest prompt
    repeats: int = 5  # of each measurement at most
    seconds: float = 30.0  # for the times of one mode
    window: int = 4  # blocks of mode window
    budgets: Budgets | None = None  # of mode budget; None: the process and 60 % of the weights
    prompt_chunk: int | None = None  # tokens
    allreduce: str = ALLREDUCES[0]  # how partial sums are merged
