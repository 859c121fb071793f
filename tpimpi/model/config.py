"""The model's shape from a Hugging Face directory; what isn't supported is refused by its name."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpimpi.errors import UserError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Llama-like model. Counts are numbers, not bytes."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_type: str
    rope_factor: float
    rope_low_freq_factor: float
    rope_high_freq_factor: float
    rope_original_max_positions: int
    max_positions: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelConfig:
        """Read config.json and generation_config.json; raise UserError for what can't be run."""
        directory = Path(directory)
        if not directory.exists():
            raise UserError(f"{directory} does not exist; --model wants a Hugging Face directory")
        if not directory.is_dir():
            raise UserError(
                f"{directory} is a file; --model wants the directory with config.json and "
                "*.safetensors"
            )
        if not (directory / "config.json").exists():
            raise UserError(
                f"{directory} has no config.json; --model wants a Hugging Face directory with "
                "config.json, *.safetensors and a tokenizer"
            )
        config = _read_json(directory / "config.json")
        generation = {}
        if (directory / "generation_config.json").exists():
            generation = _read_json(directory / "generation_config.json")
        return cls.of(directory.resolve().name, config, generation)

    @classmethod
    def of(cls, name: str, config: dict, generation: dict) -> ModelConfig:
        """Read the contents of config.json and generation_config.json; UserError as above."""
        _refuse_unsupported(name, config)
        heads = _count(name, config, "num_attention_heads")
        hidden = _count(name, config, "hidden_size")
        kv_heads = _count(name, config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise UserError(
                f"{name}: num_attention_heads {heads} is no multiple of num_key_value_heads "
                f"{kv_heads}; config.json is wrong"
            )
        if config.get("head_dim") is None and hidden % heads:
            raise UserError(
                f"{name}: hidden_size {hidden} is no multiple of num_attention_heads {heads} and "
                "config.json gives no head_dim"
            )
        head_dim = _count(name, config, "head_dim", hidden // heads)
        if head_dim % 2:
            raise UserError(f"{name}: head_dim {head_dim} is odd, but RoPE turns pairs of numbers")
        positions = _count(name, config, "max_position_embeddings", 2048)
        bos = generation.get("bos_token_id", config.get("bos_token_id"))
        return cls(
            name=name,
            num_layers=_count(name, config, "num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=_count(name, config, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_count(name, config, "vocab_size"),
            rms_norm_eps=_positive(name, config, "rms_norm_eps", 1e-6),
            max_positions=positions,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            bos_token_id=bos if isinstance(bos, int) else None,
            eos_token_ids=_eos(config, generation),
            **_rope(name, config, positions),
        )

    def to_json(self) -> str:
        """Return all fields as stable JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Make a config from `to_json`'s text."""
        fields = json.loads(text)
        fields["eos_token_ids"] = tuple(fields["eos_token_ids"])
        return cls(**fields)

    def inverse_frequencies(self) -> np.ndarray:
        """Return RoPE's inverse frequencies, float32 [Hd/2] (Su et al. 2021, arXiv:2104.09864).

        Rope type `llama3` stretches the long waves only, as in Llama 3.1.
        """
        even = np.arange(0, self.head_dim, 2, dtype=np.float32)  # [Hd/2]
        powers = np.power(np.float32(self.rope_theta), even / np.float32(self.head_dim))
        inverse = np.float32(1.0) / powers.astype(np.float32)  # [Hd/2]
        if self.rope_type == "linear":
            return (inverse / np.float32(self.rope_factor)).astype(np.float32)
        if self.rope_type == "llama3":
            low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
            original, factor = self.rope_original_max_positions, np.float32(self.rope_factor)
            waves = np.float32(2 * math.pi) / inverse  # [Hd/2] positions a turn
            smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
            between = (1 - smooth) * inverse / factor + smooth * inverse
            stretched = np.where(waves > original / low, inverse / factor, between)
            inverse = np.where(waves < original / high, inverse, stretched)
        return inverse.astype(np.float32)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the second: nested too deep
        raise UserError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return content


def _count(name: str, config: dict, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{name}: config.json has {key} = {value!r}, which must be a positive integer"
        )
    return value


def _positive(name: str, config: dict, key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(
            f"{name}: config.json has {key} = {value!r}, which must be a positive number"
        )
    return float(value)


def _object(name: str, config: dict, key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{name}: config.json has {key} = {value!r}, which must be an object")
    return value


def _refuse_unsupported(name: str, config: dict) -> None:
    """Raise UserError, by name, for what would run but give other numbers."""
    kind = config.get("model_type")
    names = config.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    wrong = [a for a in names if a not in list(ARCHITECTURES)]
    if kind not in [*ARCHITECTURES.values(), *([None] if names else [])]:
        wrong.append(kind)
    if wrong:
        raise UserError(
            f"{name} is a {wrong[0]} model; supported are "
            f"{' and '.join(ARCHITECTURES)} (Llama, Yi, TinyLlama, Mistral)"
        )
    if config.get("quantization_config"):
        method = _object(name, config, "quantization_config").get("quant_method", "unknown")
        raise UserError(
            f"{name} is quantized (quantization_config, method {method}); use the original "
            "checkpoint in float32, float16 or bfloat16"
        )
    # Transformers gives Mistral a window of 4096 tokens unless the file says otherwise.
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    positions = config.get("max_position_embeddings")
    used = config.get("use_sliding_window", True) and window is not None
    numbers = isinstance(positions, int) and isinstance(window, int)
    if used and not (numbers and window >= positions):
        raise UserError(
            f"{name} has a sliding window of {window} tokens (sliding_window), which is not "
            "supported; use a version without one (such as Mistral 7B v0.2 or later)"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(f"{name} has {key}, which is not supported")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(f"{name} has hidden_act {config['hidden_act']!r}; only 'silu' is supported")


def _rope(name: str, config: dict, positions: int) -> dict[str, Any]:
    """Read RoPE's constants in the old spelling (rope_scaling) or the new (rope_parameters)."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = _object(name, config, key)
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind not in ROPE_TYPES:
        raise UserError(f"{name} has rope type {kind!r}; supported are {', '.join(ROPE_TYPES)}")
    merged = {"rope_theta": config.get("rope_theta")} | rope
    needed = {
        "linear": ("factor",),
        "llama3": (
            "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        ),
    }.get(kind, ())  # fmt: skip
    for key in needed:
        if merged.get(key) is None:
            raise UserError(
                f"{name}: rope type {kind!r} needs {key}, which config.json does not give"
            )
    scaled = {k: merged.get(k) if k in needed else None for k in merged}
    original = _count(name, scaled, "original_max_position_embeddings", positions)
    low = _positive(name, scaled, "low_freq_factor", 1.0)
    high = _positive(name, scaled, "high_freq_factor", 4.0)
    if high <= low:
        raise UserError(
            f"{name}: high_freq_factor {high:g} must be more than low_freq_factor {low:g}; "
            "config.json is wrong"
        )
    return {
        "rope_theta": _positive(name, merged, "rope_theta", 10000.0),
        "rope_type": kind,
        "rope_factor": _positive(name, scaled, "factor", 1.0),
        "rope_low_freq_factor": low,
        "rope_high_freq_factor": high,
        "rope_original_max_positions": original,
    }


def _eos(config: dict, generation: dict) -> tuple[int, ...]:
    found: set[int] = set()
    for source in (config, generation):
        value = source.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
    return tuple(sorted(found))
