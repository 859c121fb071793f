"""RoPE's angles and their precedence in config.json, side by side with Transformers' own."""

import json

import numpy as np
import pytest

from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.rope import RopeConfig

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48,
    "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SETTINGS = [
    {},
    {"rope_theta": 5e5, "head_dim": 128},
    {"rope_parameters": {"rope_theta": 1e6}},
    {"rope_scaling": {"type": "linear", "factor": 3}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.5}, "head_dim": 6},
    {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "rope_theta": 5e5},
    {"rope_scaling": LLAMA3, "head_dim": 64},  # the length of the training is the context then
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16, "head_dim": 64},
    {
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 48},
        "original_max_position_embeddings": 16, "head_dim": 64,
    },
    {"rope_scaling": YARN},
    {"rope_scaling": YARN, "original_max_position_embeddings": 8, "rope_theta": 1e6},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "head_dim": 128},
    {"rope_scaling": YARN | {"factor": None}, "head_dim": 128},
    {"rope_scaling": YARN | {"factor": 0.5}},
    {"rope_scaling": YARN | {"attention_factor": 1.7}, "head_dim": 64},
    {"rope_scaling": YARN | {"mscale": 0.7}},
    {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    {"rope_scaling": YARN | {"beta_fast": 3, "beta_slow": 1.5}, "head_dim": 128},
    {"rope_scaling": YARN | {"truncate": False}, "head_dim": 128},
    {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 1}, "head_dim": 32},
    {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "head_dim": 20},
    {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 3}},
    {"rope_scaling": {"type": "linear", "factor": 3}, "rope_parameters": YARN},
    {"rope_scaling": {}, "rope_parameters": YARN, "rope_theta": 7e4},
    {"rope_parameters": YARN | {"rope_theta": 3e5}, "rope_theta": 7e4},
    {"rope_scaling": None, "rope_parameters": YARN, "rope_theta": 7e4},
]  # fmt: skip


def ours(change):
    return ModelConfig.of("m", BASE | change, {})


def theirs(change):
    """Return Transformers' own module, from a config read as from a file."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(BASE | change))))


@pytest.mark.parametrize("change", SETTINGS, ids=json.dumps)
def test_angles_are_those_of_transformers(change):
    config, module = ours(change), theirs(change)
    angles = config.rope.inverse_frequencies()
    assert angles.dtype == np.float32 and angles.shape == (config.head_dim // 2,)
    np.testing.assert_allclose(angles, module.inv_freq.numpy(), rtol=1e-6)
    assert config.rope.attention_factor == pytest.approx(module.attention_scaling, rel=1e-9)
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 255, 256, 1000])
@pytest.mark.parametrize("head_dim", [4, 20, 128])
def test_dynamic_angles_follow_the_length_of_the_text(length, head_dim):
    import torch

    change = {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "head_dim": head_dim}
    module = theirs(change)
    module(torch.zeros(1), torch.arange(length)[None])  # [1, T]
    found = ours(change).rope.inverse_frequencies(length)
    np.testing.assert_allclose(found, module.inv_freq.numpy(), rtol=1e-6)
    plain = ours({"head_dim": head_dim}).rope.inverse_frequencies(length)
    assert (found[1:] < plain[1:]).all() == (length > 64)


def test_yarn_and_dynamic_reach_further_than_the_training():
    assert ours({"rope_scaling": YARN}).max_positions == 128  # 4 times 32
    assert ours({"rope_scaling": YARN | {"factor": 1.5}}).max_positions == 64  # the context's
    assert ours({"rope_scaling": {"type": "dynamic", "factor": 2.5}}).max_positions == 160
    assert ours({"rope_scaling": {"type": "linear", "factor": 2.5}}).max_positions == 64


def test_constants_that_a_type_does_not_use_make_no_difference():
    plain = ours({"rope_scaling": {"rope_type": "default"}})
    assert ours({"rope_scaling": YARN | {"rope_type": "default"}}) == plain
    assert plain.rope == RopeConfig("default", 12, 1e4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "'longrope'; supported are"),
        ({"rope_scaling": {"type": ["linear"]}}, "supported are"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "needs low_freq_factor"),
        ({"rope_scaling": {"type": "yarn"}}, "needs factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": None}}, "needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor = True"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-300}}, "factor = 1e-300.*float32"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor = 10000.*float32"),
        ({"rope_scaling": {"type": "linear", "factor": 1e-39}}, "angles that float32 can't hold"),
        ({"rope_scaling": {"type": "dynamic", "factor": 1e30}}, "angles that float32 can't hold"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, "head_dim of more"),
        ({"rope_theta": 1e308}, "rope_theta = 1e\\+308.*float32"),
        ({"rope_theta": 3e38, "head_dim": 128, "rope_scaling": LLAMA3 | {"factor": 1e30}}, "angle"),
        ({"rope_theta": 1, "rope_scaling": YARN}, "rope_theta of more than 1, not 1"),
        ({"rope_theta": "big"}, "rope_theta = 'big'"),
        ({"rope_theta": float("nan")}, "rope_theta = nan"),
        ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate = 'no'.*true or false"),
        ({"rope_scaling": YARN | {"attention_factor": -1}}, "attention_factor = -1"),
        (
            {"rope_scaling": YARN | {"factor": 1e30, "mscale": 3e38, "mscale_all_dim": 1e-9}},
            "attention factor of 2.*float32",
        ),
        ({"rope_scaling": YARN | {"mscale": "1", "mscale_all_dim": 1}}, "mscale = '1'"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 1.5}}, "embeddings = 1.5"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": -3}, "embeddings = -3"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_parameters": ["linear"]}, "must be an object"),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor 1"),
    ],
)  # fmt: skip
def test_refusals(change, says):
    with pytest.raises(UserError, match=says):
        ours(change)
