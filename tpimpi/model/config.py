"""The model's shape from a Hugging Face directory; what isn't supported is refused by its name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tpimpi.errors import UserError
from tpimpi.model.architecture import DEFAULTS, Parts, architecture_of, windows_of
from tpimpi.model.directory import name_of, read_configs
from tpimpi.model.fields import MOST, Fields, shown
from tpimpi.model.rope import RopeConfig

# The deepest known models have some 130; a checkpoint's index names nine tensors or more of each.
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Llama-like model. Counts are numbers, not bytes."""

    name: str
    architecture: str  # a key of architecture.SUPPORTED
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  # tokens that each layer sees, None: all; see windows_of
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_positions: int
    tie_word_embeddings: bool  # as config.json says; which matrix is the head, the weights decide
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelConfig:
        """Read config.json and generation_config.json; raise UserError for what can't be run."""
        config, generation = read_configs(directory)
        return cls.of(name_of(Path(directory)), config, generation)

    @classmethod
    def of(cls, name: str, config: dict, generation: dict) -> ModelConfig:
        """Read the contents of config.json and generation_config.json; UserError as above."""
        fields = Fields(name, config)
        architecture = architecture_of(fields)
        _refuse_unsupported(fields)
        defaults = DEFAULTS[architecture]
        layers = fields.count("num_hidden_layers", most=MOST_LAYERS)
        hidden = fields.count("hidden_size")
        heads = fields.count("num_attention_heads")
        missing = heads if fields.has("num_key_value_heads") else None  # null: one for each
        kv_heads = fields.count(
            "num_key_value_heads", missing or defaults.get("num_key_value_heads", heads)
        )
        if heads % kv_heads:
            raise UserError(
                f"{name}: num_attention_heads {heads} is no multiple of num_key_value_heads "
                f"{kv_heads}; config.json is wrong"
            )
        head_dim = _head_dim(fields, hidden, heads, defaults.get("head_dim"))
        positions = fields.count("max_position_embeddings", defaults["max_position_embeddings"])
        rope = RopeConfig.of(fields, head_dim, positions)
        positions = max(positions, rope.reach)
        vocabulary = fields.count("vocab_size")
        ids = Fields(name, generation, "generation_config.json")
        return cls(
            name=name,
            architecture=architecture,
            num_layers=layers,
            hidden_size=hidden,
            intermediate_size=fields.count("intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocabulary,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=rope,
            windows=windows_of(architecture, fields, layers, positions),
            **asdict(Parts.of(architecture, fields)),
            max_positions=positions,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            bos_token_id=_bos(ids if ids.get("bos_token_id") is not None else fields, vocabulary),
            eos_token_ids=_eos(ids if ids.get("eos_token_id") is not None else fields, vocabulary),
        )

    def to_json(self) -> str:
        """Return all fields as stable JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Make a config from `to_json`'s text."""
        fields = json.loads(text)
        fields["rope"] = RopeConfig(**fields["rope"])
        for key in ("windows", "eos_token_ids"):
            fields[key] = tuple(fields[key])
        return cls(**fields)


def _refuse_unsupported(fields: Fields) -> None:
    """Raise UserError, by name, for what would run but give other numbers."""
    if fields.get("quantization_config"):
        method = fields.object("quantization_config").get("quant_method", "unknown")
        method = method if isinstance(method, str) else shown(method)
        raise UserError(
            f"{fields.name} is quantized (quantization_config, method {method}); use the original "
            "checkpoint in float32, float16 or bfloat16"
        )
    if fields.get("hidden_act") not in (None, "silu", "swish"):
        act = shown(fields.get("hidden_act"))
        raise UserError(f"{fields.name} has hidden_act {act}; only 'silu' is supported")


def _head_dim(fields: Fields, hidden: int, heads: int, default: int | None) -> int:
    if fields.get("head_dim") is None and default is None and hidden % heads:
        raise UserError(
            f"{fields.name}: hidden_size {hidden} is no multiple of num_attention_heads {heads} "
            "and config.json gives no head_dim"
        )
    head_dim = fields.count("head_dim", default or hidden // heads)
    if head_dim % 2:
        raise UserError(
            f"{fields.name}: head_dim {head_dim} is odd, but RoPE turns pairs of numbers"
        )
    if heads * head_dim > MOST:
        raise UserError(
            f"{fields.name}: num_attention_heads {heads} times head_dim {head_dim} is more than "
            f"{MOST:,}; config.json is wrong"
        )
    return head_dim


def _bos(fields: Fields, vocabulary: int) -> int | None:
    value = fields.get("bos_token_id")
    if value is None:
        return None
    _check_id(fields, "bos_token_id", value, vocabulary)
    return value


def _eos(fields: Fields, vocabulary: int) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        _check_id(fields, "eos_token_id", one, vocabulary)
    return tuple(sorted(set(values)))


def _check_id(fields: Fields, key: str, value: object, vocabulary: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocabulary:
        raise fields.refusal(key, f"which must be a token's id, from 0 to {vocabulary - 1}")
