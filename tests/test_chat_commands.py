"""Each command of a conversation: what it does, what it tells, what it refuses."""

import json
import stat

import pytest

from talks import Talk
from tpimpi.chat import commands


@pytest.fixture
def talk(tmp_path):
    return Talk(tmp_path)


def test_an_unknown_command_names_the_nearest(talk):
    assert "there is no command /ste; did you mean /set?" in talk.type("/ste x")
    assert "/help lists them" in talk.type("/qqqq")
    assert "/clear takes nothing after it" in talk.type("/clear all")
    talk.type("//etc/passwd is what?")
    assert talk.turns == [("/etc/passwd is what?", "yes")]


def test_help_tells_every_command(talk):
    notes = talk.type("/help")
    for command in commands.COMMANDS:
        assert f"{command.name} {command.takes}".strip() in notes and command.summary in notes
    assert notes.endswith("Enter sends.") and max(map(len, notes.splitlines())) <= 80


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye", "/EXIT"])
def test_exit_ends_it(talk, word):
    talk.type(word, "hi")
    assert not talk.prompts


def test_clear_undo_and_retry(talk):
    talk.leader.answers = [["one"], ["two"], ["three"], ["four"]]
    assert "there is no question to ask again" in talk.type("/retry")
    assert "there is no turn to take back" in talk.type("/undo")
    talk.type("a", "b", "/retry")
    assert talk.turns == [("a", "one"), ("b", "three")]
    seeds = [settings.sampling.seed for _, settings in talk.leader.asked]
    assert seeds == [7, 8, 9]
    assert "taken back: b; 1 turn left" in talk.type("/undo")
    # What was taken back is asked again.
    assert "asked again: b" in talk.type("/retry")
    assert talk.turns == [("a", "one"), ("b", "four")]
    assert "2 turns forgotten" in talk.type("/clear") and not talk.turns
    assert "there is no question to ask again" in talk.type("/retry") and not talk.turns


def test_system(talk):
    assert "told nothing" in talk.type("/system")
    assert "is told: be brief" in talk.type("/system be brief", "hi")
    assert talk.prompts == ["s:be brief|u:hi|a:"]
    assert "is told: be brief" in talk.type("/clear", "/system")
    assert "told nothing" in talk.type("/system nothing")


def test_set(talk):
    assert "temperature 0.7" in talk.type("/set temperature 0.7", "hi")
    assert talk.leader.asked[0][1].sampling.temperature == 0.7
    assert "top_k 3; also set: temperature 0.7" in talk.type("/set top-k=3", "hi")
    assert talk.leader.asked[1][1].sampling.top_k == 3
    notes = talk.type("/set")
    assert "top_k 3" in notes and "top_p 0.9 (default)" in notes
    assert "length 9; also set: temperature 0.7, top_k 3" in talk.type("/set length 9")
    assert "top_k 0 (default); also set: temperature 0.7, length 9" in talk.type(
        "/set top_k default"
    )
    assert "length is 0, but must be" in talk.type("/set length 0")
    assert "top-p is 2.0, but" in talk.type("/set top-p 2")
    assert "needs a value" in talk.type("/set temperature")
    assert "must be a number" in talk.type("/set temperature hot")
    assert "there is no setting 'heat'" in talk.type("/set heat 3")


def test_save_and_load(talk, tmp_path):
    path = tmp_path / "with a space.json"
    talk.leader.answers = [["hello"]]
    notes = talk.type("/system s", "/set temperature 0.5", "hi", f"/save {path}", "/save")
    assert notes.count(f"1 turn saved in {path}") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    saved = json.loads(path.read_text())
    assert saved["model"] == "demo" and saved["fingerprint"] == "abc"
    assert [m["content"] for m in saved["messages"]] == ["s", "hi", "hello"]
    assert saved["settings"] == {"temperature": 0.5}
    other = Talk(tmp_path, top_k=3)
    notes = other.type("/set temperature 0.9", f"/load {path}", "and?")
    assert f"1 turn loaded from {path}" in notes and "another model" not in notes
    assert other.prompts == ["s:s|u:hi|a:hello|u:and?|a:"]
    assert other.leader.asked[0][1].sampling.temperature == 0.5
    other.type("/undo", "/undo", "/retry")
    assert other.turns[-1] == ("hi", "yes")
    assert "/save needs a file" in Talk(tmp_path).type("/save")
    assert "/load needs a file" in talk.type("/load")
    assert "/save knows no --vk; /save takes a file and --kv" in talk.type(f"/save {path} --vk")
    assert "/load knows no --kv; /load takes a file alone" in talk.type(f"/load {path} --kv")


@pytest.mark.parametrize("words", ["--kv {}", "{} --kv"])
def test_keys_and_values_are_kept_and_found_again(talk, tmp_path, words):
    path = tmp_path / "talk.json"
    assert "nothing was said yet" in talk.type(f"/save {words.format(path)}")
    notes = talk.type("hi", f"/save {words.format(path)}")
    assert "the keys and values of 10 tokens in" in notes
    folder = str(tmp_path / "talk.json.kv")
    assert talk.leader.kept == {folder: [*map(ord, "u:hi|a:yes")]}
    assert "keys and values of 10 of 11 tokens are there again" in talk.type(f"/load {path}")
    talk.leader.kept.clear()
    notes = talk.type(f"/load {path}")
    assert "1 turn loaded" in notes and f"{folder} does not fit; all of it is computed" in notes


def test_keys_and_values_that_belong_to_nothing_any_more_are_removed(talk, tmp_path):
    path, folder = tmp_path / "talk.json", tmp_path / "talk.json.kv"
    talk.type("hi", f"/save {path} --kv")
    folder.mkdir()
    (folder / "kv-0-of-2.h5").touch()
    copied = tmp_path / "copied.json"
    copied.write_text(path.read_text())
    assert "removed" not in talk.type(f"/save {copied}") and folder.exists()
    assert "removed" not in talk.type(f"/save {path} --kv") and folder.exists()
    assert f"are removed: {folder}" in talk.type(f"/save {path}") and not folder.exists()
    assert "removed" not in talk.type(f"/save {path}")


def test_what_the_model_has_chosen_is_not_cut_anew(talk, tmp_path):
    # A text is cut to letters; the model chose a token of two.
    pair = 1 << 20
    talk.conversation._written = lambda i: b"he" if i == pair else chr(i).encode()
    talk.type("hi")
    talk.conversation.undo()
    talk.conversation.add("hi", "hello")
    talk.conversation.remember([*map(ord, "u:hi|a:"), pair, *map(ord, "llo<end>")])
    ids = [*map(ord, "u:hi|a:"), pair, *map(ord, "llo|")]
    assert talk.conversation.ids() == ids
    assert talk.conversation.prompt("x").ids == [*ids, *map(ord, "u:x|a:")]
    path = tmp_path / "talk.json"
    talk.type(f"/save {path} --kv")
    other = Talk(tmp_path)
    other.leader, other.session.leader = talk.leader, talk.leader
    other.conversation._written = talk.conversation._written
    assert "keys and values of 11 of 12 tokens are there" in other.type(f"/load {path}")
    assert other.conversation.ids() == ids
    path.write_text(path.read_text().replace("hello", "hollo"))  # by hand
    assert "does not fit" in other.type(f"/load {path}")
    assert other.conversation.ids() == [*map(ord, "u:hi|a:hollo|")]


def test_what_was_not_computed_here_is_saved_without_keys_and_values(talk, tmp_path):
    path = tmp_path / "talk.json"
    talk.type("hi", f"/save {path}")
    other = Talk(tmp_path)
    notes = other.type(f"/load {path}", "/save --kv")
    assert "1 turn saved" in notes and "nothing of it has been computed here yet" in notes
    assert json.loads(path.read_text())["kv"] is None


def test_a_conversation_with_another_model_is_computed_again(talk, tmp_path):
    path = tmp_path / "talk.json"
    talk.type("hi", f"/save {path} --kv")
    path.write_text(path.read_text().replace('"abc"', '"xyz"').replace('"demo"', '"other"'))
    notes = talk.type(f"/load {path}")
    assert "with another model, other; their keys and values are computed again" in notes


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"heat": 1}, "no setting 'heat'"), ({"temperature": "x"}, "temperature"),
     ({"stop": 5}, "stop is 5"), ({"stop": [5]}, "stop holds 5"), ({"seed": None}, "seed"),
     ({"logit_bias": 5}, "logit_bias"), ({"logit_bias": [[1]]}, "pairs"),
     ({"max_new_tokens": 0}, "max_new_tokens")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_with_the_file(talk, tmp_path, settings, words):
    path = tmp_path / "talk.json"
    talk.type("hi", f"/save {path}", "/set top_k 3")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"settings": settings}))
    talk.type("/clear", "again")
    assert words in talk.type(f"/load {path}")
    assert talk.turns == [("again", "yes")] and talk.session.choices.said() == {"top_k": 3}


def test_bias_and_stops_come_back_from_a_file(tmp_path):
    said = {"logit_bias": ((3, -1.0),), "stop": ("END",), "stop_ids": (2,), "ignore_eos": True}
    talk = Talk(tmp_path, **said)
    talk.type("hi", f"/save {tmp_path}/t.json")
    other = Talk(tmp_path)
    other.type(f"/load {tmp_path}/t.json")
    assert other.session.choices.said() == said


def test_garbage_is_not_loaded(talk, tmp_path):
    path = tmp_path / "x"
    path.write_text("{}")
    assert "is no conversation of tpimpi" in talk.type("hi", f"/load {path}")
    assert len(talk.turns) == 1


def test_stats(talk):
    notes = talk.type("hi", "/stats")
    for words in ("demo, abc; its own form", "context 11 of 100 tokens", "all of it in memory",
                  "1 answer of 3 tokens, 2.00 tokens/s", "3 of them cached", "peak memory",
                  "seed 7"):  # fmt: skip
        assert words in notes
    assert "context 0 of 100" in talk.type("/undo", "/stats")
