"""A tape that is misused, closed, or fails: a sentence, and neither a hang nor wrong bytes."""

import errno
import os
import threading

import numpy as np
import pytest

from tpimpi.errors import MachineError
from tpimpi.shards.layout import PAGE, StoredTensor
from tpimpi.tape import tape as module
from tpimpi.tape.reads import READ_BYTES
from tpimpi.tape.tape import Tape

ROWS, COLUMNS, NAMES = 1995, 1024, ("a", "b", "c")  # each of two reads
PANELS = 125  # of a tensor, the last of 11 rows
plain_preadv = os.preadv


class FlatFile:
    """A file of bf16 tensors that a tape takes for a shard; no two of its rows are the same."""

    def __init__(self, path):
        self.path = path
        self._tensors, self.rows = {}, {}
        content = np.random.default_rng(1).integers(0, 1 << 16, (3, ROWS, COLUMNS), np.uint16)
        at = PAGE
        with path.open("wb") as file:
            for name, rows in zip(NAMES, content, strict=True):
                self._tensors[name] = StoredTensor(name, "bf16", rows.shape, at, in_panels=True)
                self.rows[name] = rows
                whole = np.concatenate((rows, np.zeros((16 * PANELS - ROWS, COLUMNS), np.uint16)))
                panels = whole.reshape(PANELS, 16, COLUMNS).transpose(0, 2, 1)  # [P, K, 16]
                file.seek(at)
                file.write(panels.tobytes())
                at += -(-panels.nbytes // PAGE) * PAGE
            file.truncate(at)
        self.fd = os.open(path, os.O_RDONLY)

    def __getitem__(self, name):
        return self._tensors[name]

    def add(self, tensor):
        self._tensors[tensor.name] = tensor


@pytest.fixture
def shard(tmp_path):
    found = FlatFile(tmp_path / "shard")
    yield found
    os.close(found.fd)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tape-reader")]


def rows_of(panels):
    """Return the rows [N, K] of a tensor's panels, uint8 [P, panel_bytes]."""
    numbers = panels.view(np.uint16).reshape(PANELS, COLUMNS, 16)
    return numbers.transpose(0, 2, 1).reshape(-1, COLUMNS)[:ROWS]


def lap(tape, shard):
    for name in NAMES:
        panels = np.concatenate([weights.copy() for _, weights in tape.take(name)])
        np.testing.assert_array_equal(rows_of(panels), shard.rows[name])


RESIDENT = {
    "streamed": {},
    "partly": dict.fromkeys(NAMES, PANELS // 2),
    "resident": dict.fromkeys(NAMES, PANELS),
}


@pytest.mark.parametrize("kept", RESIDENT)
@pytest.mark.parametrize("laps", [0, 1])
def test_tensors_taken_in_the_wrong_order_are_refused(shard, kept, laps):
    tape = Tape(shard, NAMES, RESIDENT[kept], 0)
    for _ in range(laps):
        lap(tape, shard)
    for _ in tape.take("a"):
        pass
    for wrong in ("c", "a", "other"):
        with pytest.raises(RuntimeError, match=f"{wrong} was taken from the tape, but b is next"):
            tape.take(wrong)
    for name in ("b", "c"):
        for _ in tape.take(name):
            pass
    lap(tape, shard)
    tape.close()


@pytest.mark.parametrize("kept", ["streamed", "partly"])
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_tensor_left_half_way_is_refused(shard, kept, name, steps):
    tape = Tape(shard, NAMES, RESIDENT[kept], 0)
    parts = iter(tape.take("a"))
    for _ in range(steps):
        next(parts)
    with pytest.raises(RuntimeError, match=f"{name} was taken .*, but a is still under way"):
        tape.take(name)
    tape.close()


@pytest.mark.parametrize("kept", RESIDENT)
def test_nothing_is_taken_at_once_while_a_tensor_is_under_way(shard, kept):
    tape = Tape(shard, NAMES, RESIDENT[kept], 0)
    if kept == "resident":
        assert tape.take_kept(NAMES) is None  # nothing is read yet
        lap(tape, shard)
        for wrong in (("b",), ("a", "c"), ("b", "c", "a"), (*NAMES, "a"), ("a", "other")):
            assert tape.take_kept(wrong) is None
        assert [len(panels) for panels in tape.take_kept(["a", "b"])] == [PANELS] * 2
        assert tape.take_kept(NAMES) is None
        (panels,) = tape.take_kept(["c"])
        np.testing.assert_array_equal(rows_of(panels), shard.rows["c"])
    else:
        lap(tape, shard)
        parts = iter(tape.take("a"))
        next(parts)
        assert tape.take_kept(["a"]) is None and tape.take_kept(["b", "c"]) is None
        for _ in parts:
            pass
        assert tape.take_kept(["b"]) is None
        for name in ("b", "c"):
            for _ in tape.take(name):
                pass
    lap(tape, shard)
    tape.close()


def test_a_tensor_without_rows_is_taken_at_once_unless_it_is_under_way(shard):
    names = ("nothing", *NAMES)
    shard.add(StoredTensor("nothing", "bf16", (0, COLUMNS), 0, in_panels=True))
    tape = Tape(shard, names, RESIDENT["resident"], 0)
    assert not list(tape.take("nothing"))
    lap(tape, shard)
    parts = tape.take("nothing")
    assert tape.take_kept(names) is None and not list(parts)
    lap(tape, shard)
    assert [len(panels) for panels in tape.take_kept(names)] == [0, *[PANELS] * 3]
    tape.close()


def test_names_in_another_order_than_the_file_are_refused(shard):
    with pytest.raises(ValueError, match="order of the file"):
        Tape(shard, ("b", "a", "c"), {}, 0)


@pytest.mark.parametrize("kept", ["streamed", "resident"])
def test_close_wakes_who_waits_and_may_be_called_again(shard, kept, monkeypatch):
    go_on, waiting, told = threading.Event(), threading.Event(), []

    def preadv(fd, buffers, offset):
        waiting.set()
        assert go_on.wait(20)
        return plain_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    tape = Tape(shard, NAMES, RESIDENT[kept], 0)

    def use():
        try:
            for _ in tape.take("a"):
                pass
        except MachineError as error:
            told.append(str(error))

    consumer, closer = threading.Thread(target=use), threading.Thread(target=tape.close)
    consumer.start()
    assert waiting.wait(10)
    closer.start()
    consumer.join(10)
    assert not consumer.is_alive() and "closed" in told[0]
    go_on.set()
    closer.join(10)
    assert not closer.is_alive() and not readers()
    tape.close()


def test_close_does_not_wait_for_ever_for_a_read_that_hangs(shard, monkeypatch):
    go_on = threading.Event()

    def preadv(fd, buffers, offset):
        assert go_on.wait(20)
        return plain_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    tape = Tape(shard, NAMES, {}, 0)
    closer = threading.Thread(target=tape.close)
    closer.start()
    closer.join(5)
    assert not closer.is_alive() and readers()
    go_on.set()
    for reader in readers():
        reader.join(5)
    assert not readers()


def test_a_closed_tape_serves_nothing(shard):
    tape = Tape(shard, NAMES, {}, 0)
    parts = iter(tape.take("a"))
    next(parts)
    tape.close()
    with pytest.raises(MachineError, match="closed"):
        next(parts)


def test_threads_that_can_not_be_started_leave_nothing_behind(shard, monkeypatch):
    start, before = threading.Thread.start, os.listdir("/dev/fd")

    def refuse_the_fourth(thread):
        if thread.name == "tape-reader-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_fourth)
    with pytest.raises(MachineError, match="only 3 of the 6 threads"):
        Tape(shard, NAMES, {}, 0)
    assert not readers() and os.listdir("/dev/fd") == before


def test_an_interrupt_while_it_is_made_leaves_nothing_behind(shard, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = os.listdir("/dev/fd")
    monkeypatch.setattr(module.os.path, "sameopenfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tape(shard, NAMES, {}, 0)
    assert not readers() and os.listdir("/dev/fd") == before


def test_a_file_that_is_gone_or_replaced_before_the_start(shard, tmp_path, monkeypatch):
    before = os.listdir("/dev/fd")
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # as where there is no /proc
    (tmp_path / "other").write_bytes(shard.path.read_bytes())
    (tmp_path / "other").replace(shard.path)
    with pytest.raises(MachineError, match="was replaced"):
        Tape(shard, NAMES, {}, 0)
    shard.path.unlink()
    with pytest.raises(FileNotFoundError):
        Tape(shard, NAMES, {}, 0)
    assert not readers() and os.listdir("/dev/fd") == before


def test_a_file_that_is_replaced_later_stays_the_one_that_was_opened(shard, tmp_path):
    tape = Tape(shard, NAMES, {}, 0)
    lap(tape, shard)
    (tmp_path / "other").write_bytes(bytes(shard.path.stat().st_size))
    (tmp_path / "other").replace(shard.path)
    for _ in range(3):
        lap(tape, shard)
    tape.close()


def test_a_read_that_fails_is_told_at_every_wait(shard, monkeypatch):
    def preadv(fd, buffers, offset):
        if offset >= PAGE + READ_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return plain_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    tape = Tape(shard, NAMES, {}, 0)
    parts = tape.take("a")
    with pytest.raises(MachineError, match="failed .Input/output error"):
        for _ in parts:
            pass
    tape.close()
    assert not readers()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="a file can't be opened again here")
def test_a_shard_that_is_replaced_after_it_was_opened_is_still_read(shard, tmp_path):
    size = shard.path.stat().st_size
    (tmp_path / "other").write_bytes(bytes(size))
    os.replace(tmp_path / "other", shard.path)
    tape = Tape(shard, NAMES, {}, 0)
    lap(tape, shard)
    tape.close()
