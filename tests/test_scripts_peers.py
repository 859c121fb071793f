"""The comparison with other programs: what it needs none of them for."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from peers import child  # noqa: E402
from peers.cap import Cap, CapUnavailable, forget_cached  # noqa: E402
from peers.gguf_file import interleaved  # noqa: E402
from peers.table import metrics, render  # noqa: E402


def row(label, **figures):
    return {"label": label, "figures": figures, "failed": "", "ours": False}


def test_table_shows_losses_like_wins():
    ours = row("ours", first_64=1.0, decode=0.1, of_memory=0.9, peak=1 << 20)
    slower = row("slower", first_64=2.0, decode=0.15, of_memory=0.6, peak=3 << 20)
    faster = row("faster", first_64=0.5, decode=0.05, peak=None)
    dead = row("dead") | {"failed": "killed, out of memory"}
    lines = render([ours, slower, faster, dead], metrics([64]), ours).splitlines()
    assert lines[4].split() == ["slower", "2.000", "2.00", "150.0", "1.50", "0.60", "3", "3.00"]
    assert lines[5].split() == ["faster", "0.500", "0.50", "50.0", "0.50", "-", "-", "-"]
    assert lines[6] == "dead     killed, out of memory"
    assert len({len(line) for line in lines[2:5]}) == 1


def test_interleaved_pairs_turn_together():
    heads, half, columns = 3, 4, 5
    rows = np.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    found = interleaved(rows, heads)
    for head in range(heads):
        for i in range(half):
            at = head * 2 * half
            np.testing.assert_array_equal(found[at + 2 * i], rows[at + i])
            np.testing.assert_array_equal(found[at + 2 * i + 1], rows[at + i + half])


def python(code):
    return [sys.executable, "-c", code]


def test_child_gives_its_last_object():
    assert child.run(python("print('noise'); print('{\"a\": 1}')"), 60) == {"a": 1}


def test_child_that_fails_says_why():
    result = child.run(python("raise SystemExit('no such thing')"), 60)
    assert result["failed"] == "exit code 1: no such thing"


def test_child_out_of_time_takes_its_children_along(tmp_path):
    mark = tmp_path / "alive"
    beat = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(.05)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {beat!r}])"
    result = child.run(python(f"{code}; time.sleep(600)"), 3)
    assert result["failed"] == "no result within 3 s"
    last = mark.stat().st_mtime
    time.sleep(0.5)
    assert mark.stat().st_mtime == last


def test_forgotten_files_are_not_cached(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert forget_cached([path]) <= 1
    assert path.stat().st_size == 1 << 20


def test_cap_kills_what_wants_more():
    try:
        with Cap(60_000_000) as group:
            folder = Path(group.prefix()[-1]).parent
            code = "x = b'x' * 10**8; print('{}')"
            assert child.run(python(code), 60, group) == {"failed": "killed, out of memory"}
            peak = group.peak_bytes()
    except CapUnavailable as error:
        pytest.skip(str(error))
    assert peak is None or 30_000_000 < peak <= 60_000_000
    assert not folder.exists()


def test_cap_leaves_nothing_behind_when_interrupted():
    try:
        with pytest.raises(KeyboardInterrupt), Cap(200_000_000) as group:
            folder = Path(group.prefix()[-1]).parent
            left = "import subprocess; subprocess.Popen(['setsid', 'sleep', '600']); print('{}')"
            subprocess.run([*group.prefix(), *python(left)], check=True, stdout=subprocess.DEVNULL)
            assert (folder / "cgroup.procs").read_text().split()
            raise KeyboardInterrupt
    except CapUnavailable as error:
        pytest.skip(str(error))
    assert not folder.exists()


def test_version_2_without_memory_controller_is_refused(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    (tmp_path / "mine").mkdir()
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    membership = tmp_path / "membership"
    membership.write_text("0::/mine\n")
    with pytest.raises(CapUnavailable, match="hands the memory controller down"):
        Cap(1, tmp_path, membership)


def test_version_2_takes_the_nearest_cgroup_that_has_limits(tmp_path):
    root, membership = tmp_path / "root", tmp_path / "membership"
    (root / "user" / "shell").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("memory")
    for folder in (root, root / "user"):
        (folder / "cgroup.subtree_control").write_text("memory")
    membership.write_text("0::/user/shell\n")
    with Cap(12345, root, membership) as group:
        folder = Path(group.prefix()[-1]).parent
        assert folder.parent == root / "user"
        assert (folder / "memory.max").read_text() == "12345"
        (folder / "memory.peak").write_text("99\n")
        (folder / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1\n")
        assert (group.peak_bytes(), group.oom_kills()) == (99, 2)
        for path in folder.iterdir():  # in a true cgroup the files go with the folder
            path.unlink()
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.procs").chmod(0o600)
        group.kill()
        (folder / "cgroup.procs").unlink()
        group.kill = lambda: None
    assert not folder.exists()
