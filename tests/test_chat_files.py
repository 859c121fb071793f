"""Saved conversations: only their owner reads them, they come back as they were; not so garbage."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpimpi.chat import files
from tpimpi.chat.files import FORMAT, Saved
from tpimpi.chat.history import history_file
from tpimpi.errors import MachineError, UserError

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "Grüße\n\u2028"},
    {"role": "assistant", "content": "日本"},
]
SAVED = Saved("demo", "abc", MESSAGES, {"temperature": 0.5}, "talk.json.kv", 2, (5, 6, 7))


def test_it_comes_back_as_it_was(tmp_path):
    path = tmp_path / "talk.json"
    files.write(path, SAVED)
    assert files.read(path) == SAVED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "日本" in path.read_text()
    files.write(path, Saved("demo", "abc", [], {}))  # over one of ours
    assert files.read(path).messages == [] and os.listdir(tmp_path) == ["talk.json"]


def test_another_file_is_not_written_over(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(UserError, match="no conversation"):
        files.write(path, SAVED)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        files.write(tmp_path, SAVED)
    with pytest.raises(UserError, match="no folder"):
        files.write(tmp_path / "none" / "a", SAVED)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    for act in (lambda: files.write(tmp_path / name, SAVED), lambda: files.read(tmp_path / name)):
        with pytest.raises(UserError, match="no name of a file"):
            act()


def test_what_is_no_ordinary_file_stays_as_it_is(tmp_path):
    """Root could put a file in the place of /dev/null."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    for act in (lambda: files.write(pipe, SAVED), lambda: files.read(pipe)):
        with pytest.raises(UserError, match="no ordinary file"):
            act()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link.symlink_to(tmp_path / "talk.json")
    files.write(link, SAVED)
    assert link.is_symlink() and files.read(tmp_path / "talk.json") == SAVED


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "talk.json"
    files.write(path, SAVED)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        files.write(path, Saved("other", "abc", [], {}))
    monkeypatch.undo()
    assert files.read(path) == SAVED and os.listdir(tmp_path) == ["talk.json"]


def content(**changes):
    return {
        "format": FORMAT, "model": "m", "fingerprint": "f", "messages": MESSAGES, "settings": {},
        "kv": None, "kv_tokens": 0,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no conversation"),
        (b"\xff\xfe\x00", "no conversation"),
        (b"[" * 100000, "no conversation"),
        (b"[1]", "holds a list"),
        (b'{"format": "other"}', "its format is 'other'"),
        (content(model=3), "its model is no text"),
        (content(settings=[]), "settings"),
        (content(messages={}), "no messages"),
        (content(messages=["x"]), "message 1"),
        (content(messages=[{"role": "user", "content": None}]), "message 1 has no text"),
        (content(messages=[{"role": "user", "content": "\ud800"}]), "no Unicode"),
        (content(messages=MESSAGES[:2]), "in turn"),
        (content(messages=MESSAGES[1:][::-1]), "in turn"),
        (content(messages=[{"role": "tool", "content": ""}] * 2), "in turn"),
        (content(kv="../elsewhere"), "no folder beside it"),
        (content(kv=7), "no folder beside it"),
        (content(kv_tokens="x"), "kv_tokens is no whole number"),
        (content(kv_ids="1 -2"), "kv_ids are no ids"),
        (content(kv_ids=[1]), "kv_ids are no ids"),
    ],
)
def test_garbage_is_refused_in_a_sentence(tmp_path, data, words):
    path = tmp_path / "talk.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    with pytest.raises(UserError, match=words) as refusal:
        files.read(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        files.read(tmp_path / "none")
    with pytest.raises(UserError, match="is a folder"):
        files.read(tmp_path)


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(list(content()) + ["role", "content"]), inner, max_size=6),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value | {"format": FORMAT} if isinstance(value, dict) else value))
    try:
        found = files.read(path)
    except UserError as refusal:
        assert "no conversation" in str(refusal)
    else:
        assert len([m for m in found.messages if m["role"] != "system"]) % 2 == 0


def test_what_is_typed_is_for_its_owner_and_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_file()
    assert path.parent.name == "tpimpi" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    entries = b"".join(b"\n# now\n+line %d\n" % number for number in range(80000))
    path.write_bytes(entries)
    history_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes()
    assert len(kept) < len(entries) * 2 / 3 and kept.startswith(b"\n# now\n+line ")
    assert kept.endswith(entries[-100:])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="--no-history"):
        history_file()
