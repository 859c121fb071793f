"""Both spellings of config.json, RoPE as Transformers has it, refusals by name."""

import json

import numpy as np
import pytest

from references import FAMILIES
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 60,
    "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 5, "vocab_size": 101,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


def read(tmp_path, config, generation=None):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_directory(tmp_path)


def test_defaults(tmp_path):
    config = read(tmp_path, BASE)
    assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (5, 12, 10000.0)
    assert config.rope_type == "default" and config.eos_token_ids == ()
    assert ModelConfig.from_json(config.to_json()) == config


def test_old_and_new_rope_spellings_agree(tmp_path):
    old = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")}
    new = BASE | {"rope_parameters": LLAMA3, "dtype": "bfloat16"}
    for key in ("type", "rope_type"):
        scaling = {"rope_theta": 5e5, "rope_scaling": {key: "llama3"} | old}
        assert read(tmp_path, BASE | scaling | {"torch_dtype": "bfloat16"}) == read(tmp_path, new)


def test_end_tokens_of_both_files(tmp_path):
    config = read(tmp_path, BASE | {"eos_token_id": 2}, {"eos_token_id": [7, 9]})
    assert config.eos_token_ids == (2, 7, 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_frequencies_are_those_of_transformers(references, name):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(references / name)).inv_freq.numpy()
    ours = ModelConfig.from_directory(references / name).inverse_frequencies()
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "qwen2"}, "qwen2"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"sliding_window": 128, "max_position_embeddings": 4096}, "sliding window of 128"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"vocab_size": None}, "vocab_size"),
        ({"head_dim": 7}, "odd"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"architectures": [["LlamaForCausalLM"]]}, "supported are"),
        ({"architectures": None, "model_type": None}, "supported are"),
        ({"quantization_config": "gptq"}, "must be an object"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_parameters": ["linear"]}, "must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor 1"),
        ({"sliding_window": "x", "max_position_embeddings": 4096}, "sliding window of x"),
        ({"sliding_window": 128}, "sliding window of 128"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_attention_heads": 2.5}, "num_attention_heads = 2.5"),
        ({"num_attention_heads": 7}, "no head_dim"),
        ({"intermediate_size": True}, "intermediate_size = True"),
        ({"num_key_value_heads": -1}, "num_key_value_heads = -1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0"),
    ],
)
def test_refusals(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, BASE | change)


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    read(tmp_path, BASE | {"sliding_window": 4096, "max_position_embeddings": 4096})


def test_a_window_that_is_not_used_is_none(tmp_path):
    read(tmp_path, BASE | {"sliding_window": 128, "use_sliding_window": False})
    read(tmp_path, BASE | {"sliding_window": None})


def test_mistral_has_a_window_unless_it_says_otherwise(tmp_path):
    mistral = BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    with pytest.raises(UserError, match="sliding window of 4096"):
        read(tmp_path, mistral | {"max_position_embeddings": 32768})
    read(tmp_path, mistral | {"max_position_embeddings": 32768, "sliding_window": None})


@pytest.mark.parametrize("eos", [None, True, "2", [[1]]])
def test_ends_that_are_no_numbers_are_none(tmp_path, eos):
    assert read(tmp_path, BASE | {"eos_token_id": eos}).eos_token_ids == ()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"[]", b""])
def test_broken_json(tmp_path, name, text):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match="fetch it again"):
        ModelConfig.from_directory(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, says in (("gone", "does not exist"), ("file", "is a file"), ("empty", "no config")):
        with pytest.raises(UserError, match=says):
            ModelConfig.from_directory(tmp_path / name)
