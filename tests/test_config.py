"""Both spellings of config.json, RoPE as Transformers has it, refusals by name."""

import json

import numpy as np
import pytest

from references import FAMILIES
from tpimpi.config import ModelConfig
from tpimpi.errors import UserError

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 60,
    "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 5, "vocab_size": 101,
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
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    old = BASE | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | scaling}
    new = BASE | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | scaling}
    assert read(tmp_path, old) == read(tmp_path, new)


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
    ],
)
def test_refusals(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, BASE | change)


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    read(tmp_path, BASE | {"sliding_window": 4096, "max_position_embeddings": 4096})


def test_broken_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        ModelConfig.from_directory(tmp_path)
