"""The tensors of a model in the order of use: the tape."""

from __future__ import annotations

from dataclasses import dataclass

from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import RankCut


@dataclass(frozen=True)
class Piece:
    """One rank's piece of one tensor: its name in the shard and what it is in the checkpoint."""

    name: str  # dataset in the shard, "layers/00/attn/q_proj"
    source: str  # tensor in the checkpoint, "model.layers.0.self_attn.q_proj.weight"
    rows: slice | None  # of the source; None: all
    columns: slice | None
    shape: tuple[int, ...]
    block: int  # the half layer it belongs to, in the order of use; -1: before them
    streamed: bool  # whether it is on the tape


def pieces(config: ModelConfig, mine: RankCut) -> list[Piece]:
    """List one rank's pieces in the order in which the forward pass uses them: the tape."""
    dim, head_dim = config.hidden_size, config.head_dim
    q = slice(mine.q_heads.start * head_dim, mine.q_heads.stop * head_dim)
    kv = slice(mine.kv_heads.start * head_dim, mine.kv_heads.stop * head_dim)
    ffn = slice(mine.columns.start, mine.columns.stop)
    vocab = slice(mine.rows.start, mine.rows.stop)
    result: list[Piece] = []

    def add(name, source, block, rows=None, columns=None, shape=None, streamed=True):
        if shape is None:
            n = rows.stop - rows.start if rows else dim
            k = columns.stop - columns.start if columns else dim
            shape = (n, k)
        result.append(Piece(name, source, rows, columns, shape, block, streamed))

    if mine.rank == 0:  # rank 0 looks the tokens up, and only their rows
        everything = (config.vocab_size, dim)
        add("embed", "model.embed_tokens.weight", -1, shape=everything, streamed=False)
    for layer in range(config.num_layers):
        to, source = f"layers/{layer:02d}", f"model.layers.{layer}"
        block, norm = 2 * layer, {"shape": (dim,), "streamed": False}
        add(f"{to}/attn/norm", f"{source}.input_layernorm.weight", block, **norm)
        add(f"{to}/attn/q_proj", f"{source}.self_attn.q_proj.weight", block, rows=q)
        add(f"{to}/attn/k_proj", f"{source}.self_attn.k_proj.weight", block, rows=kv)
        add(f"{to}/attn/v_proj", f"{source}.self_attn.v_proj.weight", block, rows=kv)
        add(f"{to}/attn/o_proj", f"{source}.self_attn.o_proj.weight", block, columns=q)
        block += 1
        add(f"{to}/mlp/norm", f"{source}.post_attention_layernorm.weight", block, **norm)
        add(f"{to}/mlp/gate_proj", f"{source}.mlp.gate_proj.weight", block, rows=ffn)
        add(f"{to}/mlp/up_proj", f"{source}.mlp.up_proj.weight", block, rows=ffn)
        add(f"{to}/mlp/down_proj", f"{source}.mlp.down_proj.weight", block, columns=ffn)
    last = 2 * config.num_layers
    add("norm", "model.norm.weight", last, shape=(dim,), streamed=False)
    add("head", "lm_head.weight", last, rows=vocab)
    return result


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the model needs, by its name in the checkpoint."""
    dim, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, dim)}
    for layer in range(config.num_layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (dim,),
            f"{at}.self_attn.q_proj.weight": (q, dim),
            f"{at}.self_attn.k_proj.weight": (kv, dim),
            f"{at}.self_attn.v_proj.weight": (kv, dim),
            f"{at}.self_attn.o_proj.weight": (dim, q),
            f"{at}.post_attention_layernorm.weight": (dim,),
            f"{at}.mlp.gate_proj.weight": (ffn, dim),
            f"{at}.mlp.up_proj.weight": (ffn, dim),
            f"{at}.mlp.down_proj.weight": (dim, ffn),
        }
    shapes["model.norm.weight"] = (dim,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, dim)
    return shapes
