"""The table of tensors: what a model is made of, in the order in which a pass uses it.

Everything that knows a model's tensors derives from it: the shapes a checkpoint must have, what
each rank owns of them, the tape, the memory account, the benchmark's work, random models. So an
architecture is a few entries here and a few lines of `engine.forward`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import RankCut

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # in a checkpoint


class Cut(Enum):
    """What a tensor's cut follows: a rank owns the part of its heads, MLP columns or rows."""

    WHOLE = "whole"
    QUERY_HEADS = "query heads"
    KV_HEADS = "key/value heads"
    COLUMNS = "MLP columns"
    VOCABULARY = "vocabulary"


class Kind(Enum):
    """How a pass uses a tensor."""

    MATRIX = "matrix"  # [N, K] on the tape: read in each pass, or kept
    NORM = "norm"  # [N]: small, widened once and kept; multiplies, so around 1
    BIAS = "bias"  # [N]: the same, but is added, so around 0
    TABLE = "table"  # [V, D] on rank 0's disk, from which rows are looked up


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: its names, its shape, how it is cut, when it is used."""

    name: str  # in a shard: "layers/00/attn/q_proj"
    source: str  # in a checkpoint: "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # of the whole tensor
    kind: Kind
    cut: Cut = Cut.WHOLE
    axis: int = 0  # that is cut
    block: int = -1  # the half layer it belongs to, in the order of use; -1: before them
    for_all: bool = True  # whether tokens need it whose logits are not asked for
    first_row: int = 0  # where it begins in a source that holds several tensors


@dataclass(frozen=True)
class Piece:
    """One rank's piece of a tensor: rows and columns of its source."""

    tensor: Tensor
    rows: slice  # of the source
    columns: slice | None  # None: all
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The dataset in the shard."""
        return self.tensor.name

    @property
    def source(self) -> str:
        """The tensor in the checkpoint."""
        return self.tensor.source

    @property
    def streamed(self) -> bool:
        """Whether it is on the tape."""
        return self.tensor.kind is Kind.MATRIX

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def layer_name(layer: int, what: str) -> str:
    """Return a tensor's name in a shard: `layers/00/` and what it is, such as `attn/q_proj`."""
    return f"layers/{layer:02d}/{what}"


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Yield every tensor of a model in the order of use."""
    dim, vocabulary = config.hidden_size, config.vocab_size
    yield Tensor("embed", EMBEDDING, (vocabulary, dim), Kind.TABLE)
    for layer in range(config.num_layers):
        yield from _attention(config, layer)
        yield from _mlp(config, layer)
    last = 2 * config.num_layers
    yield Tensor("norm", "model.norm.weight", (dim,), Kind.NORM, block=last, for_all=False)
    source = EMBEDDING if config.tie_word_embeddings else HEAD
    yield Tensor(
        "head", source, (vocabulary, dim), Kind.MATRIX, Cut.VOCABULARY, block=last, for_all=False
    )


def _attention(config: ModelConfig, layer: int) -> Iterator[Tensor]:
    """Yield the first half of a layer. In the last one queries are only for selected tokens."""
    dim, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
    source, block = f"model.layers.{layer}", 2 * layer
    inside = layer < config.num_layers - 1

    def vector(name, of, size, kind, cut=Cut.WHOLE, for_all=True) -> Tensor:
        at = layer_name(layer, f"attn/{name}")
        return Tensor(at, f"{source}.{of}", (size,), kind, cut, 0, block, for_all)

    yield vector("norm", "input_layernorm.weight", dim, Kind.NORM)
    for name, rows, cut, for_all in (
        ("q", q, Cut.QUERY_HEADS, inside), ("k", kv, Cut.KV_HEADS, True),
        ("v", kv, Cut.KV_HEADS, True),
    ):  # fmt: skip
        yield Tensor(
            layer_name(layer, f"attn/{name}_proj"), f"{source}.self_attn.{name}_proj.weight",
            (rows, dim), Kind.MATRIX, cut, 0, block, for_all,
        )  # fmt: skip
        if config.qkv_bias:
            yield vector(
                f"{name}_bias", f"self_attn.{name}_proj.bias", rows, Kind.BIAS, cut, for_all
            )
        if config.qk_norm and name != "v":
            yield vector(
                f"{name}_norm",
                f"self_attn.{name}_norm.weight",
                head_dim,
                Kind.NORM,
                for_all=for_all,
            )
    yield Tensor(
        layer_name(layer, "attn/o_proj"), f"{source}.self_attn.o_proj.weight",
        (dim, q), Kind.MATRIX, Cut.QUERY_HEADS, 1, block, inside,
    )  # fmt: skip
    if config.output_bias:
        yield vector("o_bias", "self_attn.o_proj.bias", dim, Kind.BIAS, for_all=inside)


def _mlp(config: ModelConfig, layer: int) -> Iterator[Tensor]:
    """Yield the second half of a layer. The last one is only for selected tokens."""
    dim, mlp = config.hidden_size, config.intermediate_size
    source, block = f"model.layers.{layer}", 2 * layer + 1
    inside = layer < config.num_layers - 1
    yield Tensor(
        layer_name(layer, "mlp/norm"), f"{source}.post_attention_layernorm.weight", (dim,),
        Kind.NORM, block=block, for_all=inside,
    )  # fmt: skip
    for name, shape, axis in (
        ("gate", (mlp, dim), 0), ("up", (mlp, dim), 0), ("down", (dim, mlp), 1),
    ):  # fmt: skip
        yield Tensor(
            layer_name(layer, f"mlp/{name}_proj"), f"{source}.mlp.{name}_proj.weight", shape,
            Kind.MATRIX, Cut.COLUMNS, axis, block, inside,
        )  # fmt: skip
        if config.mlp_bias:
            cut = Cut.WHOLE if name == "down" else Cut.COLUMNS
            yield Tensor(
                layer_name(layer, f"mlp/{name}_bias"), f"{source}.mlp.{name}_proj.bias",
                (shape[0],), Kind.BIAS, cut, 0, block, inside,
            )  # fmt: skip


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a checkpoint must hold, by its name there."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors(config):
        rows, *rest = tensor.shape
        before = shapes.get(tensor.source, (0,))[0]
        shapes[tensor.source] = (max(before, tensor.first_row + rows), *rest)
    return shapes


def pieces(config: ModelConfig, mine: RankCut) -> list[Piece]:
    """List one rank's pieces in the order of use: its tape, and what stays beside it."""
    head_dim = config.head_dim
    owned = {
        Cut.QUERY_HEADS: slice(mine.q_heads.start * head_dim, mine.q_heads.stop * head_dim),
        Cut.KV_HEADS: slice(mine.kv_heads.start * head_dim, mine.kv_heads.stop * head_dim),
        Cut.COLUMNS: slice(mine.columns.start, mine.columns.stop),
        Cut.VOCABULARY: slice(mine.rows.start, mine.rows.stop),
    }
    return [
        cut_tensor(tensor, owned.get(tensor.cut))
        for tensor in tensors(config)
        if tensor.kind is not Kind.TABLE or mine.rank == 0  # rank 0 looks the tokens up
    ]


def cut_tensor(tensor: Tensor, part: slice | None) -> Piece:
    """Return the part of a tensor along its axis; None: the whole."""
    rows, columns, shape = slice(0, tensor.shape[0]), None, list(tensor.shape)
    if part is not None:
        shape[tensor.axis] = part.stop - part.start
        rows, columns = (part, None) if tensor.axis == 0 else (rows, part)
    rows = slice(tensor.first_row + rows.start, tensor.first_row + rows.stop)
    return Piece(tensor, rows, columns, tuple(shape))
