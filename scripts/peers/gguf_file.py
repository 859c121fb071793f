"""Write a checkpoint's very weights as a GGUF file, for llama.cpp.

The format is at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the names of tensors and
fields are the `gguf` package's own. Servers need a vocabulary; else programs are compared on ids.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor

from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return q or k rows [H * Hd, D] in the order of llama.cpp's rotary embedding.

    Hugging Face turns the pairs (i, i + Hd / 2) of a head, llama.cpp turns (2 i, 2 i + 1).
    """
    total, columns = rows.shape
    halves = rows.reshape(heads, 2, total // heads // 2, columns)  # [H, 2, Hd/2, D]
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(total, columns))


def rope_factors(config: ModelConfig) -> np.ndarray:
    """Return what llama.cpp divides each rotary frequency by, float32 [Hd/2]."""
    pairs = np.arange(config.head_dim // 2)  # [Hd/2]
    plain = config.rope.theta ** (-2.0 * pairs / config.head_dim)  # [Hd/2]
    return (plain / config.rope.inverse_frequencies()).astype(np.float32)


def _add_fields(writer, config: ModelConfig) -> None:
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer, config: ModelConfig, model: Path) -> None:
    """Write the pieces of a tokenizer.model, with unused ones up to the vocabulary's size."""
    pieces = SentencePieceProcessor(model_file=str(model))
    ids = range(pieces.get_piece_size())
    kinds = (  # as llama.cpp numbers them, where none is normal
        (6, pieces.is_byte), (5, pieces.is_unused), (3, pieces.is_control), (2, pieces.is_unknown)
    )  # fmt: skip
    found = [next((kind for kind, is_one in kinds if is_one(i)), 1) for i in ids]
    missing = config.vocab_size - len(ids)
    unused = [f"<unused{number}>" for number in range(missing)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*(pieces.id_to_piece(i) for i in ids), *unused])
    writer.add_token_scores([*(pieces.get_score(i) for i in ids), *[0.0] * missing])
    writer.add_token_types([*found, *[5] * missing])
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())


def write_gguf(
    checkpoint: Checkpoint, config: ModelConfig, path: Path, encoding: str | None,
    vocabulary: Path | None = None,
) -> None:  # fmt: skip
    """Write all tensors in `encoding` ("f32"), or in the checkpoint's own if it is None.

    Norms are float32 always, as llama.cpp wants them. Without `vocabulary`, a tokenizer.model, the
    file is for token ids only. Memory: one tensor at a time.
    """
    import gguf

    if config.architecture not in ("llama", "mistral") or config.rope.kind == "yarn":
        raise UserError(
            f"{config.name} is a {config.architecture} model with RoPE of type {config.rope.kind}; "
            "only Llama's kind without YaRN is written as GGUF"
        )
    writer = gguf.GGUFWriter(None, "llama")
    _add_fields(writer, config)
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_vocabulary(writer, config, vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    stored = {}
    for name, tensor in checkpoint.tensors.items():
        stored[name] = "f32" if len(tensor.shape) == 1 else encoding or tensor.encoding
        nbytes = ENCODINGS[stored[name]].nbytes(*tensor.shape)
        writer.add_tensor_info(
            names.get_name(name, (".weight",)), tensor.shape,
            np.dtype(np.float32), nbytes, gguf.GGMLQuantizationType[stored[name].upper()],
        )  # fmt: skip
    scaled = config.rope.kind != "default"
    factors = rope_factors(config)
    if scaled:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    partial = path.with_name(path.name + ".partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    for name, tensor in checkpoint.tensors.items():
        data = checkpoint.read(name, None, None)  # raw [rows, columns], or [D] of a norm
        if stored[name] != tensor.encoding:
            data = ENCODINGS[tensor.encoding].widen(data)
        kind = name.split(".")[-2]
        writer.write_tensor_data(interleaved(data, heads[kind]) if kind in heads else data)
    if scaled:
        writer.write_tensor_data(factors)
    writer.close()
    os.replace(partial, path)
