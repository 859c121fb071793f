"""Ids equal to Transformers', and text that comes out whole, whatever is cut where."""

import random
from pathlib import Path

import pytest

import tpimpi
from tpimpi.config import ModelConfig
from tpimpi.errors import UserError
from tpimpi.tokenizer import TextStream, load_tokenizer

DEMO = Path(tpimpi.__file__).parent / "demo"
TEXTS = [
    "ROMEO:", "", " lead", "  two  spaces\n\nnew line </s> end<s>x", "\n\n", "x\ty", "a</s> b",
    "</s>after", "é ünï 😀 日本", "trailing ", "tab\t\tand\r\n", "It's 1623, isn't it?", "<unk>",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo():
    return load_tokenizer(DEMO, ModelConfig.from_directory(DEMO))


@pytest.fixture(scope="module")
def theirs():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO)


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_ids(demo, theirs, text):
    assert demo.encode(text) == theirs(text).input_ids
    assert demo.encode(text, add_bos=False) == theirs(text, add_special_tokens=False).input_ids


def test_sentencepiece_ids_of_noise(demo, theirs):
    choice = random.Random(3)
    for _ in range(200):
        text = "".join(choice.choices("abe  \n'.,TH😀é", k=choice.randrange(30)))
        assert demo.encode(text) == theirs(text).input_ids, text


def test_tokenizer_json_ids(references):
    from transformers import AutoTokenizer

    directory = references / "llama3"
    ours = load_tokenizer(directory, ModelConfig.from_directory(directory))
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in ("w5 w6 w200", "", "w3  nothing w7"):
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode(text, add_bos=False) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", ["É a 😀 日本語 day", "plain words, here", "  spaced  out "])
def test_stream_gives_the_text_and_no_half_characters(demo, text):
    prompt = demo.encode("Say:")
    stream, parts = TextStream(demo, prompt), []
    for token in demo.encode("x" + text, add_bos=False):
        parts.append(stream.push(token))
        assert "\N{REPLACEMENT CHARACTER}" not in parts[-1]
    parts.append(stream.finish())
    assert "".join(parts).strip() == ("x" + text).strip()


def test_stream_stops_before_a_stop_string_and_shows_none_of_it(demo):
    stream, shown = TextStream(demo, [1], ["END now", "zzz"]), ""
    for token in demo.encode("one two E EN END now three", add_bos=False):
        shown += stream.push(token)
        assert "END" not in shown
    assert stream.stopped and shown.strip() == "one two E EN"
    assert stream.finish() == ""


def test_what_looked_like_a_stop_is_shown_in_the_end(demo):
    stream = TextStream(demo, [1], ["END now"])
    shown = "".join(stream.push(token) for token in demo.encode("the END", add_bos=False))
    assert (shown + stream.finish()).strip() == "the END"


def test_ids_beyond_the_vocabulary_are_no_text(demo):
    assert demo.decode([5000, 31999]) == ""


def test_missing_and_broken(tmp_path, demo):
    config = ModelConfig.from_directory(DEMO)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="can't be read"):
        load_tokenizer(tmp_path, config)
