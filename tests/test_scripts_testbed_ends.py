"""What a bed leaves behind: nothing of its own, and all that is somebody else's."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bed import RUN, TESTBED, bed, testbed, unavailable


@pytest.mark.parametrize(
    "words, says",
    [
        (["--devices=0"], "--devices 0 is not between 1 and 32"),
        (["--delay=soon"], "'soon' is no time"),
        (["--rate=300"], "'300' is no rate of a link"),
        (["--memory=lots"], "'lots' is no size"),
        (["--devices=x"], "--devices 'x' is no whole number"),
        (["--devices", "-1"], "--devices -1 is not between"),
        (["--delay", "-1ms"], "'-1ms' is no time"),
        (["--delay=\u0663ms"], "is no time"),
        (["--delay=61s"], "take 60s at most"),
        (["--rate", "-3mbit"], "'-3mbit' is no rate"),
        (["--rate=0.5kbit"], "take 1kbit to 100gbit"),
        (["--memory", "-1G"], "'-1G' is no size"),
        (["--memory=1"], "take 16MiB to"),
        (["--memory=" + 400 * "9"], "take 16MiB to"),
        (["--disk-rate=1B/s"], "take 100kB/s to"),
        (["--cpu=0.01"], "take 0.1 to 1024"),
        (["--cpu=nan"], "'nan' is no number of cores"),
        (["--cpu=inf"], "'inf' is no number of cores"),
        (["--cpu=1" + 300 * "0"], "take 0.1 to 1024"),
        (["--topology=ring"], "invalid choice: 'ring'"),
        (["--subnet=127.0.0.0/24"], "has no addresses for devices"),
        (["--subnet=0.0.0.0/24"], "has no addresses for devices"),
        (["--subnet=224.0.0.0/24"], "has no addresses for devices"),
        (["--private=/"], "--private / would hide"),
        (["--private=/proc"], "would hide /proc"),
        (["--private=/sys/fs"], "would hide /sys"),
        (["--private=/usr"], "--private /usr would hide"),
        (["--private=/run"], "--private /run would hide"),
        (["--private=" + sys.prefix], "would hide"),
        (["--private=" + str(TESTBED.parent)], "would hide"),
        (["--subnet=10.0.0.0/8"], "is not a /24"),
        (["--private=/no/such/folder"], "--private /no/such/folder"),
        (["--folder=/proc"], "/proc"),
    ],
)
def test_up_refuses_and_leaves_nothing(words, says):
    done = testbed("--name", "test-refused", "up", *words)
    assert done.returncode in (1, 2) and not done.stdout
    assert done.stderr.startswith("testbed: ") and says in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (RUN / "test-refused").exists()


def test_needs_root():
    other = [] if os.geteuid() else ["unshare", "--user"]
    if other and not shutil.which("unshare"):
        pytest.skip("this is root, and there is no unshare to be another user")
    for words in (
        ["lacks"], ["up"], ["down"], ["status"], ["test"], ["run", "--", "true"],
        ["exec", "dev1", "--", "true"], ["processes", "dev1"], ["link", "dev1"],
        ["slow", "dev1", "50%"],
    ):  # fmt: skip
        done = subprocess.run(
            [*other, TESTBED, *words], check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "testbed: the test bed makes namespaces and control groups: be root\n"
        )


def test_without_a_bed():
    for words in (
        ["link", "dev1"],
        ["processes", "dev1"],
        ["down"],
        ["status"],
        ["run", "--", "true"],
        ["test"],
    ):
        done = testbed("--name", "test-none", *words)
        assert done.returncode == 2
        assert "no bed 'test-none' is up" in done.stderr


def left_of(name):
    """Return what there still is of a bed."""
    groups = Path("/sys/fs/cgroup").glob(f"**/tpimpi-testbed-{name}")
    return [p for p in (RUN / name, Path("/var/lib/tpimpi-testbed") / name, *groups) if p.exists()]


@pytest.mark.parametrize("broken", ["", "switch", "device"])
def test_down_leaves_nothing_whatever_has_died(broken):
    with bed(devices=2, topology="klonet", delay="1ms") as made:
        name = made.name
        running = made.start(["sleep", "600"])
        victims = {"switch": "switch", "device": "dev2"}
        holders = [path.read_text().split()[0] for path in (RUN / name / "processes").iterdir()]
        if broken:
            chosen = RUN / name / "processes" / victims[broken]
            if chosen.exists():  # the kernel's netem is no process
                os.kill(int(chosen.read_text().split()[0]), signal.SIGKILL)
            assert made.ask("status").returncode in (0, 1)
    running.communicate(timeout=30)
    assert left_of(name) == []
    assert not [pid for pid in holders if Path("/proc", pid, "exe").exists()]


def test_what_needs_the_links_says_that_the_switch_is_gone():
    with bed(devices=2) as made:
        switch = RUN / made.name / "processes" / "switch"
        if not switch.exists():
            pytest.skip("the kernel's netem is no process")
        os.kill(int(switch.read_text().split()[0]), signal.SIGKILL)
        told = {
            made.ask(*words).stderr
            for words in (["status"], ["link", "1"], ["test"], ["run", "--", "true"])
        }
        assert len(told) == 1, told
        assert "the switch (see" in told.pop()


def test_files_of_others_are_kept(tmp_path):
    kept = tmp_path / "test-files" / "mine"
    kept.parent.mkdir()
    kept.write_text("precious")
    words = ["--name", "test-files", "up", f"--folder={tmp_path}"]
    refused = testbed(*words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no test bed has made it" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert kept.read_text() == "precious" and left_of("test-files") == []


@contextlib.contextmanager
def begun(folder):
    """Start `up` with files in a folder; give the bed's name, and its Popen once it calibrates."""
    if testbed("lacks").returncode:
        unavailable("there can't be a bed")
    name = f"test-{os.getpid()}-begun"
    words = ["--name", name, "up", f"--folder={folder}", "--delay=20ms"]
    up = subprocess.Popen([TESTBED, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while len(computing(name, up.pid)) < 2:
            assert up.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        yield name, up
    finally:
        up.kill()
        up.communicate()
        testbed("--name", name, "down")
    assert left_of(name) == [] and list(folder.iterdir()) == []


def computing(name, pid):
    """Return the processes that `up` lets compute while it calibrates: copies of itself."""
    children = lines(Path(f"/proc/{pid}/task/{pid}/children")).split()
    held = [lines(path).split()[:1] for path in (RUN / name / "processes").glob("*")]
    return [
        child.decode() for child in children
        if [child] not in held and b"testbed" in lines(Path("/proc", child.decode(), "cmdline"))
    ]  # fmt: skip


def lines(path):
    """Return what a file of /proc says; nothing once the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_up_that_is_ended_leaves_no_process_and_down_removes_the_rest(tmp_path, number):
    with begun(tmp_path) as (name, up):
        children = computing(name, up.pid)
        up.send_signal(number)
        up.wait(timeout=30)
        deadline = time.monotonic() + 5
        while any(b"testbed" in lines(Path("/proc", pid, "cmdline")) for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if number == signal.SIGKILL:
            done = testbed("--name", name, "down")
            assert (done.returncode, done.stderr) == (0, "")
        assert left_of(name) == [] and list(tmp_path.iterdir()) == []


def test_down_lets_up_finish_or_says_that_it_is_at_work(tmp_path):
    with begun(tmp_path) as (name, up):
        up.send_signal(signal.SIGSTOP)
        for words in (["down"], ["up"], ["link", "1", "down"]):
            refused = testbed("--name", name, *words)
            assert refused.returncode == 1
            says = f"`testbed up` of the bed {name!r} is at work (process {up.pid})"
            assert says in refused.stderr
        up.send_signal(signal.SIGCONT)
        assert testbed("--name", name, "down").returncode == 0  # it waits
