"""Ids and texts equal to Transformers', for what tokenizer_config.json may say."""

import json
import random

import pytest

from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.model.config import ModelConfig
from vocabularies import DEMO, copied, train_marked

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


# What tokenizer_config.json may say of a Llama tokenizer.
SETTINGS = {
    "nothing more": {},
    "bos": {"add_bos_token": True},
    "no bos": {"add_bos_token": False, "legacy": False},
    "legacy": {"add_bos_token": True, "legacy": True},
    "eos": {"add_bos_token": True, "add_eos_token": True},
    "no space": {"add_bos_token": True, "add_prefix_space": False},
    "another bos": {
        "add_bos_token": True, "bos_token": {"__type": "AddedToken", "content": "</s>"},
    },
    "fast": {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "legacy": False},
    "added": {
        "added_tokens_decoder": {
            "SIZE": {
                "content": "[NEW]", "special": True, "lstrip": False, "rstrip": False,
                "normalized": False, "single_word": False,
            }
        }
    },
}  # fmt: skip
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    return train_marked(tmp_path_factory.mktemp("marked"))


def compare(folder, config, size):
    """Compare all ids, and the text of ids, with those of Transformers."""
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder, config), AutoTokenizer.from_pretrained(folder)
    choice = random.Random(5)
    pool = ["a", "the ", " ", "\n", "<s>", "</s>", "é", "😀", "[NEW]", "<|im_end|>", "\u2581"]
    noise = ["".join(choice.choices(pool, k=choice.randrange(12))) for _ in range(60)]
    marks = ["<|im_start|>user\nhi<|im_end|>\n", "<|startoftext|>a", "[NEW] it", "\u2581x"]
    for text in TEXTS + marks + noise:
        for bos in (True, False):
            expected = theirs(text, add_special_tokens=bos).input_ids
            assert ours.encode(text, add_bos=bos) == expected, (text, bos)
    for _ in range(60):
        ids = [choice.choice([1, 2, 3, 4, 5, size - 1, size - 40]) for _ in range(6)]
        ids = [i for i in ids if not theirs.convert_ids_to_tokens(i).startswith("<0x")]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_a_llama_tokenizer(tmp_path, settings):
    config = copied(tmp_path, DEMO / "tokenizer.model", 1024, SETTINGS[settings])
    compare(tmp_path, config, 1024)


@pytest.mark.parametrize("settings", SETTINGS)
def test_tokenizer_json_of_llama_2(tmp_path, settings):
    """Its pipeline is older than the settings: Transformers goes by the settings."""
    from transformers import AutoTokenizer

    config = copied(tmp_path, DEMO / "tokenizer.model", 1024, SETTINGS[settings])
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    path = tmp_path / "tokenizer.json"
    older = {"normalizer": NORMALIZER, "pre_tokenizer": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    compare(tmp_path, config, 1024)


@pytest.mark.parametrize("settings", ["bos", "legacy"])
def test_control_and_user_defined_pieces(tmp_path, marked, settings):
    compare(tmp_path, copied(tmp_path, marked, 310, SETTINGS[settings]), 310)


def test_tokenizer_json_ids(references):
    from transformers import AutoTokenizer

    directory = references / "llama3"
    ours = load_tokenizer(directory, ModelConfig.from_directory(directory))
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in ("w5 w6 w200", "", "w3  nothing w7"):
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode(text, add_bos=False) == theirs(text, add_special_tokens=False).input_ids


def test_a_prompt_is_never_cut_off(references, tmp_path):
    directory = references / "llama3"
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    path, cut = tmp_path / "tokenizer.json", {"max_length": 3, "stride": 0}
    cut |= {"direction": "Right", "strategy": "LongestFirst"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": cut}))
    tokenizer = load_tokenizer(tmp_path, ModelConfig.from_directory(tmp_path))
    assert len(tokenizer.encode("w5 w6 w7 w8 w9")) == 6


def test_ids_beyond_the_vocabulary_are_no_text(demo):
    assert demo.decode([5000, 31999]) == "" and demo.vocab_size == 1024
