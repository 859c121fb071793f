"""Streamed text equals the text decoded at once, and ends at stops, whatever comes in which ids."""

import random
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from references import write_tokenizer
from tpimpi.checkpoint.tokenizer import TextStream, load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from vocabularies import DEMO, as_json, byte_level, changed

KINDS = ["tokenizer.model", "tokenizer.json", "byte level", "words"]
SPECIAL = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": ["<|im_end|>"]}


@pytest.fixture(scope="module")
def demo():
    return load_tokenizer(DEMO, ModelConfig.from_directory(DEMO))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A tokenizer of each kind; of bytes and pieces, of pieces by another library, of bytes."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("kind")
        if kind == "words":
            config = changed(folder)
            write_tokenizer(folder, 300)
        elif kind == "byte level":
            config = byte_level(folder)
        else:
            config = changed(folder, SPECIAL)
            if kind == "tokenizer.json":
                as_json(folder)
        found[kind] = load_tokenizer(folder, config)
    return found


def streamed(tokenizer, prompt, ids):
    stream = TextStream(tokenizer, prompt)
    return "".join([stream.push(i) for i in ids] + [stream.finish()])


# Many byte tokens, special ones, ids beyond the vocabulary; of the byte-level one, all are bytes.
IDS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 1100), st.integers(2**31, 2**33)))


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=IDS, ids=IDS)
@settings(max_examples=150, deadline=None)
def test_any_ids_stream_as_they_decode(kinds, kind, prompt, ids):
    tokenizer = kinds[kind]
    before = tokenizer.decoding()
    known = "".join(map(before.push, prompt))  # what no later id can change
    assert known + streamed(tokenizer, prompt, ids) == tokenizer.decode(prompt + ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(), cut=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_text_streams_as_its_library_decodes(kinds, kind, text, cut):
    """U+FFFD that is text is among it; what the stream shows is text for good."""
    tokenizer, text = kinds[kind], text + "\ufffd" * (cut % 3)
    ids = tokenizer.encode(text, add_bos=False)
    coder = tokenizer._coder
    assume(not any(name in text for name in tokenizer.special_ids))  # no text, but sentencepiece's
    expected = (coder._pieces if kind == "tokenizer.model" else coder._fast).decode(ids)
    if kind != "words":
        # Transformers' Llama class takes the first space for the one that it puts there itself.
        spaced = text if kind == "byte level" else text.replace("\u2581", " ")
        assert spaced in (expected, " " + expected)
    assert tokenizer.decode(ids) == expected
    before = tokenizer.decoding()
    known = "".join(map(before.push, ids[:cut]))
    assert known + streamed(tokenizer, ids[:cut], ids[cut:]) == expected


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_broken_bytes_are_decoded_as_sentencepiece_does(kinds, kind):
    pieces = kinds["tokenizer.model"]._coder._pieces
    first, letter = pieces.piece_to_id("<0x00>"), pieces.piece_to_id("e")
    choice = random.Random(2)
    for _ in range(300):
        data = choice.choices([0xE6, 0x97, 0xA5, 0x41, 0xF0, 0x9F, 0x98, 0x80, 0xC0, 0xED], k=9)
        ids = [pieces.piece_to_id("<0x78>"), *(first + byte for byte in data)]
        ids.insert(choice.randrange(2, 10), letter)  # it ends a character that lacks bytes
        assert kinds[kind].decode(ids) == pieces.decode(ids)


def test_broken_bytes_of_a_byte_level_one(kinds):
    fast = kinds["byte level"]._coder._fast
    choice = random.Random(4)
    for _ in range(300):
        ids = choice.choices(range(2, 400), k=12)
        assert kinds["byte level"].decode(ids) == fast.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_costs_each_token_the_same(kinds, kind):
    choice = random.Random(1)
    stream = TextStream(kinds[kind], [1] * 500, ["never to be seen"])
    begin = time.perf_counter()
    for _ in range(50_000):
        stream.push(choice.choice([1, 2, choice.randrange(1024), 150, 5000]))
    assert time.perf_counter() - begin < 15  # seconds: 50000 decodings of all so far take hours
    assert len(stream._held) < 16


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
def test_stream_is_the_text_whatever_came_before(kinds, kind, text, prompt):
    """Runs of byte tokens are the hard case: tokenizers decodes such a run as a whole."""
    tokenizer = kinds[kind]
    before = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    ids = tokenizer.encode("x" + text, add_bos=False)
    stream = TextStream(tokenizer, before)
    shown = "".join([stream.push(i) for i in ids] + [stream.finish()])
    assert tokenizer.decode(before) + shown == tokenizer.decode([*before, *ids])


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


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_a_special_token_can_be_a_stop(kinds, kind):
    tokenizer = kinds[kind]
    ids = tokenizer.encode("one two<|im_end|> three", add_bos=False)
    stream = TextStream(tokenizer, [1], ["never", "<|im_end|>"])
    parts = [stream.push(i) for i in ids]
    assert stream.stopped and "".join(parts) + stream.finish() == "one two"
    stream = TextStream(tokenizer, [1], ["never"])
    assert "".join([stream.push(i) for i in ids] + [stream.finish()]).endswith("three")
    assert not stream.stopped
    # What looked like the beginning of a stop was text after all.
    stream = TextStream(tokenizer, [1], ["two three", "<|im_end|>"])
    assert "".join(map(stream.push, ids)) == "one two" and stream.stopped


def test_an_empty_stop_is_refused(demo):
    with pytest.raises(UserError, match="--stop is empty"):
        TextStream(demo, [1], ["END", ""])


class Letters:
    """A tokenizer whose ids are letters."""

    special_ids = {}

    def decoding(self):
        from tpimpi.checkpoint.decoding import Decoding

        return Decoding(lambda token, before: chr(token))


@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("xabcdefy", ["cd", "abcdef"], "x"),
        ("xabcdegy", ["cd", "abcdef"], "xab"),
        ("xabcd", ["cd", "abcdef"], "xab"),
        ("xababcx", ["abc", "bab"], "xa"),
        ("aab", ["ab", "aab"], ""),
        ("aaab", ["aab"], "a"),
        ("abc", ["abcd"], "abc"),
    ],
)
def test_the_earliest_cut_wins(text, stops, expected):
    for order in (stops, stops[::-1]):
        stream = TextStream(Letters(), [], order)
        shown = "".join(stream.push(ord(letter)) for letter in text) + stream.finish()
        assert (shown, stream.stopped) == (expected, text != expected)


@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
@settings(deadline=None)
def test_any_stops_cut_where_the_first_begins(text, stops):
    stream = TextStream(Letters(), [], stops)
    shown = "".join(stream.push(ord(letter)) for letter in text) + stream.finish()
    cut = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    assert shown == text[:cut] and stream.stopped == (cut < len(text))
