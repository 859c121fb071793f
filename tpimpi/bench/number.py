"""Whether fewer of the devices would be faster: what each can do against what links cost. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from tpimpi.bench.device import Device
from tpimpi.bench.findings import SLOW, Finding, who
from tpimpi.bench.link_findings import Matrix, ms
from tpimpi.bench.speed import Speed
from tpimpi.comm.cost import token_seconds, worst_links
from tpimpi.memory import shares
from tpimpi.model.config import ModelConfig

CONTEXT = 2048  # tokens, at whose end a token is timed
MEMORY_SHARE = 0.8  # of what is free, as budgets of `auto` take it
GAIN = 0.9  # of the time on all devices: what is hardly shorter is not worth a word


def of_number(
    config: ModelConfig, encoding_of: Callable[[str], str], devices: Sequence[Device],
    speeds: Sequence[Speed], links: Matrix,
) -> list[Finding]:  # fmt: skip
    """Tell where the first few devices alone would be faster than all; in equal shares."""
    load = shares.Load.of(config, encoding_of, min(CONTEXT, config.max_positions))
    beside = Counter(d.host for d in devices)
    able = [
        shares.Device(
            s.memory, s.disk or math.inf, MEMORY_SHARE * d.memory_bytes / beside[d.host]
        )
        for d, s in zip(devices, speeds, strict=True)
    ]  # fmt: skip
    worst = worst_links(links)

    def network(ranks: int) -> float:
        link = worst[ranks]
        sizes = config.num_layers, config.hidden_size, config.vocab_size
        return token_seconds(link, ranks, *sizes) if link else 0.0

    numbers = shares.predict_numbers(config, load, able, lambda some: (1,) * len(some), network)
    best, whole = shares.fastest(numbers), numbers[len(devices)]
    if best is None or numbers[best].seconds >= GAIN * whole.seconds:
        return []
    rest = devices[best:]
    return [Finding(SLOW, tuple(d.rank for d in rest), (
        f"{len(devices)} devices are slower than the first {best} alone: a token of {config.name} "
        f"would take {ms(numbers[best].seconds)} instead of {ms(whole.seconds)}, of which "
        f"messages are {ms(whole.network)}; start {best}, without {who(*rest)}"
    ))]  # fmt: skip
