"""The table of tensors: what Transformers' models hold, in order, and cut without loss."""

from dataclasses import replace

import numpy as np
import pytest

from references import FAMILIES, build
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.model.tensors import (
    EMBEDDING,
    HEAD,
    Cut,
    Kind,
    Tensor,
    cut_tensor,
    expected_shapes,
    pieces,
    tensors,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_must_hold_what_transformers_has(references, name):
    model = build(name)
    theirs = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied head is not twice
    assert expected_shapes(ModelConfig.from_directory(references / name)) == theirs


@pytest.mark.parametrize("name", ["llama2", "biased", "qwen2", "qwen3", "llama32"])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_pieces_put_together_are_the_whole(references, name, ranks):
    """Rows and columns of sums: matrices cut by columns add up to the whole product."""
    config = ModelConfig.from_directory(references / name)
    partition, random = Partition.of(config, [1] * ranks), np.random.default_rng(0)
    lists = [{p.name: p for p in pieces(config, mine)} for mine in partition.ranks]
    for tensor in tensors(config):
        whole = random.integers(1, 1000, tensor.shape)
        owned = [rank[tensor.name] for rank in lists if tensor.name in rank]
        assert len(owned) == (1 if tensor.kind is Kind.TABLE else ranks)
        seen = np.zeros(tensor.shape, int)
        for piece in owned:
            at = (piece.rows, piece.columns or slice(None))[: whole.ndim]
            assert whole[at].shape == piece.shape and piece.size == whole[at].size
            seen[at] += 1
        if tensor.cut is Cut.WHOLE:
            assert (seen == len(owned)).all()
        elif tensor.cut is Cut.KV_HEADS:
            assert (seen >= 1).all()  # with more ranks than heads, several compute one
        else:
            assert (seen == 1).all()


def test_the_order_is_that_of_use(references):
    config = replace(ModelConfig.from_directory(references / "qwen3"), qkv_bias=True)
    table = list(tensors(config))
    names = [tensor.name for tensor in table]
    assert names[:6] == ["embed", *(f"layers/00/attn/{n}" for n in (
        "norm", "q_proj", "q_bias", "q_norm", "k_proj"))]  # fmt: skip
    assert names[-2:] == ["norm", "head"] and len(set(names)) == len(names)
    blocks = [tensor.block for tensor in table]
    assert blocks == sorted(blocks) and blocks[-1] == 2 * config.num_layers
    only_selected = {t.name for t in table if not t.for_all and t.kind is Kind.MATRIX}
    assert only_selected == {"head", *(f"layers/02/{n}_proj" for n in (
        "attn/q", "attn/o", "mlp/gate", "mlp/up", "mlp/down"))}  # fmt: skip


def test_tied_is_written_once(references):
    config = ModelConfig.from_directory(references / "llama32")
    assert config.tie_word_embeddings and HEAD not in expected_shapes(config)
    assert [t.source for t in tensors(config) if t.name == "head"] == [EMBEDDING]
    apart = replace(config, tie_word_embeddings=False)
    assert expected_shapes(apart)[HEAD] == expected_shapes(apart)[EMBEDDING]


def test_a_source_may_hold_several_tensors():
    """As fused projections do: a piece's rows are those of the source."""
    key = Tensor("k", "qkv", (6, 4), Kind.MATRIX, Cut.KV_HEADS, 0, first_row=10)
    piece = cut_tensor(key, slice(2, 5))
    assert (piece.rows, piece.columns, piece.shape) == (slice(12, 15), None, (3, 4))
    whole = cut_tensor(key, None)
    assert (whole.rows, whole.shape) == (slice(10, 16), (6, 4))
