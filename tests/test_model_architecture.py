"""Names, biases, norms, windows and defaults of each architecture, as Transformers has them."""

import json
import re

import pytest

from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

BASE = {
    "hidden_size": 60, "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 5,
    "vocab_size": 101,
}  # fmt: skip


def of_kind(kind, change):
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    return BASE | {"architectures": [f"{name}ForCausalLM"], "model_type": kind} | change


def their_config(config):
    from transformers import AutoConfig

    content = json.loads(json.dumps(config))
    return AutoConfig.for_model(content["model_type"]).from_dict(content)


SLIDING = {"use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 5}
MIXED = ["sliding_attention", "full_attention", "attention", "sliding_attention", "attention"]
WINDOWS = [
    ("mistral", {}, (4096, 4096)),
    ("mistral", {"sliding_window": None}, (None, None)),
    ("mistral", {"sliding_window": 128, "use_sliding_window": False}, (128, 128)),
    ("mistral", {"sliding_window": 128, "layer_types": ["sliding_attention"] * 2}, (128, 128)),
    ("mistral", {"sliding_window": 128, "max_window_layers": 1}, (128, 128)),
    ("qwen2", {}, (None, None)),
    ("qwen2", {"sliding_window": 128, "use_sliding_window": False}, (None, None)),
    ("qwen2", SLIDING, (None,) * 5),  # max_window_layers is 28
    ("qwen2", SLIDING | {"max_window_layers": 3}, (None, None, None, 16, 16)),
    ("qwen2", SLIDING | {"max_window_layers": 0}, (16,) * 5),
    ("qwen2", SLIDING | {"max_window_layers": 0, "sliding_window": None}, (None,) * 5),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, (None, 4096)),
    ("qwen3", SLIDING | {"max_window_layers": 4}, (None,) * 4 + (16,)),
    ("qwen3", SLIDING | {"layer_types": MIXED, "max_window_layers": 0}, (16, None, None, 16, None)),
    ("qwen3", {"layer_types": ["full_attention"] * 2}, (None, None)),
]


@pytest.mark.parametrize(("kind", "change", "expected"), WINDOWS)
def test_windows_are_those_of_transformers(kind, change, expected):
    config = of_kind(kind, {"num_key_value_heads": 5, "max_position_embeddings": 32768} | change)
    ours, theirs = ModelConfig.of("m", config, {}), their_config(config)
    assert ours.windows == expected
    window = theirs.sliding_window
    if kind == "mistral":  # the modelling code asks for no types
        assert ours.windows == (window,) * ours.num_layers
    else:
        slides = [kind == "sliding_attention" for kind in theirs.layer_types]
        assert ours.windows == tuple(window if slide else None for slide in slides)
    assert ModelConfig.from_json(ours.to_json()) == ours


def test_a_window_means_what_it_means_in_transformers():
    """Token t sees positions > t - window: `window` of them, itself among them."""
    import torch
    from transformers.masking_utils import sliding_window_causal_mask_function

    sees = sliding_window_causal_mask_function(5)
    seen = [position for position in range(30) if sees(0, 0, torch.tensor(20), position)]
    assert seen == [position for position in range(21) if position > 20 - 5] and len(seen) == 5


@pytest.mark.parametrize(("window", "left"), [(4095, (4095,) * 2), (4096, (None,) * 2)])
def test_a_window_as_long_as_the_context_is_none(window, left):
    change = {"sliding_window": window, "max_position_embeddings": 4096, "num_key_value_heads": 5}
    assert ModelConfig.of("m", of_kind("mistral", change), {}).windows == left


def test_a_llama_window_that_hides_nothing_is_none():
    for change in (
        {"sliding_window": 128, "use_sliding_window": False},
        {"sliding_window": None},
        {"sliding_window": 4096, "max_position_embeddings": 4096},
    ):
        assert ModelConfig.of("m", of_kind("llama", change), {}).windows == (None, None)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_tensors_of_an_architecture_are_those_of_transformers(kind, attention, mlp):
    import torch
    from transformers import AutoModelForCausalLM

    change = {"num_key_value_heads": 5, "head_dim": 12}
    change |= {"attention_bias": True} if attention and kind != "mistral" else {}
    change |= {"mlp_bias": True} if mlp and kind == "llama" else {}
    config = of_kind(kind, change)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(their_config(config))
    names = {name.removeprefix("model.layers.1.") for name in model.state_dict()}
    ours = ModelConfig.of("m", config, {})
    assert ours.architecture == kind
    assert ours.qkv_bias == ("self_attn.q_proj.bias" in names) == ("self_attn.v_proj.bias" in names)
    assert ours.output_bias == ("self_attn.o_proj.bias" in names)
    assert ours.mlp_bias == ("mlp.down_proj.bias" in names) == ("mlp.gate_proj.bias" in names)
    assert (
        ours.qk_norm == ("self_attn.q_norm.weight" in names) == ("self_attn.k_norm.weight" in names)
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("heads", [{}, {"num_key_value_heads": None}, {"num_key_value_heads": 4}])
def test_defaults_are_those_of_transformers(kind, heads):
    config = of_kind(kind, {"num_attention_heads": 32, "hidden_size": 64} | heads)
    if kind == "mistral" and heads == {"num_key_value_heads": None}:
        assert ModelConfig.of("m", config, {}).num_kv_heads == 32  # Transformers takes no null here
        return
    ours, theirs = ModelConfig.of("m", config, {}), their_config(config)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", 2)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("names", "kind", "architecture"),
    [
        (["LlamaModel"], None, "llama"),
        (["LLaMAForCausalLM"], "llama", "llama"),
        (["llamaforcausallm"], "LLaMA", "llama"),
        ("MistralModel", "mistral", "mistral"),
        (["Qwen2Model"], "qwen2", "qwen2"),
        (["Qwen3ForCausalLM", "Qwen3Model"], "qwen3", "qwen3"),
        ([], "qwen3", "qwen3"),
        (None, "mistral", "mistral"),
    ],
)
def test_names_of_architectures(names, kind, architecture):
    config = BASE | {"architectures": names, "model_type": kind, "num_key_value_heads": 5}
    assert ModelConfig.of("m", config, {}).architecture == architecture


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("mistral", {"attention_bias": True}, "attention_bias, which MistralForCausalLM"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias, which Qwen3ForCausalLM"),
        ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
        ("mistral", {"sliding_window": 64, "layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": -4}, "sliding_window = -4"),
        ("qwen2", {"max_window_layers": 1.0}, "max_window_layers = 1.0"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers = -1.*at least 0"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types = .*a list of 2 names"),
        ("qwen3", {"layer_types": "full_attention"}, "layer_types = .*a list of 2 names"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ("qwen3", {"layer_types": [["full_attention"], 1]}, "layers of type"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "says that there is none"),
    ],
)
def test_refusals_of_an_architecture(kind, change, says):
    with pytest.raises(UserError, match=says):
        ModelConfig.of("m", of_kind(kind, {"num_key_value_heads": 5} | change), {})


@pytest.mark.parametrize("bad", ["false", "true", 0, 1, 0.0, [], {}])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("llama", "tie_word_embeddings"), ("llama", "attention_bias"), ("llama", "mlp_bias"),
        ("qwen2", "use_sliding_window"), ("mistral", "attention_bias"),
    ],
)  # fmt: skip
def test_what_is_no_boolean_is_refused_with_its_value(kind, key, bad):
    config = of_kind(kind, {"num_key_value_heads": 5})
    with pytest.raises(UserError, match=f"{key} = {re.escape(repr(bad))}, .*true or false"):
        ModelConfig.of("m", config | {key: bad}, {})
    assert ModelConfig.of("m", config | {key: None}, {}) == ModelConfig.of("m", config, {})
