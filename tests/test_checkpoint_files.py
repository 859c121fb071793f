"""Which files hold a model's weights; one that is a pipe, a pointer or elsewhere is refused."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from tpimpi.checkpoint.weights import Checkpoint, expected_shapes
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12,
    "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "vocab_size": 11,
}  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ModelConfig.from_directory(tmp_path)


def numbers(config, seed=0):
    random = np.random.default_rng(seed)
    shapes = expected_shapes(config)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save_shards(directory, arrays, count):
    """Write `count` files as Transformers names them, and no index; return their paths."""
    names = list(arrays)
    paths = [directory / f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for part, path in enumerate(paths):
        save_file({name: arrays[name] for name in names[part::count]}, path)
    return paths


def equals(directory, config, arrays):
    checkpoint = Checkpoint(directory, config)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(name, None, None), array)
    checkpoint.close()


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff", "no UTF-8 text"),
        ('{"metadata": {}}', "not a valid index"),
        ('{"weight_map": [1]}', "not a valid index"),
        ('{"weight_map": {"a": 5}}', "5 is no file's name"),
        ('{"weight_map": {"a": "b.safetensors", "c": ["b"]}}', "is no file's name"),
        ('{"weight_map": {"a": ""}}', "'' is no file's name"),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            "'../model.safetensors' is no file's name",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' is no file's name"),
        ('{"weight_map": {"a": "sub/model.safetensors"}}', "no file's name"),
        ('{"weight_map": {"a": "..\\\\model.safetensors"}}', "no file's name"),
        ('{"weight_map": {"a": "nul\\u0000"}}', "no file's name"),
        ('{"weight_map": {"a": "' + "n" * 300 + '"}}', "File name too long"),
        ('{"weight_map": {"a": ".."}}', "which is not in"),
        ('{"weight_map": {"a": "folder"}}', "folder is no regular file"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "names gone.safetensors, which is not in"),
        ('{"weight_map": {"a": "."}}', "which is not in"),
        ('{"weight_map": {}}', "no tensor"),
    ],
)
def test_broken_indexes(tmp_path, config, index, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    with pytest.raises(UserError, match=says):
        Checkpoint(tmp_path, config)


def test_an_index_without_one_of_its_files(references, tmp_path):
    sharded = references / "sharded"
    config = ModelConfig.from_directory(sharded)
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 1
    for path in [*files[:-1], sharded / "model.safetensors.index.json"]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=f"names {files[-1].name}, which is not in"):
        Checkpoint(tmp_path, config)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model-q4.gguf"])
def test_weights_of_another_format(tmp_path, config, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{name}, but safetensors are needed.*save_pretrained"):
        Checkpoint(tmp_path, config)


def test_no_weights(tmp_path, config):
    with pytest.raises(UserError, match="no weights"):
        Checkpoint(tmp_path, config)


def test_an_index_of_symbolic_links_is_read(tmp_path, config):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    arrays = numbers(config)
    weight_map = {}
    for part, path in enumerate(save_shards(blobs, arrays, 3)):
        (tmp_path / f"part{part}.safetensors").symlink_to(path)
        weight_map |= dict.fromkeys(list(arrays)[part::3], f"part{part}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    equals(tmp_path, config, arrays)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_to_nothing(tmp_path, config, name):
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{name} is a link to a file that is not there"):
        Checkpoint(tmp_path, config)


def test_shards_without_their_index_are_read(tmp_path, config):
    arrays = numbers(config)
    paths = save_shards(tmp_path, arrays, 3)
    save_file({"x": np.ones(1)}, tmp_path / "model-old.safetensors")  # no shard's name
    equals(tmp_path, config, arrays)
    paths[1].unlink()
    with pytest.raises(UserError, match="no model.safetensors.index.json.*3 files.*number 2 is"):
        Checkpoint(tmp_path, config)
    save_shards(tmp_path, arrays, 2)
    with pytest.raises(UserError, match="in 2 and 3 files side by side"):
        Checkpoint(tmp_path, config)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_model_saved_without_its_head(tmp_path, config, prefix):
    """As LlamaModel.save_pretrained does: no prefix, no head; it loads where the head is tied."""
    tied = ModelConfig.of("m", CONFIG | {"tie_word_embeddings": True}, {})
    arrays = numbers(tied)
    bare = {name.replace("model.", prefix, 1): array for name, array in arrays.items()}
    save_file(bare, tmp_path / "model.safetensors")
    equals(tmp_path, tied, arrays)
    with pytest.raises(UserError, match="no tensor lm_head.weight, .*saved without its head"):
        Checkpoint(tmp_path, config)
    head = numbers(config)["lm_head.weight"]
    save_file(bare | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    equals(tmp_path, config, arrays | {"lm_head.weight": head})


NAMES = ("model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_weights_does_not_hang(tmp_path, config, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no regular file"):
        Checkpoint(tmp_path, config)


def test_a_device_in_place_of_weights_does_not_hang(tmp_path, config):
    (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no regular file"):
        Checkpoint(tmp_path, config)


@pytest.mark.parametrize("name", NAMES)
def test_a_pointer_of_git_lfs(tmp_path, config, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        Checkpoint(tmp_path, config)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_a_config(tmp_path, config, file):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match=r"adapter's weights only; merge it into.*\(org/base\)"):
        Checkpoint(tmp_path, config)
