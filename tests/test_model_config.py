"""What config.json means is what Transformers reads in it; what isn't supported is refused."""

import json
import re
import time
from itertools import product

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
    assert (config.num_kv_heads, config.head_dim, config.rope.theta) == (5, 12, 10000.0)
    assert config.rope.kind == "default" and config.eos_token_ids == ()
    assert config.architecture == "llama" and config.windows == (None, None)
    assert not any((config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm))
    assert ModelConfig.from_json(config.to_json()) == config


def test_old_and_new_rope_spellings_agree(tmp_path):
    old = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")}
    new = BASE | {"rope_parameters": LLAMA3, "dtype": "bfloat16"}
    for key in ("type", "rope_type"):
        scaling = {"rope_theta": 5e5, "rope_scaling": {key: "llama3"} | old}
        assert read(tmp_path, BASE | scaling | {"torch_dtype": "bfloat16"}) == read(tmp_path, new)


def test_generation_config_alone_names_the_end_tokens(tmp_path):
    both = BASE | {"eos_token_id": 2, "bos_token_id": 1}
    config = read(tmp_path, both, {"eos_token_id": [9, 7], "bos_token_id": 3})
    assert (config.eos_token_ids, config.bos_token_id) == ((7, 9), 3)
    config = read(tmp_path, both, {"eos_token_id": None, "bos_token_id": None, "top_p": 0.9})
    assert (config.eos_token_ids, config.bos_token_id) == ((2,), 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_frequencies_are_those_of_transformers(references, name):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(references / name)).inv_freq.numpy()
    ours = ModelConfig.from_directory(references / name).rope.inverse_frequencies()
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "phi3"}, "phi3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"sliding_window": 128, "max_position_embeddings": 4096}, "sliding window of 128"),
        ({"model_type": "qwen2"}, "'LlamaForCausalLM' but model_type 'qwen2'"),
        (
            {"architectures": ["LlamaModel", "MistralModel"]},
            "'MistralModel' but model_type 'llama'",
        ),
        ({"model_type": {}}, "a \\{\\} model; supported are"),
        ({"hidden_act": 5}, "hidden_act 5"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"vocab_size": None}, "vocab_size"),
        ({"head_dim": 7}, "odd"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"architectures": [["LlamaForCausalLM"]]}, "supported are"),
        ({"architectures": None, "model_type": None}, "supported are"),
        ({"quantization_config": "gptq"}, "must be an object"),
        ({"sliding_window": "x", "max_position_embeddings": 4096}, "sliding_window = 'x'"),
        ({"sliding_window": 128}, "sliding window of 128"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rms_norm_eps": 1e308}, "rms_norm_eps = 1e\\+308.*float32"),
        ({"rms_norm_eps": 1e-60}, "rms_norm_eps = 1e-60.*float32"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000.*float32"),
        ({"rms_norm_eps": True}, "rms_norm_eps = True"),
        ({"hidden_size": float("inf")}, "hidden_size = inf"),
        ({"num_attention_heads": 1 << 20, "head_dim": 32}, "1048576 times head_dim 32 is more"),
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


@pytest.mark.parametrize("bad", [True, "2", 2.0, -1, 101, 10**400, [[1]], [2, "3"], [None], {}])
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_what_is_no_id_is_refused_with_its_value(tmp_path, key, bad):
    says = f"config.json has {key} = .*{re.escape(repr(bad)[:9])}.*from 0 to 100"
    with pytest.raises(UserError, match=says):
        ModelConfig.of("m", BASE | {key: bad}, {})
    with pytest.raises(UserError, match=f"generation_{says}"):
        ModelConfig.of("m", BASE | {key: 1}, {key: bad})
    ModelConfig.of("m", BASE | {key: bad}, {key: 100})  # what isn't asked for is no matter


def test_no_ids(tmp_path):
    config = read(tmp_path, BASE | {"eos_token_id": None, "bos_token_id": None})
    assert (config.eos_token_ids, config.bos_token_id) == ((), None)
    assert read(tmp_path, BASE | {"eos_token_id": []}).eos_token_ids == ()


SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "size"),
    [*product(SIZES, [10**9, 10**12, 10**400, 1 << 63]), ("num_hidden_layers", 10_001)],
)
def test_sizes_that_no_model_has_are_refused_at_once(key, size):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"{key} = 1.*at most|{key} = 9223372036854775808, but"):
        ModelConfig.of("m", BASE | {key: size}, {})
    assert time.monotonic() - start < 0.5
