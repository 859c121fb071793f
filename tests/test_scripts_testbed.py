"""The test bed keeps what it promises: delays, rates, limits, separate devices, nothing left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bed import RUN, TESTBED, bed

# What two devices say to each other; every bound is one that a busy machine can't break.
LISTEN = """
import socket, sys
with socket.create_server(("", 7001)) as server:
    print("ready", flush=True)
    end, _ = server.accept()
    if sys.argv[1] == "echo":
        while data := end.recv(1): end.sendall(data)
    else:
        got = 0
        while data := end.recv(1 << 16): got += len(data)
        print(got)
"""
TRIPS = """
import socket, time
end = socket.create_connection(("dev2", 7001))
end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(5):
    start = time.perf_counter(); end.sendall(b"x"); end.recv(1)
    times.append(time.perf_counter() - start)
print(min(times))
"""
BULK = """
import socket, time
start = time.perf_counter()
end = socket.create_connection(("dev2", 7001))
end.sendall(bytes(1000000)); end.shutdown(socket.SHUT_WR); end.recv(1)
print(time.perf_counter() - start)
"""
REACH = """
import socket
try: socket.create_connection(("dev2", 7001), timeout=1.5); print("reached")
except ConnectionRefusedError: print("reached")
except OSError as error: print("silence")
"""
RANKS = """
import os, socket
from mpi4py import MPI
comm = MPI.COMM_WORLD
local = comm.Split_type(MPI.COMM_TYPE_SHARED).size
data = bytearray(1000000)
comm.Bcast(data)
told = comm.gather((socket.gethostname(), local, os.environ["HOME"]))
if comm.rank == 0: print(told)
"""


@pytest.fixture(scope="module")
def two():
    """Two devices 20 ms apart, with little memory each."""
    with bed(devices=2, delay="20ms", rate="10mbit", memory="256MiB") as made:
        yield made


def between(made, kind, client):
    """Listen on device 2, run a client on device 1; return what both print."""
    words = ["--name", made.name, "exec", "dev2", "--", sys.executable, "-c", LISTEN, kind]
    with subprocess.Popen([TESTBED, *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        said = made.python(1, client)
        return said, server.communicate(timeout=60)[0].strip()


def test_round_trip_is_no_shorter_than_the_delay(two):
    said, _ = between(two, "echo", TRIPS)
    assert 0.036 < float(said) < 5


def test_rate_is_not_exceeded(two):
    said, got = between(two, "count", BULK)
    assert int(got) == 1000000
    assert float(said) > 0.8  # 1 MB at 10 Mbit/s


def test_devices_have_their_own_name_home_and_memory(two):
    assert two.python(2, "import socket; print(socket.gethostname())") == "dev2"
    write = """
import os, pathlib, tempfile
cache = pathlib.Path(os.environ["XDG_CACHE_HOME"]); cache.mkdir(exist_ok=True)
for folder in (pathlib.Path.home(), cache, pathlib.Path("/dev/shm"), pathlib.Path(tempfile.gettempdir())):
    (folder / "mine").write_text("dev1")
print(pathlib.Path.home())
"""  # noqa: E501
    look = """
import os, pathlib, tempfile
print([str(f) for f in (pathlib.Path.home(), pathlib.Path("/dev/shm"), pathlib.Path(tempfile.gettempdir()))
       if (f / "mine").exists()], pathlib.Path.home())
"""  # noqa: E501
    home = two.python(1, write)
    assert two.python(2, look) == f"[] {home}"
    assert (two.home(1) / "mine").read_text() == "dev1"
    assert not Path("/dev/shm/mine").exists()


def test_devices_know_their_interfaces_and_names(two):
    assert two.python(1, "import os; print(sorted(os.listdir('/sys/class/net')))") == (
        "['eth0', 'lo']"
    )
    assert two.python(1, "import socket; print(socket.gethostbyname('dev2'))") == "10.99.7.2"


def test_memory_limit_kills(two):
    allocate = "held = bytearray({} << 20); print(len(held))"
    assert two.python(1, allocate.format(100)) == str(100 << 20)
    killed = two.exec(1, [sys.executable, "-c", allocate.format(400)])
    assert killed.returncode == -signal.SIGKILL


def test_a_cut_link_is_silent_until_it_is_mended(two):
    assert two.python(1, REACH) == "reached"
    two.link(2, "down")
    assert "link down" in two.ask("status").stdout
    assert two.python(1, REACH) == "silence"
    two.link(2, "up")
    assert two.python(1, REACH) == "reached"


def test_a_link_is_shown(two):
    shown = two.ask("link", "dev2")
    assert shown.returncode == 0
    assert re.fullmatch(
        r"dev2: up, 20\.00 ms a hop, 10 Mbit/s, sent \d+ B, received \d+ B.*\n", shown.stdout
    )


def test_a_delay_can_be_changed(two):
    for device in (1, 2):
        two.link(device, delay="60ms")
    said, _ = between(two, "echo", TRIPS)
    for device in (1, 2):
        two.link(device, delay="20ms")
    assert float(said) > 0.11


def test_slow_device_gets_less_of_the_cpu(two):
    compute = """
import time
start, used = time.perf_counter(), time.process_time()
while time.perf_counter() - start < 1: pass
print((time.process_time() - used) / (time.perf_counter() - start))
"""
    two.slow(1, "20%")
    whole = (os.cpu_count() or 1) / 2
    assert float(two.python(1, compute)) < 0.3 * whole + 0.05
    two.slow(1, "100%")
    assert "cores" not in two.ask("status").stdout


def test_ranks_are_on_devices_and_talk_over_the_links(two):
    before = two.traffic()
    done = two.run([sys.executable, "-c", RANKS])
    assert done.returncode == 0, done.stderr
    home = f"{RUN}/{two.name}/home"
    assert done.stdout.strip() == f"[('dev1', 1, '{home}'), ('dev2', 1, '{home}')]"
    after = two.traffic()
    assert after[0][0] - before[0][0] > 1000000  # the broadcast left device 1
    assert after[1][1] - before[1][1] > 1000000


def test_number_of_ranks_can_be_asked(two):
    done = two.run([sys.executable, "-c", RANKS], ranks=3)
    assert sorted(re.findall(r"'(dev\d)', (\d)", done.stdout)) == [
        ("dev1", "2"), ("dev1", "2"), ("dev2", "1"),
    ], done.stderr  # fmt: skip


def test_exit_code_and_output_pass_through(two):
    done = two.exec(2, ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert two.run(["sh", "-c", "exit 3"]).returncode == 3


def test_interrupt_reaches_the_launcher_and_ends_the_other_device(two):
    running = two.start(["sleep", "600"], start_new_session=True)
    deadline = time.monotonic() + 30
    while not all(_sleeping(two, device) for device in (1, 2)):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    while any(_sleeping(two, device) for device in (1, 2)):
        assert time.monotonic() < deadline + 30
        time.sleep(0.05)


def _sleeping(made, device):
    names = [Path(f"/proc/{pid}/comm") for pid in made.processes(device)]
    return any(name.exists() and name.read_text() == "sleep\n" for name in names)


def test_a_killed_agent_leaves_the_other_device_running(two):
    agent = TESTBED.parent / "bed" / "agent"
    environment = {**os.environ, "TPIMPI_TESTBED": two.name}
    words = [agent, "-x", "-o", "Some=option", "10.99.7.2", "exec", "sleep", "600"]
    with subprocess.Popen(words, env=environment, start_new_session=True) as started:
        deadline = time.monotonic() + 30
        while not _sleeping(two, 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started.kill()
    assert _sleeping(two, 2)  # as a command lives on whose ssh was killed
    for pid in two.processes(2):
        os.kill(pid, signal.SIGKILL)


def test_up_twice_is_refused(two):
    again = two.ask("up", "--devices=2")
    assert again.returncode == 2
    assert again.stderr == (
        f"testbed: the bed '{two.name}' is up; `testbed down` first, or name another with --name\n"
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (["link", "dev3", "down"], "'dev3' is none of the devices dev1 to dev2"),
        (["link", "dev1", "--delay", "99999s"], "take 60s at most"),
        (["link", "dev1", "--rate", "99999999999gbit"], "take 1kbit to 100gbit"),
        (["link", "dev1", "off"], "invalid choice: 'off'"),
        (["link", "1", "--delay=1"], "'1' is no time"),
        (["slow", "dev1", "150%"], "take 1% to 100%"),
        (["run"], "write `testbed run -- COMMAND`"),
        (["slow", "dev1", "0.1%"], "take 1% to 100%"),
        (["run", "-np", "0", "--", "true"], "-np 0"),
        (["run", "-np", "x", "--", "true"], "-np 'x' is no whole number"),
        (["run", "--mpi", "mpi", "--", "true"], "invalid choice: 'mpi'"),
        (["exec", "1", "--", "/no/such/program"], "/no/such/program can't be run"),
        (["down", "--", "now"], "nothing goes after --"),
    ],
)
def test_mistakes_are_refused(two, words, says):
    done = two.ask(*words)
    assert done.returncode in (1, 2) and not done.stdout
    assert done.stderr.startswith("testbed: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_klonet_is_four_hops():
    with bed(devices=2, topology="klonet", delay="10ms") as made:
        assert "4 between two devices" in made.ask("status").stdout
        said, _ = between(made, "echo", TRIPS)
        assert 0.07 < float(said) < 5


def test_private_folders_and_disk_rate(tmp_path):
    (tmp_path / "checkpoint").write_text("here")
    with bed(devices=2, private=tmp_path, cpu=0.5, disk_rate="50MB/s") as made:
        assert made.python(2, f"import os; print(os.listdir('{tmp_path}'))") == "[]"
        assert "0.5 cores" in made.ask("status").stdout
    assert (tmp_path / "checkpoint").read_text() == "here"


def test_self_test_refuses_what_is_off():
    with bed(devices=2, delay="1us") as made:  # no machine can keep that
        done = made.ask("test")
        assert done.returncode == 1
        assert "off by more than 10 %" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        asked = made.ask("run", "--check", "--", "echo", "measured")
        assert asked.returncode == 1 and "measured" not in asked.stdout


def test_self_test_judges_by_its_own_figures():
    with bed(devices=3, delay="2ms", rate="100mbit") as made:
        done = made.ask("test")
        off = [float(p) for p in re.findall(r", ([+-][\d.]+)%$", done.stdout, re.MULTILINE)]
        assert len(off) == 12  # two pairs and four transfers, idle and loaded
        worst = max(map(abs, off))
        assert abs(worst - 10) < 0.1 or done.returncode == (worst > 10), done.stdout
