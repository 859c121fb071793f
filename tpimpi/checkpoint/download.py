"""Download a model from the Hugging Face hub, in a process of its own: `hub` starts it.

It tells what it does as lines of JSON. A file of weights that was interrupted goes on in its
middle: the hub's own library throws away what came of it, so here only its pieces are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from tpimpi.checkpoint.files import INDEX, named_in
from tpimpi.checkpoint.hub_cache import COMMIT, HubId, hub_cache
from tpimpi.checkpoint.hub_errors import AGAIN, in_words, is_size, lost_connection, of_wrong_size
from tpimpi.errors import MachineError, UserError
from tpimpi.paths import free_disk
from tpimpi.units import size

WORKERS = 4  # files at once
EVERY_SECONDS = 0.25
WEIGHTS = "model.safetensors"
SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_OTHER = (".bin", ".pth", ".pt", ".gguf", ".ggml", ".safetensors", ".msgpack", ".h5")
_PIECE = 1 << 20  # bytes received or hashed at once


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its bytes, and the SHA-256 of a large one (None: a small one)."""

    name: str
    nbytes: int
    sha256: str | None

    @classmethod
    def of(cls, sibling) -> RemoteFile:
        """Take it from the hub's answer."""
        sha256 = sibling.lfs.sha256 if sibling.lfs else ""
        known = sha256 if _SHA256.fullmatch(sha256) else None  # it becomes a file's name
        return cls(sibling.rfilename, sibling.size or 0, known)


def small_files(names: list[str]) -> list[str]:
    """Return those of a repository's files, without its weights, that a model is run with."""
    return [name for name in names if name in SMALL or _TEMPLATE.fullmatch(name)]


def weights_of(model: HubId, names: list[str], indexed: list[str] | None) -> list[str]:
    """Return those of a repository's files that hold the weights; UserError if there are none.

    `indexed` are the files that its index names, None where it has no index.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    shards = [name for name in names if _SHARD.fullmatch(name)] if indexed is None else indexed
    for name in shards:
        if name not in names:
            raise UserError(f"{model} on the hub has no {name}, which its {INDEX} names")
    if shards:
        return shards
    if "adapter_config.json" in names:
        raise UserError(
            f"{model} on the hub is an adapter, not a model; merge it into its base model (PEFT's "
            "merge_and_unload), save that and give the directory"
        )
    other = next((name for name in names if name.lower().endswith(_OTHER)), None)
    have = f"its weights in {other}" if other else "no weights"
    raise UserError(
        f"{model} on the hub has {have}, but {WEIGHTS} or {INDEX} is needed; look there for the "
        "original model or for one that was saved as safetensors"
    )


class Download:
    """One model's way from the hub into its cache."""

    def __init__(self, model: HubId):
        from huggingface_hub import HfApi, constants

        constants.DOWNLOAD_CHUNK_SIZE = _PIECE  # of 10 MB: what is less is lost with a connection
        self.model, self.endpoint = model, constants.ENDPOINT
        self._api = HfApi()
        info = self._api.model_info(model.repo, revision=model.revision, files_metadata=True)
        self.commit = info.sha
        if not COMMIT.fullmatch(str(self.commit)):  # it becomes a folder's name
            raise MachineError(f"{self.endpoint} gives {model} the commit {self.commit!r}, no hash")
        self.directory = model.folder / "snapshots" / self.commit
        found = (RemoteFile.of(one) for one in info.siblings)
        self._files = {file.name: file for file in found}
        self._lock = threading.Lock()
        self._open: set[RemoteFile] = set()
        self._done = 0  # bytes of files that were missing and are there
        self._had = 0  # bytes that were there of files that were not whole
        self.missing = 0  # bytes that were not there

    def plan(self) -> list[RemoteFile]:
        """Return the files that are missing. Raises UserError, MachineError for a small disk."""
        names, indexed = list(self._files), None
        if "config.json" not in names and "adapter_config.json" not in names:
            raise UserError(f"{self.model} on the hub has no config.json; it is no model to run")
        if WEIGHTS not in names and INDEX in names:
            self._small(INDEX)
            indexed = named_in(self.directory / INDEX)
        wanted = small_files(names) + weights_of(self.model, names, indexed)
        missing = [self._files[name] for name in wanted if not (self.directory / name).exists()]
        self._had = sum(self._begun(file) for file in missing)
        self.missing = sum(file.nbytes for file in missing) - self._had
        free = free_disk(hub_cache())
        if self.missing > free:
            raise MachineError(
                f"{self.model} needs {size(self.missing)} more in the hub's cache {hub_cache()}, "
                f"and its disk has {size(free)} free; free some space, or set HF_HUB_CACHE to a "
                "folder on another disk"
            )
        self._open = set(missing)
        return missing

    def come(self) -> int:
        """Return how many bytes have come since the start; any thread may ask."""
        with self._lock:
            return self._done + sum(self._begun(file) for file in self._open) - self._had

    def run(self, files: list[RemoteFile]) -> None:
        """Fetch files, the small ones first, then note which commit the revision is."""
        order = sorted(files, key=lambda file: (file.sha256 is not None, file.nbytes))
        pool = ThreadPoolExecutor(WORKERS)  # after an error this process ends: nobody waits for it
        for _ in pool.map(self._fetch, order):
            pass
        if self.model.revision != self.commit:  # last, so that it never names half a model
            self.model.reference.parent.mkdir(parents=True, exist_ok=True)
            beside = self.model.reference.with_name(f"{self.model.reference.name}.{os.getpid()}")
            beside.write_text(self.commit)
            beside.replace(self.model.reference)

    def _fetch(self, file: RemoteFile) -> None:
        if file.sha256 and file.nbytes:
            self._large(file)
        self._small(file.name)  # a large one is there by now, and is linked
        with self._lock:
            self._open.discard(file)
            self._done += file.nbytes

    def _small(self, name: str) -> None:
        self._api.hf_hub_download(
            self.model.repo, name, revision=self.commit, cache_dir=hub_cache()
        )

    def _large(self, file: RemoteFile) -> None:
        """Bring a file's content into the cache's blobs, going on where an earlier try ended."""
        from huggingface_hub.utils import WeakFileLock

        blob, part = self._blob(file), self._part(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock = hub_cache() / ".locks" / self.model.folder.name / f"{file.sha256}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return
            if self._size_of(part) > file.nbytes:
                part.unlink()
            with part.open("ab", buffering=0) as out:
                self._receive(file, out)
            if self._hash(part) != file.sha256:
                part.unlink()
                raise MachineError(
                    f"{file.name} of {self.model} came with another content than the hub says "
                    f"(its SHA-256 differs); {AGAIN}"
                )
            part.replace(blob)

    def _receive(self, file: RemoteFile, out) -> None:
        """Append what is missing of a file, trying again as long as something comes."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(self.model.repo, file.name, revision=self.commit)
        while (had := os.fstat(out.fileno()).st_size) < file.nbytes:
            headers = build_hf_headers()
            place = get_hf_file_metadata(url)  # anew: a signed address lasts an hour only
            if urlparse(place.location).netloc != urlparse(url).netloc:
                headers.pop("authorization", None)  # it is for the hub alone
            if place.size not in (None, file.nbytes):
                raise of_wrong_size(self.model, file.name, place.size, file.nbytes)
            try:
                http_get(
                    place.location, out, resume_size=had, headers=headers,
                    expected_size=file.nbytes,
                )  # fmt: skip
            except Exception as error:
                now = os.fstat(out.fileno()).st_size
                if not (lost_connection(error) or is_size(error)):
                    raise
                if had < now <= file.nbytes:
                    continue  # it may be cut again, but something comes
                if is_size(error):
                    out.truncate(0)
                    raise of_wrong_size(self.model, file.name, now, file.nbytes) from error
                raise

    def _blob(self, file: RemoteFile) -> Path:
        return self.model.folder / "blobs" / str(file.sha256)

    def _part(self, file: RemoteFile) -> Path:
        return self.model.folder / "blobs" / f"{file.sha256}.incomplete"

    def _begun(self, file: RemoteFile) -> int:
        """Return the bytes that are there of a file that is not in the snapshot yet."""
        if file.sha256 is None:
            return 0
        return min(max(self._size_of(self._part(file)), self._size_of(self._blob(file))),
                   file.nbytes)  # fmt: skip

    @staticmethod
    def _size_of(path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    @staticmethod
    def _hash(path: Path) -> str:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
        return found.hexdigest()


def serve(repo: str, revision: str) -> None:
    """Download a model and tell how far it is, then end this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and kills this one
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**what) -> None:
        print(json.dumps(what), file=answers, flush=True)

    model = HubId(repo, revision)
    try:
        download = Download(model)
        files = download.plan()
        if files:
            tell(missing=download.missing, files=len(files), endpoint=download.endpoint)
        with _Ticking(lambda: tell(come=download.come())):
            download.run(files)
        tell(directory=str(download.directory))
    except BaseException as error:
        found = in_words(error, model)
        tell(error=str(found), users=isinstance(found, UserError))
    os._exit(0)  # whatever other files are being received


def _leave_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


class _Ticking:
    """Call something every now and then from a thread, until the block is left."""

    def __init__(self, call):
        self._call, self._over = call, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._call()
