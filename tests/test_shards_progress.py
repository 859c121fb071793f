"""Nothing is silent for long: what is read again is told on rank 0, and so is a wait for others."""

import io
import time

import pytest

from tpimpi import progress, status
from tpimpi.comm.group import Group
from tpimpi.shards import devices
from tpimpi.shards.request import ShardRequest
from tpimpi.shards.shard import Shard, stamp_path
from tpimpi.shards.source import Source
from tpimpi.shards.writer import ShardWriter


@pytest.fixture
def group(comm, monkeypatch):
    """All ranks, telling at once what they would tell every two seconds."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    group = Group(comm)
    yield group
    group.close()


def told(group, capsys, title):
    """Tell whether rank 0, and no other, told something."""
    lines = [line for line in capsys.readouterr().err.splitlines() if title in line]
    assert bool(lines) == (group.rank == 0), lines
    return lines


def test_each_reading_is_told(group, references, shared_tmp, capsys, monkeypatch):
    source = Source(group, references / "yi", ShardRequest(shared_tmp))
    shard, _ = source.shard(group)
    shard.close()
    lines = told(group, capsys, "cutting the checkpoint")
    assert group.rank != 0 or (" of " in lines[-1] and "B/s" in lines[-1])

    stamp_path(shard.path).unlink()
    (shared_tmp / "checkpoint.hashes").unlink(missing_ok=True)
    source.shard(group)[0].close()
    errors = capsys.readouterr().err
    for title in ("verifying the shard", "hashing the checkpoint"):
        assert (title in errors) == (group.rank == 0)

    shard.path.rename(f"{shard.path}.partial")
    source.shard(group)[0].close()
    told(group, capsys, "checking what is there already")


def test_a_wait_is_told(group, references, shared_tmp, capsys, monkeypatch):
    source = Source(group, references / "yi", ShardRequest(shared_tmp))
    plain, last = ShardWriter.finish, group.rank == group.size - 1
    monkeypatch.setattr(
        ShardWriter, "finish", lambda self: (time.sleep(0.3 if last else 0), plain(self))
    )
    source.shard(group)[0].close()
    told(group, capsys, "waiting for the disks")
    verify = Shard.verify
    monkeypatch.setattr(
        Shard, "verify", lambda self, speaks: (verify(self, speaks), time.sleep(0.3 if last else 0))
    )
    stamp_path(source.folder / f"shard-{group.rank}-of-{group.size}.h5").unlink()
    source.shard(group)[0].close()
    if group.size > 1:
        told(group, capsys, "waiting for ranks that verify")


def test_a_few_devices_are_told_with_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 1e9)
    for count in (2, 8):
        bar = progress.DeviceProgress("cutting", {f"dev{i}": (i + 1) << 30 for i in range(count)})
        bar._start -= 10.0
        with bar:
            bar.arrived("dev0", 1 << 30)
            bar.arrived("dev1", 1 << 30)
            line, at_an_end = bar._line(10.0), status.current.figures
        shares = ", ".join(["dev0 100 %", "dev1 50 %", *(f"dev{i} 0 %" for i in range(2, count))])
        assert at_an_end == f"2.00 GiB of {count * (count + 1) / 2:.2f} GiB ({shares})"
        assert line.startswith(f"cutting: 2.00 GiB of {count * (count + 1) / 2:.2f} GiB, 215 MB/s")
        if count == 2:
            assert line.endswith("; dev0 100 %; dev1 50 %, 107 MB/s, 10 s left")
        else:
            assert line.endswith(f" ({shares})")


def test_each_device_has_a_bar_on_a_terminal(monkeypatch):
    written = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    with progress.DeviceProgress("cutting", {"dev1": 1 << 20, "dev2": 2 << 20}) as bar:
        bar.arrived("dev2", 1 << 20)
    shown = "".join(written)
    assert "cutting: dev1" in shown and "cutting: dev2" in shown


def test_what_is_there_is_told_in_one_sentence():
    names, gib = ["dev1", "dev2", "dev3"], 1 << 30
    told = devices.found_sentence
    assert told(names, [(0, gib)] * 3) is None
    assert told(names, [(0, gib), (gib, 2 * gib), (0, gib)]) == (
        "dev2 has 1.00 GiB of 2.00 GiB from an earlier run; going on"
    )
    assert told(names, [None, (gib, 2 * gib), None]) == (
        "dev1 and dev3 have their shards already; dev2 has 1.00 GiB of 2.00 GiB from an earlier "
        "run; going on"
    )
    many = [f"dev{i}" for i in range(20)]
    assert told(many, [(gib, 2 * gib)] * 20) == (
        "20 ranks have 20.00 GiB of 40.00 GiB from an earlier run; going on"
    )
    assert told(many, [None] * 19 + [(0, 1)]) == "19 ranks have their shards already; going on"
