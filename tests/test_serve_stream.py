"""Answers that take long: pings, clients that leave, slow readers, many at once."""

import asyncio
import json
import socket
import time

import httpx2
import openai
import pytest

from serving import SAID, Cost, face, script, until

CHAT = {"messages": [{"role": "user", "content": "Who is there?"}]}
STREAMED = CHAT | {"stream": True}
PATH = "/v1/chat/completions"


def texts(lines):
    """Return the text of a stream's events, which must end as they should."""
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])


def test_pings_while_nothing_comes():
    with (
        face(script(first=0.7), ping_seconds=0.2) as (server, _),
        httpx2.stream("POST", server.url + PATH, json=STREAMED) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        lines = list(answer.iter_lines())
    assert 2 <= lines.count(": ping") <= 4
    assert lines.index(": ping") < next(i for i, line in enumerate(lines) if '"It"' in line)
    assert texts(lines) == SAID


def test_no_pings_while_something_comes():
    with (
        face(script(seconds=0.05), ping_seconds=0.3) as (server, _),
        httpx2.stream("POST", server.url + PATH, json=STREAMED) as answer,
    ):
        assert ": ping" not in list(answer.iter_lines())


@pytest.mark.parametrize("body", [STREAMED, CHAT, CHAT | {"n": 3}, STREAMED | {"n": 3}])
@pytest.mark.parametrize("first", [0, 30])
def test_a_client_that_leaves_ends_the_work(body, first):
    with face(script(seconds=0.05, first=first)) as (server, service):
        host, port = server.url.removeprefix("http://").split(":")
        content = json.dumps(body).encode()
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                % (PATH.encode(), len(content), content)
            )
            until(lambda: len(service.texts) == body.get("n", 1))
            if body.get("stream"):
                assert connection.recv(10).startswith(b"HTTP/1.1 ")
        until(lambda: all(text.cancelled.is_set() for text in service.texts), seconds=2)
        metrics = httpx2.get(server.url + "/metrics").text
        assert ('status="499"' in metrics) != bool(body.get("stream"))


def test_openais_client_that_closes_a_stream():
    with face(script(seconds=0.05)) as (server, service):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x")
        stream = client.chat.completions.create(model="demo", **STREAMED)
        next(iter(stream))
        stream.close()
        until(lambda: service.texts[0].cancelled.is_set(), seconds=2)


def test_openais_client_whose_patience_ends():
    with face(script(first=30)) as (server, service):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=0.5, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="demo", **CHAT)
        until(lambda: service.texts[0].cancelled.is_set(), seconds=2)


def test_a_reader_that_sleeps_does_not_hold_up_others():
    with face(script(said=SAID * 2000)) as (server, service):
        host, port = server.url.removeprefix("http://").split(":")
        content = json.dumps(STREAMED | {"max_tokens": 1 << 20}).encode()
        with socket.create_connection((host, int(port)), timeout=10) as sleeper:
            sleeper.sendall(
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                % (PATH.encode(), len(content), content)
            )
            until(lambda: service.texts)
            begin = time.monotonic()
            answer = httpx2.post(server.url + PATH, json=CHAT | {"max_tokens": 5}, timeout=20)
            assert answer.status_code == 200 and time.monotonic() - begin < 10


def test_many_streams_at_once():
    async def one(client, number):
        body = STREAMED | {"max_tokens": number}
        async with client.stream("POST", PATH, json=body) as answer:
            lines = [line async for line in answer.aiter_lines()]
        return texts(lines)

    async def all_of_them(url):
        limits = httpx2.Limits(max_connections=40)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
            return await asyncio.gather(*(one(client, number) for number in range(1, 17)))

    with face(script(seconds=0.002)) as (server, service):
        found = asyncio.run(all_of_them(server.url))
    assert all(SAID.startswith(text) for text in found)
    assert found == sorted(found, key=len) and found[-1] == SAID


def test_the_server_takes_little_of_a_token():
    """Eight streams: what the server's thread computes for a token is a small part of 2 ms."""
    said = SAID * 20
    with face(script(said=said, seconds=0.004)) as (server, service):
        post = {"json": STREAMED | {"n": 8, "max_tokens": 100}, "timeout": 60}
        httpx2.post(server.url + PATH, **post)
        cost = Cost()
        answer = httpx2.post(server.url + PATH, **post)
        seconds = cost.seconds()
    tokens = answer.text.count('"content"') - 8
    assert tokens > 500
    assert seconds / tokens < 1e-3
