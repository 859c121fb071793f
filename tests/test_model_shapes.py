"""Named shapes are their models: parameters, architecture; and no more layers than there may be."""

import time

import pytest

from tpimpi.errors import UserError
from tpimpi.model.shapes import config_of, shape_config


def test_shapes_have_no_more_layers_than_a_model_may():
    start = time.monotonic()
    for layers in (0, 10_001, 10**9, 10**400):
        with pytest.raises(UserError, match="from 1 to 10000 layers, not"):
            shape_config("tiny", layers)
    assert time.monotonic() - start < 0.5
    assert shape_config("tiny", 3).num_layers == 3


@pytest.mark.parametrize(
    ("shape", "billions", "architecture"),
    [
        ("qwen2.5-0.5b", 0.494, "qwen2"), ("qwen2.5-7b", 7.616, "qwen2"),
        ("qwen2.5-32b", 32.764, "qwen2"), ("qwen3-4b", 4.022, "qwen3"),
        ("qwen3-32b", 32.762, "qwen3"), ("llama3.3-70b", 70.554, "llama"),
    ],
)  # fmt: skip
def test_shapes_have_the_parameters_of_their_models(shape, billions, architecture):
    """The billions are those that the models' cards and safetensors indexes name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    content = config_of(shape, None, "bf16")
    theirs = AutoConfig.for_model(content["model_type"]).from_dict(dict(content))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == billions
    config = shape_config(shape)
    assert config.architecture == architecture == content["model_type"]
    assert config.windows == (None,) * config.num_layers
    assert config.qkv_bias == (architecture == "qwen2") and not config.output_bias
    assert content["architectures"] == [type(model).__name__]
