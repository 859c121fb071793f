"""The user's own files: texts that are read, reports that are written."""

from __future__ import annotations

import codecs
import os
import select
import sys
from importlib.util import find_spec
from pathlib import Path

from tpimpi.console import say
from tpimpi.errors import UserError

FIRST_BYTE_SECONDS, SILENCE_SECONDS = 10.0, 1.0


def read_text(path: str, flag: str, trim: bool = False) -> str:
    """Return the UTF-8 text of the file that `flag` names; - is standard input.

    Line ends stay as they are, a byte order mark is no text, and with `trim` neither is the
    newline that editors put at the end of a file.
    """
    try:
        data = _read_stdin(flag) if path == "-" else Path(path).read_bytes()
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except OSError as error:
        raise UserError(f"{flag} {path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{flag} {path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    if trim and text.endswith("\n"):
        text = text[: -2 if text.endswith("\r\n") else -1]
    return text


def check_text(text: str, flag: str) -> None:
    """Refuse the value of `flag` where the bytes on the command line were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python keeps such a byte as a lone surrogate, U+DC00 higher.
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise UserError(
            f"{flag} is no UTF-8 text ({what} after {error.start} characters); set the terminal to "
            "UTF-8, or give the text in a file"
        ) from error


def _read_stdin(flag: str) -> bytes:
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return sys.stdin.buffer.read()
    # Open MPI's launcher never passes the end of stdin on: silence has to stand for it.
    data, patience = b"", FIRST_BYTE_SECONDS
    while select.select([sys.stdin], [], [], patience)[0]:
        part = os.read(sys.stdin.fileno(), 1 << 16)
        if not part:
            return data
        data, patience = data + part, SILENCE_SECONDS
    silent = "Open MPI's mpirun does not pass the end of standard input on, and nothing"
    if not data:
        raise UserError(f"{flag} -: {silent} came for {patience:.0f} s; name a file instead")
    say(f"{flag} -: {silent} came for {patience:.0f} s after {len(data)} bytes, so these are all")
    return data


def check_plot(path: str) -> None:
    """Refuse --plot where its file could not be written, or there is nothing to draw with."""
    check_folder(path, "--plot")
    if find_spec("matplotlib") is None:
        raise UserError(f"--plot needs matplotlib: {sys.executable} -m pip install matplotlib")


def check_folder(path: str, flag: str) -> None:
    """Refuse a file to be written, named by `flag`, that could not be."""
    # Found out now rather than after an hour of work.
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: that folder does not exist; make it first")
    if Path(path).is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{flag} {path}: that folder may not be written to; choose another")
