"""A path that is no model directory, or whose files are none: one sentence with the way out."""

import json
import os
import shutil

import pytest

from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 60,
    "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 5, "vocab_size": 101,
}  # fmt: skip
FILES = ["config.json", "generation_config.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"[]", b"", b"9" * 5000])
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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_does_not_hang(tmp_path, name, make):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no regular file"):
        ModelConfig.from_directory(tmp_path)


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE), encoding="utf-8-sig")
    assert ModelConfig.from_directory(tmp_path).vocab_size == 101


def test_a_file_too_large_to_be_a_config_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    os.truncate(tmp_path / "config.json", 1 << 40)  # a hole, no room on the disk
    with pytest.raises(UserError, match="1099511627776 bytes, too many"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("org/base-7b", r"its base model \(org/base-7b\)"),
        (None, "its base model \\(PEFT"),
        (5, "PEFT"),
    ],
)
def test_an_adapter(tmp_path, base, says):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError, match=f"is an adapter, not a model; merge it into.*{says}"):
        ModelConfig.from_directory(tmp_path)


def test_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says = "does not exist; if it is a model on the Hugging Face hub.*hf download {} --local-dir"
    for name in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B_x"):
        with pytest.raises(UserError, match=says.format(name)):
            ModelConfig.from_directory(name)
    for name in ("/gone/model", "gone", "./gone/model", "a/b/c", "../gone"):
        with pytest.raises(UserError, match="does not exist; --model wants a Hugging Face dir"):
            ModelConfig.from_directory(name)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text(json.dumps(BASE))
    assert ModelConfig.from_directory("org/model").name == "model"


def test_a_gguf_path(tmp_path):
    for there in (False, True):
        if there:
            (tmp_path / "m.Q4_K.gguf").write_bytes(b"GGUF")
        with pytest.raises(UserError, match="is a GGUF file.*safetensors.*hf download"):
            ModelConfig.from_directory(tmp_path / "m.Q4_K.gguf")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("path", "says"), [("a\0b", "no path"), ("n" * 300, "too long")])
def test_what_is_no_path(path, says):
    with pytest.raises(UserError, match=says):
        ModelConfig.from_directory(path)


def test_a_folder_of_gguf_and_no_path_at_all(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds a GGUF file .model.gguf., .*hf download"):
        ModelConfig.from_directory(tmp_path)
    with pytest.raises(UserError, match="'' is no path"):
        ModelConfig.from_directory("")
