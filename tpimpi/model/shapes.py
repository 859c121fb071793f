"""Named shapes of well-known models, to plan and to measure with where there are no weights.

Sizes are those of the models' public config.json; the context is 8192 tokens for all.
"""

from __future__ import annotations

from tpimpi.errors import UserError
from tpimpi.model.config import MOST_LAYERS, ModelConfig
from tpimpi.model.fields import shown

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6,
    "attention_bias": False,
}  # fmt: skip
# name: layers, hidden, MLP, query heads, kv heads, head_dim, vocabulary, theta, more of config.json
SHAPES = {
    "tiny": (2, 64, 160, 5, 5, 16, 1031, 1e4, {}),
    "demo-tiny": (4, 192, 480, 6, 2, 32, 1024, 1e4, {}),
    "tinyllama-1.1b": (22, 2048, 5632, 32, 4, 64, 32000, 1e4, {}),
    "llama3.2-1b": (
        16, 2048, 8192, 32, 8, 64, 128256, 5e5,
        {"rope_scaling": LLAMA3_ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    ),
    "llama3.2-3b": (
        28, 3072, 8192, 24, 8, 128, 128256, 5e5,
        {"rope_scaling": LLAMA3_ROPE | {"factor": 32.0}, "tie_word_embeddings": True},
    ),
    "llama2-7b": (32, 4096, 11008, 32, 32, 128, 32000, 1e4, {}),
    "llama3-8b": (32, 4096, 14336, 32, 8, 128, 128256, 5e5, {}),
    "yi-6b": (32, 4096, 11008, 32, 4, 128, 64000, 5e6, {}),
    "yi-34b": (60, 7168, 20480, 56, 8, 128, 64000, 5e6, {}),
    "llama2-70b": (80, 8192, 28672, 64, 8, 128, 32000, 1e4, {}),
    "llama3.3-70b": (
        80, 8192, 28672, 64, 8, 128, 128256, 5e5, {"rope_scaling": LLAMA3_ROPE | {"factor": 8.0}},
    ),
    "qwen2.5-0.5b": (
        24, 896, 4864, 14, 2, 64, 151936, 1e6, QWEN2 | {"tie_word_embeddings": True},
    ),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 128, 152064, 1e6, QWEN2),
    "qwen2.5-32b": (64, 5120, 27648, 40, 8, 128, 152064, 1e6, QWEN2 | {"rms_norm_eps": 1e-5}),
    "qwen3-4b": (
        36, 2560, 9728, 32, 8, 128, 151936, 1e6, QWEN3 | {"tie_word_embeddings": True},
    ),
    "qwen3-32b": (64, 5120, 25600, 64, 8, 128, 151936, 1e6, QWEN3),
}  # fmt: skip
TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # as config.json says them


def config_of(shape: str, layers: int | None, dtype: str) -> dict:
    """Return the content of config.json of a named shape; `layers` instead of its own, if given.

    Raises UserError for a name that isn't in SHAPES and for more layers than any model may have.
    """
    if shape not in SHAPES:
        raise UserError(f"there is no shape {shape!r}; known are {', '.join(SHAPES)}")
    if layers is not None and not 1 <= layers <= MOST_LAYERS:
        raise UserError(f"a shape has from 1 to {MOST_LAYERS} layers, not {shown(layers)}")
    count, hidden, mlp, heads, kv_heads, head_dim, vocabulary, theta, more = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers or count,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": TORCH_NAMES[dtype],
    } | more


def shape_config(name: str, layers: int | None = None) -> ModelConfig:
    """Return the ModelConfig of a named shape, without any file; UserError if there is no such."""
    return ModelConfig.of(name, config_of(name, layers, "bf16"), {})
