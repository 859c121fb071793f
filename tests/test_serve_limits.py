"""What a server holds for who only connects, or sends much: little, and not for ever."""

import contextlib
import gc
import json
import socket
import time

import httpx2
import pytest

from serving import face, script, until
from tpimpi.serve import body as body_module
from tpimpi.serve import connection
from tpimpi.serve.asked import Asked
from tpimpi.serve.connection import Connection
from tpimpi.serve.errors import ApiError
from tpimpi.serve.settings import most_body

HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def connected(server, data=b""):
    client = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)
    client.sendall(data)
    return client


def closes(client):
    """Tell whether the other side closes a connection, after what it has sent."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(4096):
            pass
    return True


@pytest.mark.parametrize("data", [b"", b"GET /hea", HEAD])
def test_who_sends_no_whole_request_is_left(monkeypatch, data):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with face() as (server, _), contextlib.closing(connected(server, data)) as client:
        assert closes(client)


def test_an_answer_may_take_longer_than_a_head(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    with face(script(first=0.8)) as (server, _):
        answer = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=20)
        assert answer.status_code == 200


def test_more_connections_than_files_are_closed(monkeypatch):
    with face() as (server, _), contextlib.ExitStack() as stack:
        monkeypatch.setattr(Connection, "most", 3)
        kept = [stack.enter_context(contextlib.closing(connected(server))) for _ in range(3)]
        time.sleep(0.1)
        assert closes(stack.enter_context(contextlib.closing(connected(server))))
        for client in kept:
            client.close()
        time.sleep(0.3)
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_long_bodies_share_what_there_is(monkeypatch):
    """Those that are being read; who has to wait is told so, and small ones pass."""
    monkeypatch.setattr(body_module, "HELD", 1)
    with face() as (server, service), contextlib.ExitStack() as stack:
        most = most_body(128)
        start = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {most}\r\n\r\n"
        )
        slow = stack.enter_context(
            contextlib.closing(connected(server, start.encode() + b" " * (most - 1000)))
        )
        time.sleep(0.3)
        long = json.dumps({"prompt": "a", "metadata": "x" * (most - 1000)})
        url = f"{server.url}/v1/completions"
        refused = httpx2.post(url, content=long)
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        assert httpx2.post(url, json={"prompt": "a"}).status_code == 200
        slow.close()
        time.sleep(0.3)
        assert httpx2.post(url, content=long).status_code == 200


def test_bytes_that_are_refused_are_not_counted():
    bodies = body_module.Bodies()
    bodies.grow(7, 10)
    with pytest.raises(ApiError, match="same time"):
        bodies.grow(4, 10)
    bodies.grow(3, 10)
    bodies.shrink(10)
    bodies.grow(10, 10)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a", "junk": [[]] * 9}]},
        ),
        ("/v1/completions", {"prompt": "a", "metadata": {"junk": [[]] * 9}}),
    ],
)
def test_an_answer_that_is_made_keeps_nothing_of_its_request(path, body):
    """As many of them may wait as the queue is long, each with a body of some hundred kilobytes."""
    with (
        face(script(first=1.0)) as (server, service),
        httpx2.stream(
            "POST", server.url + path, json=body | {"stream": True}, timeout=20
        ) as answer,
    ):
        until(lambda: service.texts)  # the head of the answer comes after that, too
        kept = [one for one in gc.get_objects() if isinstance(one, Asked)]
        assert [one.body.model_extra for one in kept] == [{}]
        assert all(getattr(kept[0].body, name) is None for name in kept[0].body.asked)
        assert "junk" not in repr(kept[0].body)
        assert answer.status_code == 200 and "DONE" in answer.read().decode()
