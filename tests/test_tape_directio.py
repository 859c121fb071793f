"""Reads past the page cache: refused, short, failing, beyond the end; in many threads."""

import errno
import fcntl
import mmap
import os
import threading

import numpy as np
import pytest

from tpimpi.errors import MachineError
from tpimpi.tape.directio import PAGE, DirectFile

PAGES = 12
plain_preadv = os.preadv


@pytest.fixture
def data(tmp_path):
    """A file of whole pages, and what it holds."""
    content = np.random.default_rng(5).bytes(PAGES * PAGE)
    (tmp_path / "data").write_bytes(content)
    return tmp_path / "data", content


def is_direct(fd):
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def opened(path):
    file = DirectFile(path)
    if not is_direct(file.fd):
        pytest.skip("no direct reads on this file system")
    return file


def open_files():
    return len(os.listdir("/dev/fd"))


def test_direct_reads_refused_in_many_threads_at_once(data, monkeypatch):
    path, content = data
    threads, before = 6, open_files()
    together, refused = threading.Barrier(threads), []

    def preadv(fd, buffers, offset):
        if is_direct(fd):
            together.wait(10)  # no thread knows of another's refusal
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain_preadv(fd, buffers, offset)

    file = opened(path)
    monkeypatch.setattr(os, "preadv", preadv)
    memory, failed = [mmap.mmap(-1, 2 * PAGE) for _ in range(threads)], []

    def read(i):
        try:
            file.read(memoryview(memory[i]), 2 * PAGE * i, 2 * PAGE)
        except MachineError as error:
            failed.append(error)

    workers = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed and len(refused) == threads
    assert b"".join(memory) == content
    file.close()
    assert open_files() == before


@pytest.mark.parametrize("most", [3 * PAGE + 512, PAGE + 1, PAGE, 700])
def test_short_reads_go_on_where_a_direct_read_may(data, monkeypatch, most):
    path, content = data

    def preadv(fd, buffers, offset):
        if is_direct(fd) and offset % PAGE:
            raise OSError(errno.EINVAL, "Invalid argument")
        part = bytearray(len(buffers[0]))
        count = min(plain_preadv(os_plain, [part], offset), most)
        buffers[0][:count] = part[:count]
        return count

    os_plain = os.open(path, os.O_RDONLY)
    file, into = opened(path), mmap.mmap(-1, PAGES * PAGE)
    monkeypatch.setattr(os, "preadv", preadv)
    file.read(memoryview(into), 0, PAGES * PAGE)
    assert into[:] == content
    assert is_direct(file.fd) == (most >= PAGE)  # one short read does not end direct reading
    file.close()
    os.close(os_plain)


@pytest.mark.parametrize("cut", [1, 1000, PAGE, PAGE + 3])
def test_the_end_of_the_file(data, cut):
    path, content = data
    size = len(content) - cut
    os.truncate(path, size)
    file, into = DirectFile(path), mmap.mmap(-1, PAGES * PAGE)
    file.read(memoryview(into), 0, size)
    assert into[:size] == content[:size]
    with pytest.raises(MachineError, match=f"ended at byte {size} while"):
        file.read(memoryview(into), 0, size + 1)
    with pytest.raises(MachineError, match=f"ended at byte {16 * PAGE} while"):
        file.read(memoryview(into), 16 * PAGE, 1)
    file.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_read_that_fails_is_told(data, monkeypatch, number):
    def preadv(fd, buffers, offset):
        raise OSError(number, os.strerror(number))

    file, into = DirectFile(data[0]), mmap.mmap(-1, PAGE)
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(MachineError, match=f"at byte {3 * PAGE} failed .{os.strerror(number)}"):
        file.read(memoryview(into), 3 * PAGE, 1)
    file.close()
