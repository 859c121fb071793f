"""A checkpoint's fingerprint, and its tensors' hashes, noted by the state of their files.

The *fingerprint* is quick: the config's fields that change numbers, the headers, both ends of every
tensor. It names a model's folder in the cache, whatever its directory is called. It doesn't see a
change in the middle of a tensor, so each piece of a shard also carries the *hash* of the whole
tensor that it was cut from.

Hashes are taken of what is sent while a checkpoint is cut, so that a first run reads it once. They
are noted by the state of the file they were read from: its size, times and inode, which stay the
same where a directory is renamed, and which no program can set back (the change time). Only a file
in a state that is not noted is read to be hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tpimpi.errors import UserError
from tpimpi.launch import available_cores
from tpimpi.model.config import ModelConfig
from tpimpi.progress import Progress

HASH_BYTES = 32
ORIGIN_BYTES = 20
INDIFFERENT = ("name", "bos_token_id", "eos_token_ids", "max_positions")  # change no number
_EDGE = 4096  # bytes at both ends of each tensor that go into the fingerprint
_READ = 4 << 20  # bytes hashed at a time
_FILES = 1000  # noted at most: the latest
_SAVE_SECONDS = 5.0  # what a kill may lose


def quick_fingerprint(
    config: ModelConfig, headers: bytes, tensors: Iterable, pread: Callable[[Path, int, int], bytes]
) -> str:
    """Hash the shape of a model, its headers, and the edges of all tensors.

    `pread(path, nbytes, offset)` reads a file.
    """
    fields = json.loads(config.to_json())
    for name in INDIFFERENT:
        del fields[name]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + headers)
    for tensor in tensors:
        edge = min(_EDGE, tensor.nbytes)
        digest.update(pread(tensor.path, edge, tensor.offset))
        digest.update(pread(tensor.path, edge, tensor.offset + tensor.nbytes - edge))
    return digest.hexdigest()[:16]


def new_hash():
    """Return an empty hash of a tensor's bytes: the fastest where a CPU has no help for SHA."""
    return hashlib.blake2b(digest_size=HASH_BYTES)


def origin_of(checkpoint, source: str) -> bytes:
    """Return what names a tensor of a checkpoint, and the state of its file, in ORIGIN_BYTES."""
    tensor = checkpoint.weight(source)
    text = f"{checkpoint.states[tensor.path]}|{tensor.offset}+{tensor.nbytes}"
    return hashlib.sha256(text.encode()).digest()[:ORIGIN_BYTES]


class TensorHashes:
    """The hashes of a checkpoint's tensors as far as they are known, noted in a folder.

    They are noted by the states in which the checkpoint found its files when it opened them. A
    folder that can't be written to is no error: then hashes are taken anew at the next start.
    """

    def __init__(self, checkpoint, folder: Path):
        self._checkpoint, self._path = checkpoint, folder / "checkpoint.hashes"
        self._known = _load(self._path)
        for path, state in checkpoint.states.items():
            if state not in self._known:
                _sync(checkpoint.descriptors[path])
        self._saved, self._changed = time.monotonic(), False

    def get(self, source: str) -> bytes | None:
        """Return the hash of a tensor of the checkpoint if it is known."""
        tensor = self._checkpoint.weight(source)
        places = self._known.get(self._checkpoint.states[tensor.path], {})
        text = places.get(f"{tensor.offset}+{tensor.nbytes}")
        return None if text is None else bytes.fromhex(text)

    def put(self, source: str, digest: bytes) -> None:
        """Note the hash of a tensor that was read."""
        tensor = self._checkpoint.weight(source)
        places = self._known.setdefault(self._checkpoint.states[tensor.path], {})
        places[f"{tensor.offset}+{tensor.nbytes}"] = digest.hex()
        self._changed = True
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def fill(self, sources: Iterable[str]) -> None:
        """Read and hash those of the tensors whose hash is not known."""
        unknown = {self._checkpoint.weight(s): s for s in sources if self.get(s) is None}
        if not unknown:
            return
        total = sum(tensor.nbytes for tensor in unknown)
        lock = threading.Lock()
        try:
            with (
                Progress("hashing the checkpoint", total) as bar,
                ThreadPoolExecutor(min(available_cores(), 4)) as pool,
            ):
                jobs = {
                    pool.submit(_hash, t, self._checkpoint.descriptors[t.path], bar, lock): s
                    for t, s in unknown.items()
                }
                try:
                    for job in as_completed(jobs):
                        self.put(jobs[job], job.result())
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            self.check_unchanged()
        finally:
            self.save()

    def check_unchanged(self, source: str | None = None) -> None:
        """Refuse a checkpoint that was written to since it was opened, or a tensor's file."""
        states = self._checkpoint.states
        if source is not None:
            path = self._checkpoint.weight(source).path
            states = {path: states[path]}
        for path, state in states.items():
            if file_state(os.stat(path)) != state:
                # What was read before and after may be of different states.
                self._known.pop(state, None)
                raise UserError(f"{path} changed while it was read; run the command again")

    def save(self) -> None:
        """Note what is known, together with what others noted meanwhile."""
        self._saved = time.monotonic()
        if not self._changed:
            return
        merged = _load(self._path)
        for state, places in self._known.items():
            merged[state] = merged.pop(state, {}) | places  # to the end: the latest
        text = json.dumps(dict(list(merged.items())[-_FILES:]))
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(f"{_seal(text)}\n{text}")
            os.replace(beside, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()  # a full disk takes no more of it
            return  # as the class says
        self._changed = False


def file_state(status: os.stat_result) -> str:
    """Return the state of a file, by which it is known that nobody wrote to it."""
    return "-".join(
        map(str, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    )


def _sync(fd: int) -> None:
    """Let the next write to a file change its state, be it through a map of another program.

    The first write to a mapped page does, but others don't until the page has gone to the disk.
    """
    with contextlib.suppress(OSError):  # of file systems that can't
        os.fsync(fd)


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _load(path: Path) -> dict[str, dict[str, str]]:
    """Return what is noted: {state of a file: {place in it: hash}}; nothing if it is damaged."""
    try:
        seal, _, text = path.read_text().partition("\n")
        return json.loads(text) if seal == _seal(text) else {}
    except (OSError, ValueError):
        return {}


def _hash(tensor, fd: int, bar: Progress, lock: threading.Lock) -> bytes:
    digest, at, end = new_hash(), tensor.offset, tensor.offset + tensor.nbytes
    while at < end:
        data = os.pread(fd, min(_READ, end - at), at)
        if not data:
            raise UserError(f"{tensor.path} became shorter while it was read; fetch it again")
        digest.update(data)
        at += len(data)
        with lock:
            bar.update(len(data))
    return digest.digest()
