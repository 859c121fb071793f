"""The test bed keeps what it promises: delays, rates, limits, separate devices, nothing left."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bed import RUN, TESTBED, bed, testbed, unavailable

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
