"""Measure a model in all modes and the machine's limits, in one run.

Modes run from the smallest footprint to the largest, as a process's peak memory never falls; what
takes memory to measure (the memory's own rate) comes last.
"""

from __future__ import annotations

from tpimpi.bench import limits, result
from tpimpi.bench.measurement import Bench
from tpimpi.bench.settings import MODES, PROMPTS, STEPS, Settings
from tpimpi.comm.group import Group
from tpimpi.console import say
from tpimpi.errors import UserError
from tpimpi.memory.account import Work
from tpimpi.progress import Waiting
from tpimpi.units import size


def prompts_and_work(settings: Settings, most: int) -> tuple[list[int], Work]:
    """Return the prompts to measure and what they take of a model of at most `most` tokens.

    Raises UserError for a context or a prompt that doesn't fit.
    """
    if settings.context and settings.context > most:
        raise UserError(f"--context {settings.context} is beyond the model's {most} tokens")
    context = settings.context or min(most, max(settings.prompts or PROMPTS))
    prompts = settings.prompts or [p for p in PROMPTS if p <= context]
    if max(prompts, default=0) > context:
        raise UserError(
            f"a prompt of {max(prompts)} tokens is beyond the context of {context}; "
            "shorten --prompts or raise --context"
        )
    if context < max(STEPS):
        raise UserError(f"steps of {max(STEPS)} rows need a context of at least as many tokens")
    return sorted(set(prompts)), Work(max(prompts, default=1), context, logits=max(STEPS))


def measure(
    group: Group, source, settings: Settings, prompts: list[int], work: Work, threads: int
) -> tuple[dict | None, dict]:
    """Return the result, JSON's types on rank 0, and each mode's intervals of one token.

    `source` is a Source or a SyntheticSource whose shards are there. Collective. Raises UserError
    where no mode fits or a budget is too small.
    """

    def tell(text: str) -> None:
        if group.rank == 0:
            say(f"bench: {text}")

    bench = Bench(group, source, settings, work, prompts, threads, tell)
    encoding = bench.warm_up()
    found = {mode: bench.measure(mode) for mode in _by_memory(bench)}
    intervals = {mode: measured["intervals"] for mode, measured in found.items()}
    bench.say("limits of memory, arithmetic and allreduces")
    with Waiting("bench: limits of memory, arithmetic and allreduces", group.rank) as waiting:
        waiting.begin()
        measured = _limits(bench, encoding, result.tokens_of_passes(found))
        return result.assemble(bench, encoding, found, measured), intervals


def _limits(bench: Bench, encoding: str, tokens: list[int]) -> result.Limits:
    """Measure what binds the modes' times (collective)."""
    group, threads, repeats = bench.group, bench.threads, bench.settings.repeats
    hidden = bench.source.config.hidden_size
    return result.Limits(
        limits.memory_rates(group, threads, repeats),
        limits.flop_rates(group, threads, encoding, repeats),
        {t: limits.allreduce_seconds(group, t, hidden, repeats) for t in tokens},
        limits.node_of_each_rank(group),
    )


def _by_memory(bench: Bench) -> list[str]:
    """Return the modes to measure, from the smallest plan to the largest (collective)."""
    sizes, modes = {}, bench.settings.modes
    for mode in modes or MODES:
        plan = bench.plan(mode)
        if modes or bench.fits(plan):
            sizes[mode] = max(bench.group.comm.allgather(plan.total))
        else:
            bench.say(f"{mode}: left out, as {size(plan.total)} a rank are not free")
    if not sizes:
        raise UserError("no mode fits in the free memory; use more ranks on more machines")
    return sorted(sizes, key=sizes.get)
