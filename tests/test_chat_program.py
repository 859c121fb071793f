"""`tpimpi chat` as a user runs it: through pipes, and at a terminal, alone and under mpirun."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import termios
import time
from pathlib import Path

import pytest

from program import DEMO, TPIMPI, output, run

CHAT = ["chat", "--model", DEMO]
READY = b"\x1b[?2004h"  # prompt_toolkit waits for a line: what is pasted will be marked
SENT = b"\x1b[?2004l"
CTRL_C, CTRL_D, LEFT, UP, ALT_ENTER = b"\x03", b"\x04", b"\x1b[D", b"\x1b[A", b"\x1b\r"


def notes(process):
    """Return what was said on standard error about the conversation."""
    lines = process.stderr.splitlines()
    begin = next(i for i, line in enumerate(lines) if "tokens of context" in line)
    return "\n".join(lines[begin:])


@pytest.mark.parametrize("ranks", [0, 3])
def test_a_conversation_in_a_pipe(mpirun, ranks, tmp_path):
    path = tmp_path / "talk.json"
    typed = (
        "/set temperature 0\n/set length 24\nWhat news?\n\n"
        '"""\nAnd who\nare you?\n"""\n'
        f"/frob\n/save {path} --kv\n/retry\n/stats\n/exit\nnever\n"
    )
    process = run(mpirun, ranks, *CHAT, stdin=typed)
    said, told = output(process), notes(process)
    assert "a plain form (User: ..., Assistant:); 512 tokens of context" in told
    assert "there is no command /frob; /help lists them" in told
    assert (
        "asked again: And who are you?" in told and "3 answers of" in told and "peak memory" in told
    )
    cached = [int(n) for n in re.findall(r"(\d+) of them cached", told)]
    assert cached[0] == 0 and cached[1] >= 16 and cached[2] >= cached[1]
    saved = json.loads(path.read_text())
    questions = [m["content"] for m in saved["messages"] if m["role"] == "user"]
    assert questions == ["What news?", "And who\nare you?"] and saved["kv_tokens"] > 32
    answers = [m["content"].lstrip() for m in saved["messages"] if m["role"] == "assistant"]
    # Greedy: tried again an answer is the same.
    assert said == "\n".join([*answers, answers[1], ""])
    process = run(mpirun, ranks, *CHAT, "--load", path, "-n", 8, stdin="And then?\n/exit\n")
    assert output(process) and f"{saved['kv_tokens']} of " in notes(process)
    found = re.search(r"8 tokens after a prompt of (\d+), (\d+) of them cached", process.stderr)
    assert int(found[1]) > int(found[2]) >= saved["kv_tokens"] - 16


def test_an_open_block_ends_with_the_input(mpirun):
    process = run(mpirun, 0, *CHAT, "-n", 8, stdin='/HELP\n"""\n"""\n"""\nWhat\nnews?\n')
    told = notes(process)
    assert output(process) and told.count("8 tokens after") == 1
    assert 'between lines of """' in told and "Alt-Enter" not in told


def test_the_same_seed_gives_the_same_conversation(mpirun):
    flags, typed = ["--seed", 3, "--length", 16], "Hello\n/retry\n"
    texts = {output(run(mpirun, ranks, *CHAT, *flags, stdin=typed)) for ranks in (0, 2)}
    assert len(texts) == 1
    first, again = texts.pop()[:-1].split("\n", 1)
    assert first != again


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--context", 4096], "--context is 4096, but the model's is 512"),
     (["--load", "/none"], "/none can't be read"),
     (["--prompt", "hi"], "chat takes no --prompt"),
     (["--system", ""], None), (["--top-p", 2], "must be from 0 to 1")],
)  # fmt: skip
def test_mistakes(mpirun, flags, words):
    process = run(mpirun, 0, *CHAT, *flags)
    if words:
        assert process.returncode == 2 and words in process.stderr and not process.stdout
    else:
        assert output(process) == ""


class Terminal:
    """A program at a terminal of its own; what it shows is read as it is waited for."""

    def __init__(self, *command, **environment):
        self.pid, self.number = pty.fork()
        if self.pid == 0:
            os.environ.update(environment)
            with contextlib.suppress(OSError):
                os.execvp(command[0], [str(word) for word in command])
            os._exit(127)
        self.before, self._shown = termios.tcgetattr(self.number), b""

    def until(self, *texts, seconds=60.0):
        """Wait until each text was shown, in this order; return what was shown up to there."""
        seen, end = b"", time.monotonic() + seconds
        for text in texts:
            while text not in self._shown:
                left = end - time.monotonic()
                assert left > 0, f"no {text!r} after {seen + self._shown!r}"
                if select.select([self.number], [], [], left)[0]:
                    try:
                        self._shown += os.read(self.number, 1 << 16)
                    except OSError:
                        raise AssertionError(f"ended: no {text!r} in {self._shown!r}") from None
            at = self._shown.index(text) + len(text)
            seen, self._shown = seen + self._shown[:at], self._shown[at:]
        return seen.decode(errors="replace")

    def type(self, *keys):
        os.write(self.number, b"".join(keys))

    def paste(self, text):
        """Type a text as a terminal passes on what is pasted, as fast as it is taken."""
        left = b"\x1b[200~" + text + b"\x1b[201~"
        while left:
            readable, writable, _ = select.select([self.number], [self.number], [], 30)
            assert readable or writable, "nothing is taken any more"
            if readable:
                self._shown += os.read(self.number, 1 << 16)
            if writable:
                left = left[os.write(self.number, left[:4000]) :]

    def end(self, seconds=20.0):
        """Wait for the end of the program; return its exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.number], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self._shown += os.read(self.number, 1 << 16)
            ended, state = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(state)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"it did not end: {self._shown!r}")

    @property
    def is_as_before(self):
        return termios.tcgetattr(self.number) == self.before


def at_terminal(mpirun, ranks, folder, *flags, term="xterm"):
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    return Terminal(
        *launcher, *TPIMPI, *CHAT, *flags, XDG_STATE_HOME=str(folder), TERM=term, NO_COLOR=""
    )


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_conversation_at_a_terminal(mpirun, ranks, tmp_path):
    pytest.importorskip("prompt_toolkit")
    user = at_terminal(mpirun, ranks, tmp_path, "--length", 12)
    user.until(READY)
    assert not user.is_as_before
    user.type(b"helo", LEFT, b"l\r")
    user.until(b"12 tokens after", READY)
    user.type(UP, UP, LEFT, b"!\r")  # the question comes again, to be edited
    user.until(b"hell!o", b"12 tokens after", READY)
    user.type(b"one", ALT_ENTER, b"two\r")
    user.until(b"one", b"two", b"12 tokens after", READY)
    # Ctrl-C stops the answer, and what is typed meanwhile is the next question.
    user.type(b"/set length 400\r")
    user.until(b"length 400", READY)
    user.type(b"go on\r")
    user.until(b"go on", SENT, b" ")
    user.type(b"/undo", CTRL_C, b"\r")
    user.until(b"| stopped", b"taken back: go on", READY)
    # A long text comes faster than it can be shown; hydra ends who doesn't read it at once.
    user.paste(b"word " * 16000)
    user.type(b"\r")
    user.until(b"at most 512 can be taken; shorten it", READY)
    user.type(b"half a line", CTRL_C, CTRL_C)
    user.until(b"Ctrl-C again, Ctrl-D or /exit leaves", READY)
    user.type(CTRL_D)
    assert user.end() == 0 and user.is_as_before
    history = tmp_path / "tpimpi" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    typed = [line for line in history.read_text().splitlines() if line.startswith("+")]
    assert typed[:4] == ["+hello", "+hell!o", "+one", "+two"]


@pytest.mark.parametrize("ranks", [0, 2])
def test_what_is_typed_while_it_starts_is_sent_by_enter(mpirun, ranks, tmp_path):
    pytest.importorskip("prompt_toolkit")
    user = at_terminal(mpirun, ranks, tmp_path, "--length", 12)
    user.type(b"hello\rand then?\r")  # the terminal still makes lines of it
    user.until(b"12 tokens after", b"12 tokens after", READY)
    user.type(b"/help\r")
    user.until(b"Alt-Enter or Ctrl-J", READY)
    user.type(CTRL_D)
    assert user.end() == 0


def test_a_terminal_without_the_library(mpirun, tmp_path):
    user = at_terminal(mpirun, 2, tmp_path, "--length", 400, term="dumb")
    user.until(b"> ")
    user.type(b"hello\n")
    user.until(b"hello\r\n", b" ")
    user.type(CTRL_C)
    user.until(b"| stopped", b"> ")
    user.type(b"half a line", CTRL_C)
    user.until(b"^C", b"> ")
    user.type(CTRL_C, CTRL_C)
    assert user.end() == 0 and user.is_as_before
    assert not (tmp_path / "tpimpi").exists()


def test_nothing_typed_is_kept_where_that_is_asked(mpirun, tmp_path):
    pytest.importorskip("prompt_toolkit")
    user = at_terminal(mpirun, 0, tmp_path, "--no-history")
    user.until(READY)
    user.type(b"/system be brief\r")
    user.until(b"is told: be brief", READY)
    user.type(UP)
    user.until(b"be brief")  # it is known as long as the program runs
    user.type(CTRL_C, CTRL_D)
    assert user.end() == 0 and not os.listdir(tmp_path)


def test_a_killed_program_leaves_the_terminal_as_it_was(tmp_path):
    # A shell has the terminal, as it does for people: its end would be the terminal's.
    shell = '"$@"; echo "code $?"; read -r line'
    user = Terminal("sh", "-c", shell, "sh", *TPIMPI, *CHAT, XDG_STATE_HOME=str(tmp_path))
    user.until(b"/help", b">")
    assert not user.is_as_before
    program = Path(f"/proc/{user.pid}/task/{user.pid}/children").read_text()
    os.kill(int(program), signal.SIGKILL)
    user.until(b"code 137")
    deadline = time.monotonic() + 10
    while not user.is_as_before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    user.type(b"\n")
    assert user.end() == 0


def test_sigterm_ends_it_and_the_terminal_is_as_it_was(mpirun, tmp_path):
    user = at_terminal(mpirun, 0, tmp_path)
    user.until(b"/help", b">")
    os.kill(user.pid, signal.SIGTERM)
    assert user.end() == 143 and user.is_as_before


def test_a_signal_stops_the_answer_in_a_pipe(mpirun):
    command = [*TPIMPI, *map(str, CHAT), "--length", "400"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(b"/exit\n", timeout=60)
    assert process.returncode == 0 and b"| stopped" in told
