"""What a guard reads of a rank, when it judges a rank silent, and what it says of the end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tpimpi import status
from tpimpi.guard import launchers, silence
from tpimpi.guard.memory import OutOfMemory
from tpimpi.status import LEAVING, MEETING, RUNNING, STARTING, Status

TICK = silence.TICK


class Clock:
    """Time that passes when it is told to, for `Silence.look`."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(silence.time, "monotonic", lambda: self.now)

    def watch(self, watching, own, seconds, beating=(), asleep=0.0):
        """Let time pass in ticks; return what was told. `beating` ranks beat meanwhile."""
        told = []
        self.now += asleep
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            for rank in beating:
                own.peers[rank].beats += 1
            text = watching.look()
            if text:
                told.append(text)
            if watching.over:
                break
        return told


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def running(rank, ranks, timeout=20.0):
    own = Status(rank, ranks)
    own.timeout, own.stage = timeout, RUNNING
    for number, peer in enumerate(own.peers):
        peer.host, peer.doing = f"dev{number}", "computing"
    return own, silence.Silence(own)


def test_a_slow_rank_is_never_ended(clock):
    own, watching = running(0, 3)
    assert clock.watch(watching, own, 1000, beating=(0, 1, 2)) == []
    assert not watching.over


def test_a_silent_rank_is_told_and_then_the_end(clock):
    own, watching = running(0, 3)
    own.then = "the same command goes on"
    told = clock.watch(watching, own, 100, beating=(0, 2))
    assert watching.over and clock.now == pytest.approx(20.5, abs=1)
    assert told[0] == "waiting 5 s for rank 1 on dev1" and told[1].startswith("waiting 10 s for")
    assert len(told) == 3
    for word in ("rank 1 on dev1", "20 s", "--timeout", "computing", "the same command goes on"):
        assert word in told[2]


def test_a_rank_that_comes_back(clock):
    own, watching = running(0, 2)
    told = clock.watch(watching, own, 12, beating=(0,))
    told += clock.watch(watching, own, 100, beating=(0, 1))
    assert told[-1] == "rank 1 on dev1 is back after 12 s" and not watching.over


def test_a_machine_that_slept_counts_no_silence(clock):
    own, watching = running(0, 2)
    assert clock.watch(watching, own, 10, beating=(0, 1), asleep=36000) == []
    assert not watching.over


def test_a_rank_that_has_ended_is_not_missed(clock):
    own, watching = running(0, 2)
    own.peers[1].left = True
    assert clock.watch(watching, own, 100, beating=(0,)) == [] and not watching.over


def test_rank_0_that_stands_still_itself(clock):
    own, watching = running(0, 3)
    told = clock.watch(watching, own, 100)
    assert watching.over and "rank 0 on dev0" in told[-1] and "more" not in told[0]


def test_another_rank_ends_after_rank_0_would_have_said_why(clock):
    own, watching = running(2, 3)
    assert clock.watch(watching, own, 100, beating=(2,)) == []
    assert watching.over and clock.now >= 20 + silence.LATER


def test_another_rank_that_is_stopped_leaves_the_judgement_to_rank_0(clock):
    own, watching = running(2, 3)
    clock.watch(watching, own, 100)
    assert not watching.over


@pytest.mark.parametrize("stage", [STARTING, MEETING])
def test_a_start_that_not_all_come_to(clock, stage):
    own, watching = running(0, 2, timeout=5.0)
    own.stage = stage
    told = clock.watch(watching, own, 200)
    assert watching.over and clock.now >= status.TIMEOUT  # slow machines start slowly
    assert told[0].startswith("waiting 5 s for all ranks to") and "not all ranks" in told[-1]


@pytest.mark.parametrize("rank", [0, 2])
def test_an_end_that_not_all_come_to(clock, rank):
    own, watching = running(rank, 3, timeout=5.0)
    own.stage = LEAVING
    told = clock.watch(watching, own, 200)
    assert watching.over and clock.now < 15
    assert told[-1].startswith(f"rank {rank} on dev{rank} did not end within")


def test_the_status_survives_its_process():
    own = Status(1, 2)
    pid = os.fork()
    if pid == 0:
        own.begin("computing", "the same command starts again")
        own.figures, own.peers[0].beats = "é" * 300, 7
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert own.own.doing == "computing" and own.peers[0].beats == 7
    assert own.figures.startswith("éé") and 90 < len(own.figures) <= 101
    assert own.ended_line(signal.SIGINT).startswith("interrupted while computing: éé")
    own.figures = ""
    assert own.ended_line(signal.SIGTERM) is None


def test_only_ranks_that_have_met_are_on_other_hosts():
    own = Status(0, 3)
    assert not own.has_other_hosts
    own.peers[1].host = own.own.host
    assert not own.has_other_hosts
    own.peers[2].host = "elsewhere"
    assert own.has_other_hosts


def test_what_is_left_unfinished_is_told_to_those_who_end_it():
    own, then = Status(), "the same command goes on with what is there"
    own.begin("making its shard", then, unfinished=True)
    own.begin("cutting the checkpoint")
    own.figures = "1.00 GiB of 2.00 GiB (dev1 60 %, dev2 40 %)"
    said = f"while cutting the checkpoint: {own.figures}; {then}"
    assert own.ended_line(signal.SIGINT) == f"interrupted {said}"
    assert own.ended_line(signal.SIGTERM) == f"ended {said}"
    own.begin("loading the model", "the same command starts with the shards there")
    assert own.ended_line(signal.SIGINT) == "interrupted while loading the model"


def test_memory_that_ran_out(tmp_path):
    found = OutOfMemory()
    assert not found.happened()
    found._files = [tmp_path / "memory.events"]
    found._files[0].write_text("oom 1\noom_kill 0\n")
    found._before = found._counts()
    found._files[0].write_text("oom 1\noom_kill 1\n")
    assert found.happened()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("patience", ["", ", 0.5, 'all is done'"])
def test_a_launcher_that_waits_is_ended_as_a_user_would(tmp_path, patience):
    (tmp_path / "mpiexec.hydra").symlink_to(sys.executable)
    told = tmp_path / "told"
    head = (
        "import signal, subprocess, sys, time\n"
        f"def hear(*_): open({str(told)!r}, 'a').write('x')\n"
        "signal.signal(signal.SIGINT, hear)\n"
        "rank = subprocess.Popen([sys.argv[2], '-c', sys.argv[1]])\n"
        "rank.wait()\n"
        "while True: time.sleep(0.1)\n"
    )
    see_off = f"launchers.see_off(0, os.getppid(){patience})"
    rank = f"import os\nfrom tpimpi.guard import launchers\n{see_off}\n"
    process = subprocess.Popen(
        [tmp_path / "mpiexec.hydra", "-c", head, rank, sys.executable], stderr=subprocess.PIPE
    )
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert told.read_text() == "xxx"
    assert process.stderr.read() == (b"tpimpi: all is done\n" if patience else b"")
    process.stderr.close()


def test_a_process_that_has_ended_is_not_taken_for_another():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    known = launchers._identity(process.pid)
    assert known[0] == process.pid and launchers._identity(process.pid) == known
    process.kill()
    time.sleep(0.2)
    assert launchers._identity(process.pid) is None  # a zombie
    process.wait()
    assert launchers._identity(process.pid) is None


RANK = """
import os, signal, sys, time
from tpimpi import status
from tpimpi.guard import process
own = status.of_rank(0, 1)
guarded, said = own, []
process._Guard._say = lambda self, text, number=2: print(text, flush=True)
process.launchers.see_off = process.launchers.abort = lambda *_: False
signal.pthread_sigmask(signal.SIG_BLOCK, process._SIGNALS)
pid = os.fork()
if pid:
    os._exit(process._Guard(pid, own, process.OutOfMemory(), os.getppid()).run())
own.figures = "9 tokens"
{setting}
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("int"))
signal.signal(signal.SIGTERM, lambda *_: heard.append("term"))
signal.pthread_sigmask(signal.SIG_UNBLOCK, process._SIGNALS)
print(os.getppid(), flush=True)
while len(heard) < {signals}:
    time.sleep(0.01)
time.sleep(1.2)
print(*heard, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("setting", "signals", "code", "said"),
    [
        ("own.takes_interrupts = True", [signal.SIGINT] * 2, 0, "int int"),  # an answer is stopped
        ("own.grace = 9.0", [signal.SIGTERM], 0, "term"),  # answers end first
        ("own.grace = 9.0", [signal.SIGTERM] * 2, 143, "ended while starting: 9 tokens"),
        ("own.grace = 0.5", [signal.SIGTERM], 143, ""),  # they last too long
        ("", [signal.SIGTERM], 143, "ended while starting: 9 tokens"),
    ],
)
def test_a_rank_ends_in_its_own_time_where_it_has_asked_for_that(setting, signals, code, said):
    program = RANK.format(setting=setting, signals=len(signals))
    found = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    guard = int(found.stdout.readline())
    for number in signals:
        os.kill(guard, number)
        time.sleep(0.4)
    text, _ = found.communicate(timeout=20)
    assert (found.returncode, text.strip()) == (code, said)
