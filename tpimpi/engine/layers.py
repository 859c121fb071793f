"""What the forward pass knows of each layer: its matrices by name, its small vectors as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tpimpi.kernels.attention import EVERYTHING
from tpimpi.model.config import ModelConfig
from tpimpi.model.tensors import layer_name
from tpimpi.shards.shard import Shard


@dataclass(frozen=True)
class Projection:
    """A matrix of the tape [N, K] and its bias."""

    name: str
    encoding: str
    bias: np.ndarray | None  # float32 [N]

    def add_bias(self, out: np.ndarray) -> np.ndarray:
        """Add the bias to out [T, N], where there is one; return out."""
        if self.bias is not None:
            np.add(out, self.bias, out=out)
        return out


@dataclass(frozen=True)
class Layer:
    """One layer of this rank; norms are float32 [D], or [Hd] for each head."""

    index: int
    window: int  # positions that a token sees, its own the last
    attention_norm: np.ndarray
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    mlp_norm: np.ndarray
    gate: Projection
    up: Projection
    down: Projection


def projection(shard: Shard, name: str, bias: str | None = None) -> Projection:
    """Return a matrix of the shard, and its bias if the shard has one of that name."""
    return Projection(name, shard[name].encoding, _vector(shard, bias) if bias else None)


def layers_of(config: ModelConfig, shard: Shard) -> list[Layer]:
    """Return all layers, with what is small of them read from the shard."""
    found = []
    for layer, window in enumerate(config.windows):

        def of(half: str, name: str, layer=layer) -> Projection:
            matrix, bias = (layer_name(layer, f"{half}/{name}_{e}") for e in ("proj", "bias"))
            return projection(shard, matrix, bias)

        def vector(name: str, layer=layer) -> np.ndarray | None:
            return _vector(shard, layer_name(layer, name))

        attention = {name: of("attn", name) for name in ("q", "k", "v", "o")}
        mlp = {name: of("mlp", name) for name in ("gate", "up", "down")}
        found.append(
            Layer(
                index=layer,
                window=EVERYTHING if window is None else window,
                attention_norm=vector("attn/norm"),
                q_norm=vector("attn/q_norm"),
                k_norm=vector("attn/k_norm"),
                mlp_norm=vector("mlp/norm"),
                **attention,
                **mlp,
            )  # fmt: skip
        )
    return found


def _vector(shard: Shard, name: str) -> np.ndarray | None:
    return shard.widened(name) if name in shard else None
