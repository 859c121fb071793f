"""The pieces are the tensors' own bytes, models are told apart, damage is refused."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from references import FAMILIES
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import expected_shapes, tensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12,
    "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "vocab_size": 11,
}  # fmt: skip
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


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
    assert checkpoint.config.tie_word_embeddings and HEAD not in checkpoint.tensors
    assert [t.source for t in tensors(checkpoint.config)][-1] == EMBEDDING


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


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ModelConfig.from_directory(tmp_path)


def numbers(config, seed=0):
    random = np.random.default_rng(seed)
    shapes = expected_shapes(config)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(path, header, data):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def taken_apart(path):
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


@pytest.fixture
def model(tmp_path, config):
    """A whole checkpoint, to be broken; returns its file."""
    save_file(numbers(config), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_pieces(config, model):
    checkpoint, expected = Checkpoint(model.parent, config), numbers(config)
    whole = expected[EMBEDDING]
    for rows in (None, slice(0, 1), slice(3, 8), slice(10, 11), slice(4, 4)):
        for columns in (None, slice(0, 5), slice(5, 12), slice(2, 2)):
            piece = checkpoint.read(EMBEDDING, rows, columns)
            wanted = whole[rows or slice(None), columns or slice(None)]
            assert piece.flags.c_contiguous
            np.testing.assert_array_equal(piece, wanted)
    np.testing.assert_array_equal(checkpoint.read(NORM, slice(2, 9), None), expected[NORM][2:9])
    checkpoint.close()


def test_reading_needs_no_more_memory_than_the_piece(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 40_000}))
    config = ModelConfig.from_directory(tmp_path)
    save_file(numbers(config), tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, config)
    tracemalloc.start()
    checkpoint.read(EMBEDDING, slice(20_000, 21_000), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    checkpoint.close()
    assert peak < 2 * 1000 * 12 * 4 < checkpoint.weight(EMBEDDING).nbytes / 10


def test_tensors_that_no_model_needs_are_ignored(tmp_path, config):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.int64)}
    save_file(numbers(config) | extra, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, config)
    assert set(checkpoint.tensors) == set(expected_shapes(config))
    checkpoint.close()


def fingerprint(directory):
    checkpoint = Checkpoint(directory, ModelConfig.from_directory(directory))
    checkpoint.close()
    assert len(checkpoint.fingerprint) == 16 and int(checkpoint.fingerprint, 16) >= 0
    return checkpoint.fingerprint


def test_fingerprints(tmp_path, config, model):
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": 5}))
    assert fingerprint(tmp_path) == first  # it changes no number
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 5e5}))
    assert fingerprint(tmp_path) != first
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for tensor in (EMBEDDING, NORM, "model.layers.1.mlp.down_proj.weight"):
        changed = numbers(config)
        changed[tensor].flat[-1] += 1
        save_file(changed, model)
        assert fingerprint(tmp_path) != first, tensor


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "I64"}, "I64|no valid"),
        ({"dtype": "F8_E4M3"}, "F8_E4M3|no valid"),
        ({"dtype": ["F32"]}, "supported are F32"),
        ({"shape": [12, 11]}, r"\[12, 11\].*\[11, 12\]"),
        ({"shape": [float("inf"), 12]}, "fetch it again"),
        ({"shape": "11"}, "fetch it again"),
        ({"shape": None}, "fetch it again"),
        ({"data_offsets": None}, "fetch it again"),
        ({"data_offsets": [0]}, "fetch it again"),
        ({"data_offsets": [0, float("inf")]}, "fetch it again"),
        ({"data_offsets": ["0", "528"]}, "fetch it again"),
        ({"data_offsets": [-528, 0]}, "fetch it again"),
        ({"data_offsets": [0, 1 << 62]}, "cut short"),
        ({"data_offsets": [0, 1 << 70]}, "beyond any file"),
        ({"data_offsets": [0, 10**4200]}, "beyond any file"),
        ({"data_offsets": [10**4200, 528]}, "fetch it again"),
        ({"shape": [10**4200, 12]}, r"\[1000000.*\[11, 12\]"),
    ],
)
def test_broken_entries(config, model, entry, says):
    header, data = taken_apart(model)
    header[EMBEDDING].update(entry)
    write(model, header, data)
    with pytest.raises(UserError, match=says):
        Checkpoint(model.parent, config)


def test_overlapping_tensors(config, model):
    header, data = taken_apart(model)
    header[NORM]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]
    write(model, header, data)
    with pytest.raises(UserError, match="fetch it again"):
        Checkpoint(model.parent, config)


def test_a_whole_file_of_another_dtype(tmp_path, config):
    integers = {name: array.astype(np.int64) for name, array in numbers(config).items()}
    save_file(integers, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="stored as I64; supported are F32, F16, BF16"):
        Checkpoint(tmp_path, config)


@pytest.mark.parametrize("missing", [EMBEDDING, HEAD, "model.layers.1.self_attn.k_proj.weight"])
def test_missing_tensor(tmp_path, config, missing):
    arrays = numbers(config)
    del arrays[missing]
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"no tensor {missing}"):
        Checkpoint(tmp_path, config)


def test_a_missing_tensor_is_named_even_where_its_bytes_are_left(config, model):
    header, data = taken_apart(model)
    del header["model.layers.0.self_attn.q_proj.weight"]
    write(model, header, data)
    with pytest.raises(UserError, match="no tensor model.layers.0.self_attn.q_proj.weight"):
        Checkpoint(model.parent, config)


@pytest.mark.parametrize("header", [b"{nope", b"[1]", b"5", b"\xff{}", b"[" * 200_000, b'{"a": 5}'])
def test_broken_headers(config, model, header):
    write(model, header, taken_apart(model)[1])
    with pytest.raises(UserError, match="damaged safetensors header"):
        Checkpoint(model.parent, config)


def test_lengthened_files(config, model):
    data = model.read_bytes()
    for more in (b"x", bytes(4096)):
        model.write_bytes(data + more)
        with pytest.raises(UserError, match="fetch it again"):
            Checkpoint(model.parent, config)
    for length in (len(data), 1 << 40, (1 << 64) - 1):
        model.write_bytes(length.to_bytes(8, "little") + data[8:])
        with pytest.raises(UserError, match=f"header would have {length} bytes"):
            Checkpoint(model.parent, config)
