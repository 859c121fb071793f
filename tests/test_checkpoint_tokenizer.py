"""Ids equal to Transformers', and text that comes out whole, whatever is cut where."""

import json
import random
from pathlib import Path

import pytest

import tpimpi
from tpimpi.checkpoint.tokenizer import TextStream, load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig

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
    """A sentencepiece model with control and user-defined pieces, as Yi's has."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("marked")
    (folder / "text").write_text("the quick brown fox jumps over the lazy dog, said the hen\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=310,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, control_symbols=["<|startoftext|>"],
        user_defined_symbols=["<|im_start|>", "<|im_end|>"], num_threads=1,
    )  # fmt: skip
    return folder / "tokenizer.model"


def copied(folder, model, size, settings):
    """Write a directory with a tokenizer.model and settings; return its ModelConfig."""
    base = json.loads((DEMO / "config.json").read_text()) | {"vocab_size": size + 1}
    text = json.dumps({"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"} | settings)
    (folder / "config.json").write_text(json.dumps(base))
    (folder / "tokenizer_config.json").write_text(text.replace("SIZE", str(size)))
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    return ModelConfig.from_directory(folder)


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


@pytest.mark.parametrize("text", ["É a 😀 日本語 day", "plain words, here", "  spaced  out "])
def test_stream_gives_the_text_and_no_half_characters(demo, text):
    prompt = demo.encode("Say:")
    stream, parts = TextStream(demo, prompt), []
    for token in demo.encode("x" + text, add_bos=False):
        parts.append(stream.push(token))
        assert "\N{REPLACEMENT CHARACTER}" not in parts[-1]
    parts.append(stream.finish())
    assert "".join(parts).strip() == ("x" + text).strip()


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize(
    "text", ["日本語日本語日本語 ok", "😀😀😀é日😀", "  two  three", "a\n\n b"]
)
@pytest.mark.parametrize("prompt", [[], [1], [1, 2, 2], "日本語", "日本語日本語 and", "Say: "])
def test_stream_is_the_text_whatever_came_before(tmp_path, kind, text, prompt):
    """Runs of byte tokens are the hard case: tokenizers decodes such a run as a whole."""
    from transformers import AutoTokenizer

    config = copied(tmp_path, DEMO / "tokenizer.model", 1024, SETTINGS["no bos"])
    if kind == "tokenizer.json":
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        assert (tmp_path / kind).exists()
    tokenizer = load_tokenizer(tmp_path, config)
    before = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    ids = tokenizer.encode("x" + text, add_bos=False)
    stream = TextStream(tokenizer, before)
    shown = "".join([stream.push(i) for i in ids] + [stream.finish()])
    assert tokenizer.decode(before) + shown == tokenizer.decode([*before, *ids])


def test_stream_looks_at_few_ids_however_many_came(demo):
    class Counting:
        most = 0

        def decode(self, ids):
            self.most = max(self.most, len(ids))
            return demo.decode(ids)

    choice, counting = random.Random(1), Counting()
    stream = TextStream(counting, [1] * 500)
    for _ in range(2000):
        stream.push(choice.choice([1, 2, choice.randrange(1024), 5000]))
    assert counting.most <= 40


def test_hidden_ids_cost_no_space(demo):
    ids = demo.encode("one two", add_bos=False)
    stream = TextStream(demo, demo.encode("say"))
    shown = "".join(stream.push(i) for i in [ids[0], *[2] * 40, *ids[1:]])
    assert (shown + stream.finish()).strip() == demo.decode(ids).strip()


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
    assert demo.decode([5000, 31999]) == "" and demo.vocab_size == 1024


def test_missing_and_broken(tmp_path, demo):
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
