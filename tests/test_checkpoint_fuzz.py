"""Whatever stands in config.json or in a safetensors header: a model or one sentence, quickly."""

import copy
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tpimpi
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

DEMO = tpimpi.__path__[0] + "/demo"
SECONDS = 5  # generous: the machine may be busy
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(1 << 66), 1 << 66), st.floats(),
    st.sampled_from([10**9, 10**12, 10**400, -(10**400), 10**4299, 1 << 24, (1 << 24) + 1, 1e308]),
)  # fmt: skip
WORDS = st.sampled_from(
    ["", "true", "0", "linear", "llama3", "yarn", "dynamic", "default", "F32", "F16", "I64",
     "qwen2", "qwen3", "mistral", "Qwen2ForCausalLM", "sliding_attention", "full_attention",
     "\ud800", "\n"]
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=5))
ROPE = st.dictionaries(
    st.sampled_from(
        ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor",
         "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "mscale",
         "mscale_all_dim", "attention_factor", "partial_rotary_factor"]
    ),
    SCALARS,
)  # fmt: skip
VALUES = st.one_of(
    SCALARS, ROPE, st.lists(SCALARS, max_size=4), st.lists(WORDS, min_size=4, max_size=4),
    st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(WORDS, v), max_leaves=10),
)  # fmt: skip
KEYS = (
    "architectures", "model_type", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id",
    "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor",
    "original_max_position_embeddings", "tie_word_embeddings", "vocab_size", "sliding_window",
    "use_sliding_window", "max_window_layers", "layer_types", "quantization_config",
)  # fmt: skip
with open(f"{DEMO}/config.json") as file:
    CONFIG = json.load(file)
with open(f"{DEMO}/model.safetensors", "rb") as file:
    DATA = file.read()
START = 8 + int.from_bytes(DATA[:8], "little")
HEADER = json.loads(DATA[8:START])
TENSORS = sorted(HEADER.keys() - {"__metadata__"})


def sentence(act):
    """Return what `act` returns; None where it raises a sentence. Anything else is a fault."""
    start = time.monotonic()
    try:
        return act()
    except UserError as error:
        assert 20 < len(str(error)) < 1000
        return None
    finally:
        assert time.monotonic() - start < SECONDS


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4), st.booleans())
def test_any_config(change, generation):
    content = json.loads(json.dumps(CONFIG | change))  # as from a file: NaN, lone surrogates
    ids = {key: change[key] for key in ("bos_token_id", "eos_token_id") if key in change}
    config = sentence(lambda: ModelConfig.of("m", content, ids if generation else {}))
    if config is not None:  # then it can be used
        assert ModelConfig.from_json(config.to_json()) == config
        assert len(config.windows) == config.num_layers and math.isfinite(config.rms_norm_eps)
        assert all(0 <= token < config.vocab_size for token in config.eos_token_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


ENTRIES = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {}, optional={
            "dtype": VALUES, "shape": st.one_of(VALUES, st.lists(NUMBERS, max_size=3)),
            "data_offsets": st.one_of(VALUES, st.lists(NUMBERS, min_size=2, max_size=2)),
        },
    ),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*TENSORS, "__metadata__", "lm_head.weight"]), ENTRIES),
    st.booleans(),
    st.sampled_from([{}, {"tie_word_embeddings": True}, {"num_hidden_layers": 10_000}]),
)
def test_any_header(folder, changes, merge, config):
    header = copy.deepcopy(HEADER)
    for name, entry in changes.items():
        whole = merge and isinstance(entry, dict) and name in header
        header[name] = header[name] | entry if whole else entry
    raw = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + DATA[START:])
    config = ModelConfig.of("m", CONFIG | config, {})
    checkpoint = sentence(lambda: Checkpoint(folder, config))
    if checkpoint is not None:
        for name in checkpoint.tensors:
            checkpoint.read(name, slice(0, 1), None)
        checkpoint.close()
