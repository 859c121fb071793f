"""Which matrix is the head and which the embedding, as Transformers decides it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.comm.group import Group
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.tensors import EMBEDDING, HEAD, expected_shapes, tensors
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.source import Source

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12,
    "intermediate_size": 7, "num_hidden_layers": 1, "num_attention_heads": 3,
    "num_key_value_heads": 1, "vocab_size": 11, "tie_word_embeddings": True,
}  # fmt: skip


def write_model(directory, tied, stored, change=None):
    """Write a model with `stored` of its two matrices; `change` numbers of the head at an index."""
    (directory / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    config = ModelConfig.from_directory(directory)
    random = np.random.default_rng(3)
    shapes = expected_shapes(config) | {HEAD: (config.vocab_size, config.hidden_size)}
    arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    arrays[HEAD] = arrays[EMBEDDING].copy()
    if change is not None:
        arrays[HEAD].flat[change] += 1
    for name in {EMBEDDING, HEAD} - set(stored):
        del arrays[name]
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})
    return config


@pytest.mark.parametrize(
    ("tied", "stored", "change", "warns"),
    [
        (True, [EMBEDDING], None, False),
        (True, [HEAD], None, False),
        (True, [EMBEDDING, HEAD], None, False),
        (True, [EMBEDDING, HEAD], 0, True),
        (True, [EMBEDDING, HEAD], 131, True),  # the last
        (False, [EMBEDDING, HEAD], 40, False),
        (False, [EMBEDDING, HEAD], None, False),
    ],
)
def test_head_and_embedding_are_those_of_transformers(tmp_path, tied, stored, change, warns):
    from transformers import AutoModelForCausalLM

    config = write_model(tmp_path, tied, stored, change)
    assert config.tie_word_embeddings is tied
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path, config)
    source = {tensor.name: tensor.source for tensor in tensors(checkpoint.config)}
    for name, module in (("embed", theirs.model.embed_tokens), ("head", theirs.lm_head)):
        matrix = module.weight.detach().numpy()
        np.testing.assert_array_equal(checkpoint.read(source[name], None, None), matrix)
        assert checkpoint.weight(source[name]).shape == matrix.shape
    assert [HEAD in text and "is used" in text for text in checkpoint.warnings] == [True] * warns
    checkpoint.close()


@pytest.mark.parametrize("stored", [[EMBEDDING], [HEAD]])
def test_an_untied_model_needs_both(tmp_path, stored):
    config = write_model(tmp_path, False, stored)
    missing = HEAD if stored == [EMBEDDING] else EMBEDDING
    with pytest.raises(UserError, match=f"no tensor {missing}"):
        Checkpoint(tmp_path, config)


def test_a_stored_head_must_have_the_shape_of_the_embedding(tmp_path):
    config = write_model(tmp_path, True, [EMBEDDING, HEAD])
    arrays = load_file(tmp_path / "model.safetensors")
    save_file(arrays | {HEAD: arrays[HEAD][:9]}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight has shape \[9, 12\].*\[11, 12\]"):
        Checkpoint(tmp_path, config)


def test_a_head_stored_in_other_numbers_is_cut_as_it_is(comm, shared_tmp):
    half = None
    if comm.rank == 0:
        write_model(shared_tmp, True, [EMBEDDING, HEAD], 7)
        arrays = load_file(shared_tmp / "model.safetensors")
        half = arrays[HEAD].astype(np.float16)  # [V, D]
        save_file(arrays | {HEAD: half}, shared_tmp / "model.safetensors")
    half = comm.bcast(half)
    group = Group(comm)
    source = Source(group, shared_tmp, ShardRequest(shared_tmp / "shards"))
    shard, _ = source.shard(group)
    rows = source.partition.ranks[group.rank].rows
    np.testing.assert_array_equal(shard.widened("head"), half[rows.start : rows.stop])
    assert {t.name: t.encoding for t in shard.tensors}["head"] == "f16"
    shard.close()
    group.close()


def test_large_matrices_are_compared_at_their_ends_and_between(tmp_path):
    """Reading both wholly would cost each start of a large model seconds."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 700_000}))
    config = ModelConfig.from_directory(tmp_path)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(config).items()}
    for change, warns in (((), 0), ((0,), 1), ((-1,), 1), (range(0, 8_400_000, 100_000), 1)):
        head = arrays[EMBEDDING].copy()
        head.flat[list(change)] = 1
        save_file(arrays | {HEAD: head}, tmp_path / "model.safetensors")
        checkpoint = Checkpoint(tmp_path, config)
        assert len(checkpoint.warnings) == warns, change
        checkpoint.close()
