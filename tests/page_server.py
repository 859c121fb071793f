"""A server that imitates `tpimpi serve` for the tests of its page; a test sets what it answers."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[1] / "tpimpi" / "serve" / "page.html"


def policy(page: str) -> str:
    """Return the policy under which the page runs: its one script and style, by hash."""

    def digest(tag: str) -> str:
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        return base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
        f"style-src 'sha256-{digest('style')}'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


class PageServer(ThreadingHTTPServer):
    """Serve the page on a free port of loopback, and answer as the attributes say."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pieces = [
            "Hello",
            " there.",
        ]  # of the answer; a number among them is a pause in seconds
        self.refusal = None  # (status, sentence, code) in place of an answer
        self.dies_after = None  # pieces after which the connection ends without a word
        self.fails_after = None  # pieces after which an error comes in the stream
        self.finish = "stop"
        self.loading = None  # what /health tells with a 503
        self.key = None  # the API key that is demanded
        self.begins_after = 0.0  # seconds of silence and pings before the first piece
        self.requests = []  # the bodies of what was asked
        self.left = threading.Event()  # a client has closed its connection in the middle
        self.tokens, self.began = 0, time.monotonic()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Say nothing of clients that left: `left` tells the test."""

    def close(self):
        self.shutdown()
        self.server_close()

    def ranks(self) -> dict:
        """Return figures of two unequal ranks, which are idle for a tenth of the time."""
        s = time.monotonic() - self.began
        figures = [
            ("laptop", 0.55, 0.15, 0.20, 0.04, 1_288_490_188, None),
            ("<b>old</b>-laptop", 0.62, 0.22, 0.06, 0.0, 2_576_980_377, 3 << 30),
        ]
        names = ("compute_seconds", "disk_wait_seconds", "network_seconds", "late_seconds")
        return {
            "running": 1, "waiting": 0, "max_batch": 8, "pages": 512, "pages_used": 37,
            "pages_cached": 120, "generated_tokens": int(s * 12),
            "ranks": [
                {
                    "rank": rank, "host": host,
                    **{name: part * s for name, part in zip(names, parts, strict=True)},
                    "idle_seconds": 0.1 * s, "peak_memory_bytes": peak,
                    "planned_memory_bytes": 1_503_238_553, "budget_bytes": budget,
                }
                for rank, (host, *parts, peak, budget) in enumerate(figures)
            ],
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One connection, one request: the page may close it at any time."""

    def log_message(self, *_):
        """Keep the tests' output clean."""

    def reply(self, status: int, body: dict | bytes, kind="application/json", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def admitted(self) -> bool:
        if self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        self.reply(401, {"error": {"message": "This server wants an API key."}})
        return False

    def do_GET(self):
        server = self.server
        if self.path == "/":
            page = PAGE.read_bytes()
            rule = policy(page.decode())
            self.reply(200, page, "text/html; charset=utf-8", Content_Security_Policy=rule)
        elif self.path == "/health":
            self.reply(503 if server.loading else 200, server.loading or {"status": "ok"})
        elif self.admitted():
            if self.path == "/v1/models":
                self.reply(200, {"data": [{"id": "llama-3.2-3b", "object": "model"}]})
            elif self.path == "/v1/ranks":
                self.reply(200, server.ranks())
            else:
                self.reply(404, {"error": {"message": "There is nothing here."}})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.admitted():
            return
        server.requests.append(body)
        if server.refusal:
            status, sentence, code = server.refusal
            self.reply(status, {"error": {"message": sentence, "code": code}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.stream(server)
        except (BrokenPipeError, ConnectionResetError):
            server.left.set()

    def event(self, data: dict | str):
        text = data if isinstance(data, str) else json.dumps(data)
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def stream(self, server: PageServer):
        until = time.monotonic() + server.begins_after
        while time.monotonic() < until:
            self.wfile.write(b": ping\n\n")
            time.sleep(0.05)
        made = 0
        for piece in server.pieces:
            if made == server.dies_after:
                return
            if made == server.fails_after:
                self.event({"error": {"message": "Rank 1 on old-laptop has died."}})
                return
            if isinstance(piece, float):
                time.sleep(piece)
                continue
            made += 1
            self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": server.finish}]})
        usage = {
            "prompt_tokens": 40, "completion_tokens": made,
            "prompt_tokens_details": {"cached_tokens": 32},
        }  # fmt: skip
        self.event({"choices": [], "usage": usage})
        self.event("[DONE]")
