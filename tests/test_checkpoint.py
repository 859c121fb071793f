"""The checkpoint's pieces are the tensors' own bytes, its fingerprint tells models apart."""

import shutil

import numpy as np
import pytest
from safetensors import safe_open

from references import FAMILIES
from tpimpi.checkpoint import Checkpoint, expected_shapes
from tpimpi.config import ModelConfig
from tpimpi.encoding import ENCODINGS
from tpimpi.errors import UserError


def opened(directory):
    return Checkpoint(directory, ModelConfig.from_directory(directory))


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_are_those_of_the_library(references, name):
    checkpoint = opened(references / name)
    for tensor in expected_shapes(ModelConfig.from_directory(references / name)):
        entry = checkpoint.weight(tensor)
        with safe_open(entry.path, framework="pt") as file:
            wide = file.get_tensor(tensor).float().numpy()
        widen = ENCODINGS[entry.encoding].widen
        whole = widen(checkpoint.read(tensor, None, None)).reshape(wide.shape)
        np.testing.assert_array_equal(whole, wide)
        if wide.ndim == 2:
            part = widen(checkpoint.read(tensor, slice(3, 9), slice(5, 11)))
            np.testing.assert_array_equal(part, wide[3:9, 5:11])
    checkpoint.close()


def test_a_tied_head_is_the_embedding(references):
    checkpoint = opened(references / "llama32")
    assert checkpoint.weight("lm_head.weight") == checkpoint.weight("model.embed_tokens.weight")


def test_fingerprint(references, tmp_path):
    original = references / "yi"
    copy = shutil.copytree(original, tmp_path / "another-name")
    assert opened(original).fingerprint == opened(copy).fingerprint
    tensor = opened(copy).weight("model.layers.0.mlp.up_proj.weight")
    with tensor.path.open("r+b") as file:
        file.seek(tensor.offset)
        byte = file.read(1)[0]
        file.seek(tensor.offset)
        file.write(bytes([byte ^ 1]))
    assert opened(original).fingerprint != opened(copy).fingerprint


def test_every_length_of_a_truncated_file_is_refused(references, tmp_path):
    copy = shutil.copytree(references / "llama2", tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 2000, len(data) // 2, len(data) - 1):
        (copy / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(UserError, match="fetch it again"):
            opened(copy)


def test_a_flipped_header_never_crashes(references, tmp_path):
    copy = shutil.copytree(references / "llama2", tmp_path / "copy")
    data = (copy / "model.safetensors").read_bytes()
    random = np.random.default_rng(4)
    for at in random.integers(0, 3000, 200):
        broken = bytearray(data)
        broken[at] ^= int(random.integers(1, 256))
        (copy / "model.safetensors").write_bytes(broken)
        try:
            opened(copy)  # a flip in a metadata text or a name no one asks for may pass
        except UserError as error:
            assert len(str(error)) > 20
