"""What differs between the architectures: their names, biases, norms of heads, sliding windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpimpi.errors import UserError
from tpimpi.model.fields import Fields, shown

SUPPORTED = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What Transformers takes where config.json has no such key; null is another thing for some.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096,
    },
    "qwen3": {
        "max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096,
        "head_dim": 128,
    },
}  # fmt: skip


def architecture_of(config: Fields) -> str:
    """Return the key in SUPPORTED for what model_type and architectures say; UserError if none."""
    aliases = {f"{kind}{end}": kind for kind in SUPPORTED for end in ("forcausallm", "model")}
    names = config.get("architectures") or []
    found = [
        (name, aliases.get(name.lower()) if isinstance(name, str) else None)
        for name in (names if isinstance(names, list) else [names])
    ]
    kind = config.get("model_type")
    if kind is not None or not found:
        lower = kind.lower() if isinstance(kind, str) else None
        found.append((kind, lower if lower in SUPPORTED else None))
    for name, architecture in found:
        if architecture is None:
            raise UserError(
                f"{config.name} is a {shown(name)} model; supported are "
                f"{', '.join(SUPPORTED.values())} (Llama, Yi, TinyLlama, Mistral, Qwen 2 and 3)"
            )
    for name, architecture in found:
        if architecture != found[-1][1]:
            raise UserError(
                f"{config.name}: config.json has architectures {shown(name)} but model_type "
                f"{shown(kind)}; one of them is wrong"
            )
    return found[-1][1]


@dataclass(frozen=True)
class Parts:
    """Which tensors a layer has beside its seven matrices and two norms."""

    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @classmethod
    def of(cls, architecture: str, config: Fields) -> Parts:
        """Read the biases; raise UserError for those that the architecture doesn't know."""
        attention = config.flag("attention_bias", False)
        mlp = config.flag("mlp_bias", False)
        for key, on, known in (
            ("attention_bias", attention, architecture != "mistral"),
            ("mlp_bias", mlp, architecture == "llama"),
        ):
            if on and not known:
                raise UserError(
                    f"{config.name} has {key}, which {SUPPORTED[architecture]} doesn't know"
                )
        qwen2 = architecture == "qwen2"  # has biases at q, k and v, whatever config.json says
        return cls(qwen2 or attention, attention and not qwen2, mlp, architecture == "qwen3")


def windows_of(
    architecture: str, config: Fields, layers: int, positions: int
) -> tuple[int | None, ...]:
    """Return each layer's sliding window in tokens, None where it sees everything.

    As in Transformers a token at position t sees positions > t - window: `window` tokens, itself
    among them. A window of at least `positions` hides nothing, so it is none. Raises UserError.
    """
    if architecture == "llama":
        return _no_windows(config, layers, positions)
    qwen = architecture in ("qwen2", "qwen3")
    used = config.flag("use_sliding_window", False) if qwen else True
    window = None
    if used and (not config.has("sliding_window") or config.get("sliding_window") is not None):
        window = config.count("sliding_window", DEFAULTS[architecture]["sliding_window"])
    first = config.count("max_window_layers", 28, least=0) if qwen else 0
    types = _layer_types(config, layers)
    if types is None or not qwen:
        slides = [window is not None and layer >= first for layer in range(layers)]
    else:
        slides = [kind == "sliding_attention" for kind in types]
    if any(slides) and window is None:
        raise UserError(
            f"{config.name}: layer_types has sliding_attention, but sliding_window or "
            "use_sliding_window says that there is none; config.json is wrong"
        )
    if window is None or window >= positions:
        return (None,) * layers
    if types and not qwen and "full_attention" in types:  # Transformers breaks here, too
        raise UserError(
            f"{config.name} has layer_types with full_attention, but a MistralForCausalLM slides "
            "in every layer; that is another architecture, which is not supported"
        )
    return tuple(window if slide else None for slide in slides)


def _no_windows(config: Fields, layers: int, positions: int) -> tuple[None, ...]:
    window = config.get("sliding_window")
    if window is not None and config.flag("use_sliding_window", True):
        window = config.count("sliding_window")
        if window < positions:
            raise UserError(
                f"{config.name} has a sliding window of {window} tokens (sliding_window), which a "
                "LlamaForCausalLM doesn't know; if it is a Mistral, config.json must say so"
            )
    return (None,) * layers


def _layer_types(config: Fields, layers: int) -> list[str] | None:
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        raise config.refusal("layer_types", f"which must be a list of {layers} names")
    # The older name of full attention is read as Transformers reads it.
    types = ["full_attention" if kind == "attention" else kind for kind in types]
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(
                f"{config.name} has layers of type {shown(kind)} (layer_types); supported are "
                "full_attention and sliding_attention"
            )
    return types
