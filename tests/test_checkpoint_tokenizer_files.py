"""Files that are missing, broken or another program's; texts that are none, or far too long."""

import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from references import write_tokenizer
from tpimpi.checkpoint.chat import chat_template_of
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from vocabularies import DEMO, as_json, byte_level, changed

BOTH = pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])


def refused(folder, name, content, config=None):
    """Write a file, and return the sentence that refuses it."""
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder, config or ModelConfig.from_directory(DEMO))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_missing_and_broken(tmp_path):
    config = ModelConfig.from_directory(DEMO)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(tmp_path, config)
    for content in (b"", (DEMO / "tokenizer.model").read_bytes()[:5000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match="can't be read"):
            load_tokenizer(tmp_path, config)
    for content in (b"{}", b"", b"[]", b"\xff", b"{"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match="can't be read"):
            load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    for content in ("{", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match="can't be read"):
            load_tokenizer(tmp_path, config)


def test_a_byte_of_a_sentencepiece_model_flips(tmp_path):
    """What the library doesn't find is found before the first text, or does no harm."""
    config, model = changed(tmp_path), (DEMO / "tokenizer.model").read_bytes()
    found = 0
    for at in range(0, len(model), 97):
        content = bytearray(model)
        content[at] ^= 0xC0
        (tmp_path / "tokenizer.model").write_bytes(content)
        try:
            tokenizer = load_tokenizer(tmp_path, config)
        except UserError:
            found += 1
            continue
        tokenizer.decode(range(tokenizer.vocab_size))
        tokenizer.encode("the quick <s> é 😀")
    assert found > 50


def test_a_tiktoken_vocabulary(tmp_path):
    said = refused(tmp_path, "tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n")
    assert "tiktoken" in said and "fetch tokenizer.json" in said


@BOTH
def test_a_pointer_of_git_lfs(tmp_path, kind):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
    assert "git lfs pull" in refused(tmp_path, kind, pointer)


@pytest.mark.parametrize("part", ["model", "pre_tokenizer", "normalizer", "decoder"])
def test_a_part_that_the_library_does_not_know(tmp_path, part):
    import tokenizers

    config = byte_level(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {part: {"type": "FromMars"}}
    said = refused(tmp_path, "tokenizer.json", json.dumps(content).encode(), config)
    assert f"tokenizers {tokenizers.__version__}" in said and "upgrade" in said


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json",
                                  "added_tokens.json", "tokenizer.json"])  # fmt: skip
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff{}", b"", b"[" * 100_000])
def test_broken_json(tmp_path, name, content):
    config = changed(tmp_path)
    if name == "tokenizer.json":
        as_json(tmp_path)
    assert f"{name} can't be read" in refused(tmp_path, name, content, config)


@BOTH
@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer_config.json", {"extra_special_tokens": ["\ud800x"]}),
        ("tokenizer_config.json", {"bos_token": {"content": "<s>\udc00"}}),
        ("added_tokens.json", {"\ud83d": 1024}),
        ("special_tokens_map.json", {"pad_token": "\udfff"}),
    ],
)
def test_half_a_character(tmp_path, kind, name, content):
    config = changed(tmp_path)
    if kind == "tokenizer.json":
        as_json(tmp_path)
    for other in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / other).unlink(missing_ok=True)
    said = refused(tmp_path, name, json.dumps(content).encode(), config)
    assert "half a character" in said and name in said
    whole = json.dumps({"pad_token": "\N{GRINNING FACE}"}).encode()  # of two escaped halves
    (tmp_path / name).write_bytes(whole if name != "added_tokens.json" else b"{}")
    load_tokenizer(tmp_path, config)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json",
     "special_tokens_map.json", "generation_config.json", "chat_template.jinja"],
)  # fmt: skip
def test_a_link_to_nothing_is_not_as_if_there_were_no_file(tmp_path, name):
    config = changed(tmp_path)
    if name == "generation_config.json":
        (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{name} is a link to a file that is not there"):
        load_tokenizer(tmp_path, config)
        chat_template_of(tmp_path)
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match="no regular file"):
        load_tokenizer(tmp_path, ModelConfig.from_directory(DEMO))


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_a_terabyte_is_not_read(tmp_path, name):
    config = changed(tmp_path)
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)  # sparse
    with pytest.raises(UserError, match=f"{name} has 1099511627776 bytes"):
        load_tokenizer(tmp_path, config)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One by sentencepiece, one of the same pieces by tokenizers, a byte-level one."""
    folders = [tmp_path_factory.mktemp("kind") for _ in range(3)]
    configs = [changed(folders[0]), changed(folders[1]), byte_level(folders[2])]
    as_json(folders[1])
    return [load_tokenizer(*both) for both in zip(folders, configs, strict=True)]


@pytest.mark.parametrize("letter", ["a", "\N{GRINNING FACE}", " ", "\n", "<", "\u0301", "1"])
def test_a_megabyte_of_one_character(tokenizers, letter):
    text = letter * (1_000_000 // len(letter.encode()))
    for tokenizer in tokenizers:
        begin = time.perf_counter()
        with pytest.raises(UserError, match="at most 64 can be taken; shorten it"):
            tokenizer.encode(text, most=64)
        assert time.perf_counter() - begin < 5  # seconds; less than 1 where nothing else runs
        begin = time.perf_counter()
        assert len(tokenizer.encode(text)) > 64
        assert time.perf_counter() - begin < 20  # seconds; less than 2 where nothing else runs


@given(text=st.text(st.sampled_from("ab \n<>/s\u00e9\u0301\N{GRINNING FACE}"), max_size=300))
@settings(max_examples=150, deadline=None)
def test_there_are_never_fewer_tokens_than_foretold(tokenizers, text):
    for tokenizer in tokenizers:
        for long in (text, text * 50):
            fewest = tokenizer._coder.fewest(long)
            assert fewest <= len(tokenizer.encode(long, add_bos=False))
            assert fewest > 0 or len(long) < 100


def test_one_unknown_token_may_stand_for_many_characters(tmp_path):
    """A text of many characters is no long one then, and is not refused."""
    import sentencepiece

    config = changed(tmp_path)
    write_tokenizer(tmp_path, 300)
    words = load_tokenizer(tmp_path, config)
    assert len(words.encode("x" * 1_000_000, most=9)) == 2
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "text").write_text("one two three four five\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=30,
        model_type="bpe", minloglevel=2, num_threads=1,
    )  # fmt: skip
    plain = load_tokenizer(tmp_path, config)
    assert len(plain.encode("x" * 1_000_000, most=9)) <= 3


@given(text=st.text(st.characters(categories=None)))
@settings(max_examples=300, deadline=None)
def test_any_text_is_encoded_or_refused(tokenizers, text):
    """All of Unicode, lone surrogates too; what is encoded comes back."""
    surrogates = any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
    for tokenizer in tokenizers:
        if surrogates:
            with pytest.raises(UserError, match="can't be encoded as UTF-8 at character"):
                tokenizer.encode(text)
        elif not any(name in text for name in tokenizer.special_ids):  # those are no text
            back = tokenizer.decode(tokenizer.encode(text))
            # Where a text begins with a space or the sign for one, the Llama class adds none.
            assert back in (text.replace("\u2581", " "), text.replace("\u2581", " ")[1:], text)


def test_the_size_in_memory_is_known_after_one_text(tmp_path):
    """What is measured then holds for all later texts of a prompt's length."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tokenizer = load_tokenizer(tmp_path, byte_level(tmp_path))
    tokenizer.encode("the quick brown fox " * 100)
    before = resident()
    for index in range(200):
        ids = tokenizer.encode(f"the {index} quick brown fox " * 100)
        tokenizer.decode(ids)
    assert resident() - before < 4 << 20


def test_chat_templates(tmp_path):
    assert chat_template_of(tmp_path) is None and chat_template_of(DEMO) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "of the settings"}')
    assert chat_template_of(tmp_path) == "of the settings"
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template_of(tmp_path) == "D"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("of tools")
    assert chat_template_of(tmp_path) == "of tools"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert chat_template_of(tmp_path) == "{{ messages }}"
    (tmp_path / "tokenizer_config.json").write_text("{")
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates" / "tools.jinja").unlink()
    with pytest.raises(UserError, match="not valid JSON"):
        chat_template_of(tmp_path)
