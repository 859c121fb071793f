"""Tokens that stand in the files beside the vocabulary: Transformers' ids, or a refusal."""

import json
import random

import pytest

from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from vocabularies import DEMO, DEMO_SIZE, as_json, changed

NEW = ["<|im_start|>", "<|im_end|>", "[A]", "word"]


def entry(content, special=True, **flags):
    found = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, "special": special} | found | flags


def numbered(*entries):
    return {str(DEMO_SIZE + i): token for i, token in enumerate(entries)}


# What the files list, in which file: the settings first, then the others by name.
LISTS = {
    "decoder": ({"added_tokens_decoder": numbered(*map(entry, NEW))}, {}),
    "extra": ({"extra_special_tokens": NEW[:2]}, {}),
    "extra by name": ({"extra_special_tokens": {"image_token": NEW[0]}, "boi_token": NEW[1]}, {}),
    "additional": ({"additional_special_tokens": NEW}, {}),
    "added": ({}, {"added_tokens.json": {t: DEMO_SIZE + i for i, t in enumerate(NEW)}}),
    "map": ({}, {"special_tokens_map.json": {
        "sep_token": entry(NEW[0], rstrip=True), "pad_token": "<pad>", "bos_token": "</s>"}}),
    "map, added": ({"extra_special_tokens": ["[A]"]}, {
        "added_tokens.json": {t: DEMO_SIZE + i for i, t in enumerate(NEW)},
        "special_tokens_map.json": {"additional_special_tokens": [NEW[0]], "pad_token": "<pad>"}}),
    "flags": ({"added_tokens_decoder": numbered(
        entry(NEW[0], lstrip=True), entry(NEW[1], rstrip=True),
        entry("[A]", lstrip=True, rstrip=True, normalized=True),
        entry("word", special=False, single_word=True))}, {}),
    "named anew": ({"bos_token": "<B>", "pad_token": {"__type": "AddedToken"} | entry("[A]")}, {}),
}  # fmt: skip
WAYS = {
    "llama": {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    "legacy": {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    "backend": {"tokenizer_class": "PreTrainedTokenizerFast"},
}


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", LISTS)
def test_ids_of_listed_tokens(tmp_path, kind, way, names):
    from transformers import AutoTokenizer

    settings, files = LISTS[names]
    config = changed(tmp_path, WAYS[way])
    if kind == "tokenizer.json":
        as_json(tmp_path)
    settings = WAYS[way] | {"add_bos_token": True} | settings
    for name, content in ({"tokenizer_config.json": settings} | files).items():
        (tmp_path / name).write_text(json.dumps(content))
    ours, theirs = load_tokenizer(tmp_path, config), AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) > DEMO_SIZE
    assert ours.special_ids.keys() >= set(theirs.all_special_tokens)
    choice = random.Random(7)
    pool = [*NEW, "<pad>", "<s>", "</s>", "a", "the ", " ", "\n", "é", "_", "\u2009", "7", "\u0301"]
    for _ in range(80):
        # (In Transformers 5.24, two spaces of a tokenizer.model in sentencepiece's way are off.)
        text = "".join(choice.choices(pool, k=choice.randrange(10))).replace("  ", " ")
        if way == "backend" and names == "map":
            text = text.replace(NEW[0] + " ", NEW[0])
        for bos in (True, False):
            expected = theirs(text, add_special_tokens=bos).input_ids
            assert ours.encode(text, add_bos=bos) == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text


@pytest.mark.parametrize(
    "text", [" lead", "a</s> b", "a  b", "   ", "", "a b </s>", "</s>  x<s>\n"]
)
def test_mistral_is_as_sentencepiece(tmp_path, text):
    import sentencepiece

    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}
    config = changed(tmp_path, settings, model_type="mistral", sliding_window=None,
                     architectures=["MistralForCausalLM"])  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    expected = []
    for part in text.replace("<s>", "|<s>|").replace("</s>", "|</s>|").split("|"):
        expected += [pieces.piece_to_id(part)] if part in ("<s>", "</s>") else pieces.encode(part)
    ours = load_tokenizer(tmp_path, config)
    assert ours.encode(text, add_bos=False) == expected
    assert ours.encode(text) == [1, *expected]
    if "<" not in text:
        assert ours.decode(expected) == text


@pytest.mark.parametrize(
    "name, content, value",
    [
        ("added_tokens.json", {"[A]": -5}, "-5"),
        ("added_tokens.json", {"[A]": True}, "True"),
        ("added_tokens.json", {"[A]": 1.0}, "1.0"),
        ("added_tokens.json", {"[A]": "7"}, "'7'"),
        ("added_tokens.json", {"[A]": 99999}, "99999"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": entry("[A]")}}, "'-1'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"true": entry("[A]")}}, "'true'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"99999": entry("[A]")}}, "99999"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1024": 3}}, "is 3,"),
        ("tokenizer_config.json", {"added_tokens_decoder": [3]}, r"\[3\]"),
        ("tokenizer_config.json", {"extra_special_tokens": "[A]"}, r"'\[A\]'"),
        ("tokenizer_config.json", {"bos_token": True}, "True"),
        ("tokenizer_config.json", {"add_bos_token": "false"}, "'false'"),
        ("tokenizer_config.json", {"add_eos_token": "true"}, "'true'"),
        ("tokenizer_config.json", {"legacy": 1}, "1"),
        ("tokenizer_config.json", {"add_prefix_space": "False"}, "'False'"),
        ("tokenizer_config.json",
         {"added_tokens_decoder": numbered(entry("[A]", lstrip="false"))}, "'false'"),
    ],
)  # fmt: skip
def test_what_is_no_id_or_no_truth_is_refused(tmp_path, name, content, value):
    config = changed(tmp_path)
    (tmp_path / name).write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | content)
                                 if "config" in name else json.dumps(content))  # fmt: skip
    with pytest.raises(UserError, match=value):
        load_tokenizer(tmp_path, config)


def test_a_word_for_a_truth_beside_a_tokenizer_json(tmp_path):
    config = changed(tmp_path)
    as_json(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "false"}')
    with pytest.raises(UserError, match="add_bos_token = 'false'"):
        load_tokenizer(tmp_path, config)


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_ids_beyond_the_models_vocabulary(tmp_path, kind):
    """Only where they are used: many directories list a padding token that the model lacks."""
    settings = {"tokenizer_class": "LlamaTokenizer", "pad_token": "[PAD]", "add_bos_token": True}
    config = changed(tmp_path, settings, DEMO_SIZE)
    if kind == "tokenizer.json":
        as_json(tmp_path)
    tokenizer = load_tokenizer(tmp_path, config)
    assert tokenizer.special_ids["[PAD]"] == DEMO_SIZE and tokenizer.encode("a")
    with pytest.raises(UserError, match="gives id 1024, but .* has 1024"):
        tokenizer.encode("a [PAD]")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "[BOS]"}))
    if kind == "tokenizer.model":
        with pytest.raises(UserError, match="gives id 1024, but"):
            load_tokenizer(tmp_path, config)
