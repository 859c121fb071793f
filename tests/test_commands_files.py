"""The user's texts: the same bytes from a file and from stdin, and no text that is none."""

import io
import os
import sys

import pytest

from tpimpi.commands import files
from tpimpi.commands.files import check_text, read_text
from tpimpi.errors import UserError


class Stdin:
    """Standard input as a file of bytes."""

    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def both(tmp_path, monkeypatch, data, **flags):
    """Return the text of bytes, which must be the same from a file and from standard input."""
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    (tmp_path / "text").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    texts = [read_text(path, "--file", **flags) for path in (str(tmp_path / "text"), "-")]
    assert texts[0] == texts[1]
    return texts[0]


@pytest.mark.parametrize(
    "data, text, trimmed",
    [
        (b"a\r\nb\rc\n", "a\r\nb\rc\n", "a\r\nb\rc"),
        (b"a\r\n", "a\r\n", "a"),
        (b"a\n\n", "a\n\n", "a\n"),
        (b"a\r", "a\r", "a\r"),
        (b"\n", "\n", ""),
        (b"\xef\xbb\xbfa", "a", "a"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa\xef\xbb\xbf", "\ufeffa\ufeff", "\ufeffa\ufeff"),
        (b"", "", ""),
        ("é\x00\x85\u2028".encode(), "é\x00\x85\u2028", "é\x00\x85\u2028"),
    ],
)
def test_bytes_are_the_text(tmp_path, monkeypatch, data, text, trimmed):
    assert both(tmp_path, monkeypatch, data) == text
    assert both(tmp_path, monkeypatch, data, trim=True) == trimmed


def test_what_is_no_text(tmp_path):
    (tmp_path / "text").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(UserError, match="--prompt-file .* no UTF-8 text .* at byte 2"):
        read_text(str(tmp_path / "text"), "--prompt-file")
    with pytest.raises(UserError, match="can't be read"):
        read_text(str(tmp_path), "--file")


def test_open_mpi_passes_no_end_of_stdin_on(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(files, "FIRST_BYTE_SECONDS", 0.05)
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.05)
    ours, writer = os.pipe()
    with os.fdopen(ours) as stdin, os.fdopen(writer, "wb", buffering=0) as theirs:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="--prompt-file -: .*; name a file"):
            read_text("-", "--prompt-file")
        theirs.write("Grüße\n".encode())
        assert read_text("-", "--prompt-file") == "Grüße\n"
        assert "after 8 bytes, so these are all" in capsys.readouterr().err
        theirs.write(b"more")
        theirs.close()  # as under other launchers of Open MPI's ranks, such as srun
        assert read_text("-", "--prompt-file") == "more"
        assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "text, what",
    [(b"caf\xe9 au lait", "byte 0xe9 after 3 characters"), (b"\xff", "byte 0xff after 0")],
)
def test_an_argument_that_is_no_utf8(text, what):
    with pytest.raises(UserError, match=f"--prefix is no UTF-8 text .{what}"):
        check_text(text.decode("utf-8", "surrogateescape"), "--prefix")
    with pytest.raises(UserError, match="U.D800"):
        check_text("a\ud800", "--prompt")
    check_text("é😀\x00", "--prompt")
