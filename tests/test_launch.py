"""What the environment tells numba, and the order of what is said and written."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tpimpi import numba_settings
from tpimpi.console import say
from tpimpi.errors import UserError

NAMES = ("NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR", "NUMBA_THREADING_LAYER")


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch, tmp_path):
    """Let the environment say nothing to numba; put it back as it was afterwards."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_settings.tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("given", ["0", "-1", "two", "2.0"])
def test_a_number_of_threads_that_is_none(monkeypatch, given):
    monkeypatch.setenv("NUMBA_NUM_THREADS", given)
    with pytest.raises(UserError, match=f"NUMBA_NUM_THREADS={given} is not a number"):
        numba_settings.settle(2, False, 2)


def test_numba_num_threads_is_a_limit(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    assert numba_settings.settle(4, False, 4) == 2
    assert numba_settings.settle(2, True, 4) == 2
    with pytest.raises(UserError, match="--threads 3 is more than NUMBA_NUM_THREADS=2"):
        numba_settings.settle(3, True, 4)


def test_more_threads_than_cores_can_be_asked_for():
    assert numba_settings.settle(8, True, 2) == 8
    assert os.environ["NUMBA_NUM_THREADS"] == "8"
    with pytest.raises(UserError, match="1000000000"):
        numba_settings.settle(10**9, True, 2)


@pytest.mark.parametrize(
    ("name", "value"), [("NUMBA_CPU_FEATURES", "avx2"), ("NUMBA_DISABLE_JIT", "1")]
)
def test_settings_that_the_kernels_would_not_survive(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        numba_settings.settle(1, True, 2)


def test_the_cache_is_the_users_own_where_that_can_be_written(tmp_path):
    numba_settings.settle(1, True, 2)
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert folder.parent == tmp_path / "cache" / "tpimpi" / "numba"
    assert not numba_settings.cache_is_temporary() and not folder.exists()


def test_a_given_cache_gets_a_folder_for_these_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "given"))
    for _ in range(2):
        numba_settings.settle(1, True, 2)
        assert Path(os.environ["NUMBA_CACHE_DIR"]).parent == tmp_path / "given"
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="can't be written"):
        numba_settings.settle(1, True, 2)


def test_machines_of_two_kinds_don_t_share_a_folder(monkeypatch):
    numba_settings.settle(1, True, 2)
    here = Path(os.environ.pop("NUMBA_CACHE_DIR"))
    monkeypatch.setattr(numba_settings, "_processor", lambda: "another")
    numba_settings.settle(1, True, 2)
    there = Path(os.environ["NUMBA_CACHE_DIR"])
    assert here.parent == there.parent and here != there


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_a_processor_is_the_same_at_any_moment():
    first = numba_settings._processor()
    assert "MHz" not in first and ("flags" in first or "Features" in first)


@pytest.mark.parametrize("why", ["a file", "no home"])
def test_a_cache_that_can_t_be_written_gives_way(monkeypatch, tmp_path, why):
    if why == "a file":
        (tmp_path / "cache").touch()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    numba_settings.settle(1, True, 2)
    mine = tmp_path / f"tpimpi-{os.getuid()}"
    assert Path(os.environ["NUMBA_CACHE_DIR"]).parent == mine / "numba"
    assert numba_settings.cache_is_temporary() and mine.stat().st_mode & 0o777 == 0o700


def test_no_code_is_loaded_from_a_folder_that_others_may_write_to(tmp_path):
    (tmp_path / "cache").touch()
    (tmp_path / f"tpimpi-{os.getuid()}").mkdir()
    (tmp_path / f"tpimpi-{os.getuid()}").chmod(0o777)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        numba_settings.settle(1, True, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into pipes")
def test_what_is_said_waits_until_the_text_before_it_is_read():
    program = (
        "from tpimpi import console\n"
        "console.PATIENCE = 60\n"
        "print('text')\n"
        "console.say('summary')\n"
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert select.select([process.stdout], [], [], 60)[0]
    assert not select.select([process.stderr], [], [], 0.3)[0]
    assert process.stdout.readline() == b"text\n"
    assert process.communicate(timeout=60) == (b"", b"tpimpi: summary\n")


def test_say_flushes_first(monkeypatch):
    class Stream:
        def __init__(self, name, log):
            self.name, self.log = name, log

        def write(self, text):
            self.log.append((self.name, text))

        def flush(self):
            self.log.append((self.name, "flush"))

        def fileno(self):
            raise OSError

    log = []
    monkeypatch.setattr(sys, "stdout", Stream("out", log))
    monkeypatch.setattr(sys, "stderr", Stream("err", log))
    say("a sentence")
    assert log[0] == ("out", "flush") and log[1] == ("err", "tpimpi: a sentence")
