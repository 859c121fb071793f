"""Tokens by their bytes: joined, they are what the tokenizer decodes the ids to."""

import gc
import json
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.structure.request import structure_of
from tpimpi.structure.vocabulary import token_bytes, vocabulary_of
from vocabularies import DEMO, as_json, byte_level, changed, copied, train_marked

KINDS = ["demo", "json", "byte-level", "marked", "metaspace"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that gives a kind's (tokenizer, config)."""
    found = {}

    def make(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            config = _written(kind, folder)
            found[kind] = load_tokenizer(folder, config), config
        return found[kind]

    return make


def _written(kind, folder):
    if kind == "demo":
        return changed(folder)
    if kind == "byte-level":
        return replace(byte_level(folder), eos_token_ids=(1,))  # <|end|>
    if kind == "marked":
        model = train_marked(folder)
        return copied(folder, model, 310, {"add_bos_token": True})
    config = changed(folder)
    as_json(folder)
    if kind == "metaspace":  # a decoder that looks at whether a token is the first
        path = folder / "tokenizer.json"
        decoder = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Other"}')
        path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_what_is_decoded(made, kind):
    tokenizer, config = made(kind)
    found = token_bytes(tokenizer, config.vocab_size)
    texts = [i for i, piece in enumerate(found) if piece is not None]
    first = next(i for i in texts if found[i] == b"x")
    assert len(texts) > 300

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from(texts), max_size=12))
    def check(ids):
        told = b"".join(found[i] for i in [first, *ids])
        try:
            text = told.decode()
        except UnicodeDecodeError:
            return  # bytes of no character: how many marks stand for them differs by tokenizer
        assert tokenizer.decode([first, *ids]) == text

    check()


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_bytes_of_a_text_are_the_text(made, kind, text):
    tokenizer, config = made(kind)
    text = text.replace("▁", "_").replace("<", "(")  # what stands for spaces and special tokens
    found = token_bytes(tokenizer, config.vocab_size)
    ids = tokenizer.encode("x" + text, add_bos=False)
    told = b"".join(found[i] or b"" for i in ids).decode()
    assert told.removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ")


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_special_ids_and_ids_beyond_the_tokenizer_are_never_allowed(made, kind):
    tokenizer, config = made(kind)
    structure = structure_of(tokenizer, config, {"type": "json_schema", "json_schema": {"schema": {
        "type": "string"}}})  # fmt: skip
    found = token_bytes(tokenizer, config.vocab_size)
    quote = found.index(b'"')
    structure.accept(quote)
    allowed = structure.allowed()  # nearly anything: it is inside a string
    assert allowed.dtype == bool and allowed.shape == (config.vocab_size,)
    assert allowed.sum() > 150
    none = [i for i, piece in enumerate(found) if piece is None]
    assert config.vocab_size - tokenizer.vocab_size < len(none)
    assert not allowed[none].any()
    assert not allowed[tokenizer.vocab_size :].any()


def test_an_end_token_with_a_text_is_no_text(tmp_path):
    config = changed(tmp_path, eos_token_id=[2, 300])
    (tmp_path / "generation_config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path, config)
    assert tokenizer.decode([300])
    structure = structure_of(tokenizer, config, {"type": "json_object"})
    ids = tokenizer.encode("{}", add_bos=False)
    for token in ids:
        assert not structure.allowed()[[2, 300]].any()
        structure.accept(token)
    assert structure.complete and np.flatnonzero(structure.allowed()).tolist() == [2, 300]


def test_made_once_and_kept_as_long_as_the_tokenizer(tmp_path):
    config = changed(tmp_path)
    tokenizer = load_tokenizer(tmp_path, config)
    assert vocabulary_of(tokenizer, config) is vocabulary_of(tokenizer, config)
    gone = weakref.ref(vocabulary_of(tokenizer, config))
    del tokenizer
    gc.collect()
    assert gone() is None


def test_a_tokenizer_that_can_not_spell_json_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = changed(tmp_path, {}, 40)
    (tmp_path / "tokenizer.model").unlink()
    words = Tokenizer(models.WordLevel({"hello": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no token for ' ' alone"):
        vocabulary_of(load_tokenizer(tmp_path, config), config)


def test_bytes_that_a_decoder_writes_as_names_can_not_spell_json(made):
    """Without its step ByteFallback, the piece <0x22> is those six letters."""
    with pytest.raises(UserError, match="no token for '\"' alone"):
        vocabulary_of(*made("metaspace"))


def test_a_decoder_that_joins_tokens_otherwise_is_refused(tmp_path):
    """Token by token its text is unknown: `##` and blanks depend on what stands before."""
    config = changed(tmp_path, {})
    as_json(tmp_path)
    path = tmp_path / "tokenizer.json"
    decoder = {"type": "CTC", "pad_token": "<unk>", "word_delimiter_token": "|", "cleanup": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Other"}')
    with pytest.raises(UserError, match="after other tokens"):
        vocabulary_of(load_tokenizer(tmp_path, config), config)


def test_without_the_library_the_way_to_it_is_told(monkeypatch):
    config = ModelConfig.from_directory(DEMO)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'tpimpi\[serve\]'"):
        vocabulary_of(load_tokenizer(DEMO, config), config)
