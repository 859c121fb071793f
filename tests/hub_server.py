"""A small server on loopback that answers as the Hugging Face hub does, and fails as it may."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from program import DEMO

NAME, SHARDED = "some-lab/Demo-1.9M", "some-lab/Sharded"
WEIGHTS = "model.safetensors"
BESIDE = {
    "pytorch_model.bin": b"x" * 20_000, "demo.Q4.gguf": b"x", "original/consolidated.pth": b"",
    "README.md": b"# demo",
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000  # bytes of a file that the hub keeps in LFS


class Hub:
    """Repositories by name, each a dict of file names and contents; in `with` it is reached."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.asked = []  # (method, path, Range or None)
        self.tokens = set()  # that were sent to the hub itself
        self.elsewhere = {}  # path: content of large files on another host, where they are one
        self.leaked = set()  # tokens that were sent there
        self.split = False  # whether large files are there
        self.gated = None  # the token that may read
        self.cut = {}  # name: how many bytes until the connection is lost
        self.cuts = float("inf")  # how often it is
        self.status = {}  # name: a failure
        self.content = {}  # name: what comes in its place
        self.sizes = {}  # name: the bytes that it is said to have
        self.pace = None  # an event to wait for in the middle of a large file
        self.commit = COMMIT  # as the list of files tells it
        self.ranges = True  # whether a part may be asked for

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self, name):
        """Return the Range of each request for a file's content."""
        return [
            part for method, path, part in self.asked if method == "GET" and path.endswith(name)
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub = self.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if path in hub.elsewhere:
            hub.leaked |= {token} - {""}
            return self._content(path.rpartition("/")[2], hub.elsewhere[path])
        hub.tokens |= {token} - {""}
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not (listing or file):
            return self._refuse(404)
        repository, revision = (listing or file).group(1, 2)
        files = hub.repositories.get(repository)
        if files is None:
            return self._refuse(401, "RepoNotFound")
        if hub.gated and token != hub.gated:
            return self._refuse(403, "GatedRepo")
        if revision.replace("%2F", "/") not in ("main", "v1", "refs/pr/1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        name = "" if listing else file[3]
        if name in hub.status:
            return self._refuse(hub.status[name])
        if listing:
            return self._list(repository, files)
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        return self._send(name, files[name])

    def _refuse(self, status, code=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, repository, files):
        siblings = []
        for name, data in files.items():
            one = {
                "rfilename": name,
                "size": self.hub.sizes.get(name, len(data)),
                "blobId": _blob_id(data),
            }
            if len(data) >= LARGE:
                size = one["size"]
                sha = hashlib.sha256(data).hexdigest()
                one["lfs"] = {"size": size, "sha256": sha, "pointerSize": 130}
            siblings.append(one)
        body = json.dumps({"id": repository, "sha": self.hub.commit, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name, data):
        large = len(data) >= LARGE
        etag = hashlib.sha256(data).hexdigest() if large else _blob_id(data)
        if large and self.hub.split:
            path = f"/elsewhere/{etag}/{name}"
            self.hub.elsewhere[path] = data
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self._content(name, data, etag)

    def _content(self, name, data, etag="none"):
        large = len(data) >= LARGE
        data = self.hub.content.get(name, data)
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(first[1]) if first and self.hub.ranges else 0
        if first and first >= len(data):
            return self._refuse(416)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "HEAD":
            return None
        part = data[first:]
        if name in self.hub.cut and len(part) > self.hub.cut[name] and self.hub.cuts:
            self.hub.cuts -= 1
            self.wfile.write(part[: self.hub.cut[name]])
            self.close_connection = True
            return None
        if large and self.hub.pace:
            half = len(part) // 2
            self.wfile.write(part[:half])
            self.wfile.flush()
            self.hub.pace.wait(60)
            part = part[half:]
        try:
            self.wfile.write(part)
        except OSError:
            self.close_connection = True  # it has gone
        return None


def _blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def demo_files():
    """Return a repository of the demo model, with much that is not needed."""
    return {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()} | BESIDE


def sharded_files():
    """Return the same with its weights in two files and an index."""
    files = demo_files()
    data = files.pop(WEIGHTS)
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    names, where = sorted(header.keys() - {"__metadata__"}), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file, entries, body = f"model-{number:05d}-of-00002.safetensors", {}, b""
        for name in part:
            first, last = header[name]["data_offsets"]
            entries[name] = header[name] | {"data_offsets": [len(body), len(body) + last - first]}
            body += numbers[first:last]
        head = json.dumps(entries).encode()
        files[file] = len(head).to_bytes(8, "little") + head + body
        where |= dict.fromkeys(part, file)
    files[f"{WEIGHTS}.index.json"] = json.dumps({"weight_map": where}).encode()
    return files


def own_cache(folder, monkeypatch):
    """Let the hub's cache be an empty one that may be filled from the hub; return its home."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE",
                 "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "5")
    return folder / "hf"


def snapshot(home, leave_out=()):
    """Put the demo model into a hub's cache, as the hub's library does; return its directory."""
    folder = home / "hub" / f"models--{NAME.replace('/', '--')}"
    directory = folder / "snapshots" / COMMIT
    directory.mkdir(parents=True)
    for path in DEMO.iterdir():
        if path.name not in leave_out:
            (directory / path.name).symlink_to(path)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return directory
