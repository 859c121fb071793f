"""How long a token takes on unequal devices, and the shares that make it short. Pure arithmetic.

Each half of a layer ends in a sum, for which all ranks wait for the slowest. So a token takes the
slowest rank's attention halves, the slowest rank's MLP halves, the slowest rank's part of the head,
and its messages. What streams comes from the disk meanwhile, ahead of the arithmetic: it counts
where it takes longer than all of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpimpi.memory.plan import ring_bytes
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS, ROWS
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import Cut, Kind, tensors

EACH, MOST_NUMBERS = 16, 40  # numbers of devices: each of the first ones, then ever fewer


@dataclass(frozen=True)
class Load:
    """What a token reads of a model, in bytes for each thing that is cut, in all layers."""

    q_head: float
    kv_head: float
    cached: float  # keys and values of one key/value head, at the end of the context
    column: float
    row: float

    @classmethod
    def of(cls, config: ModelConfig, encoding_of: Callable[[str], str], context: int) -> Load:
        """Return the load of a model; `encoding_of` tells of a tensor by its name there."""
        found = dict.fromkeys(Cut, 0.0)
        for tensor in tensors(config):
            if tensor.kind is Kind.MATRIX:
                rows, columns = tensor.shape
                panel = ENCODINGS[encoding_of(tensor.source)].panel_bytes(columns)
                found[tensor.cut] += rows * panel / ROWS
        seen = sum(min(context, window or context) for window in config.windows)
        return cls(
            found[Cut.QUERY_HEADS] / config.num_heads,
            found[Cut.KV_HEADS] / config.num_kv_heads,
            8.0 * config.head_dim * seen,
            found[Cut.COLUMNS] / config.intermediate_size,
            found[Cut.VOCABULARY] / config.vocab_size,
        )


@dataclass(frozen=True)
class Device:
    """What one rank can do while all others work, too."""

    memory: float  # bytes/s of weights in memory, through a product of one token; not 0
    disk: float  # bytes/s; math.inf where it is not known, as nothing need stream
    room: float = math.inf  # bytes of memory for weights, if it owned nothing of the model ...
    growth: float = 0.0  # ... and how many fewer if it owned all of it: its pages and buffers
    ring: float = 0.0  # bytes that weights need to pass through at least

    def room_for(self, share: float) -> float:
        """Return the bytes for weights beside what belongs to such a share of the model."""
        return self.room - self.growth * share

    def streamed(self, weights: float, share: float) -> float:
        """Return the bytes of so many weights that pass from the disk for each token."""
        left = max(self.room_for(share), 0.0)
        return 0.0 if weights <= left else weights - left + ring_bytes(self.ring, left)

    def holds(self, share: float) -> bool:
        """Tell whether its memory is enough for such a share of the model at all."""
        return not share or self.room_for(share) >= self.ring


@dataclass(frozen=True)
class Prediction:
    """What a token is expected to take: seconds of each rank, and of all together."""

    shares: tuple[int, ...]
    compute: tuple[float, ...]
    disk: tuple[float, ...]
    halves: float  # the slowest rank's attention, MLP and head, added up
    network: float
    fits: bool  # whether each rank's memory is enough at all

    @property
    def seconds(self) -> float:
        """The time of a token."""
        return max(self.halves + self.network, *self.disk)


def predict(
    config: ModelConfig, load: Load, devices: Sequence[Device], shares: Sequence[int] | Partition,
    network: float = 0.0,
) -> Prediction:  # fmt: skip
    """Predict a token's time on devices that own these shares; `network` are all its messages."""
    cut = shares if isinstance(shares, Partition) else Partition.of(config, shares)
    parts, disk, fits = [], [], True
    for mine, device in zip(cut.ranks, devices, strict=True):
        heads = len(mine.q_heads) * load.q_head + len(mine.kv_heads) * load.kv_head
        mlp, head = len(mine.columns) * load.column, len(mine.rows) * load.row
        share = len(mine.columns) / config.intermediate_size
        read = (heads + len(mine.kv_heads) * load.cached, mlp, head)
        parts.append(tuple(nbytes / device.memory for nbytes in read))
        disk.append(device.streamed(heads + mlp + head, share) / device.disk)
        fits &= device.holds(share)
    halves = sum(max(rank[part] for rank in parts) for part in range(3))
    return Prediction(
        cut.shares, tuple(map(sum, parts)), tuple(disk), halves, network if len(parts) > 1 else 0.0,
        fits,
    )  # fmt: skip


def predict_numbers(
    config: ModelConfig, load: Load, devices: Sequence[Device],
    shares_for: Callable[[Sequence[Device]], Sequence[int]], network: Callable[[int], float],
) -> dict[int, Prediction]:  # fmt: skip
    """Predict a token's time on the first 1, 2, ... of the devices, in the order given.

    `shares_for` tells the shares of some devices, `network` the messages' seconds over so many.
    Of many devices some numbers are left out.
    """
    found = {}
    for number in _numbers(len(devices)):
        some = devices[:number]
        found[number] = predict(config, load, some, shares_for(some), network(number))
    return found


def fastest(numbers: dict[int, Prediction]) -> int | None:
    """Return the number of devices with the shortest token; None where no number fits."""
    fitting = [number for number, prediction in numbers.items() if prediction.fits]
    return min(fitting, key=lambda number: (numbers[number].seconds, number), default=None)


def _numbers(most: int) -> list[int]:
    if most <= MOST_NUMBERS:
        return list(range(1, most + 1))
    steps = MOST_NUMBERS - EACH
    growth = (most / EACH) ** (1 / steps)
    return sorted({*range(1, EACH), *(round(EACH * growth**i) for i in range(steps + 1))})
