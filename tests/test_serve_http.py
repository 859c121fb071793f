"""Requests as HTTP has them: what is refused and how, and what asks for nothing."""

import contextlib
import socket

import pytest

from serving import CHAT, CONTEXT, HTTP, Cost, face, post, told
from tpimpi.serve.settings import most_body


@pytest.fixture(scope="module")
def server():
    with face() as (server, _):
        yield server


@pytest.mark.parametrize(
    "body, param, words",
    [
        (b"", None, ["no JSON"]),
        (b"{", None, ["no JSON"]),
        (b'{"messages": "\xff"}', None, ["no JSON"]),
        (b"[1]", None, ["no request"]),
        (b"[" * 100000, None, ["no JSON"]),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, ["no JSON"]),
        ({}, "messages", ["required"]),
        ({"messages": []}, "messages", ["at least 1"]),
        ({"messages": "hello"}, "messages", ["array"]),
        ({"messages": [{"role": "user"}]}, "messages", ["messages[0] has no content"]),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages", ["messages[0].role"]),
        ({"messages": [{"role": "user", "content": 3}]}, "messages", ["messages[0].content"]),
        ({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "a", "function": {"name": "f", "arguments": "[1"}}]}]}, "messages", ["no JSON"]),
        (CHAT | {"max_tokens": 0}, "max_tokens", ["greater than or equal to 1"]),
        (CHAT | {"max_tokens": 1.5}, "max_tokens", ["integer"]),
        (CHAT | {"max_tokens": True}, "max_tokens", ["integer"]),
        (CHAT | {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", ["one of them"]),
        (CHAT | {"temperature": "1"}, "temperature", ["number"]),
        (CHAT | {"top_p": 1.5}, "top_p", ["less than or equal to 1"]),
        (CHAT | {"n": 10**30}, "n", ["128"]),
        (CHAT | {"seed": 1 << 70}, "seed", ["less than"]),
        (CHAT | {"stop": [""]}, "stop", ["at least 1"]),
        (CHAT | {"stop": ["a"] * 17}, "stop", ["at most 16"]),
        (CHAT | {"logit_bias": {"a": 1}}, "logit_bias", ["match"]),
        (CHAT | {"logit_bias": {"1": 101}}, "logit_bias", ["100"]),
        (CHAT | {"top_logprobs": 3}, "top_logprobs", ["logprobs"]),
        (CHAT | {"stream_options": {}}, "stream_options", ["stream: true"]),
        (CHAT | {"stream": True, "stream_options": {"include": 1}}, "stream_options", ["unknown"]),
        (CHAT | {"logit_bias": {str(i): 1 for i in range(4097)}}, "logit_bias", ["4097 tokens"]),
        (CHAT | {"temprature": 1}, "temprature", ["unknown field"]),
        (CHAT | {"functions": [{"name": "f"}]}, "functions", ["use tools"]),
        (CHAT | {"reasoning_effort": "low"}, "reasoning_effort", ["chat_template_kwargs"]),
        (CHAT | {"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", ["elsewhere"]),
        (CHAT | {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", ["elsewhere"]),
        (CHAT | {"model": "other"}, "model", ["there is no model"]),
    ],
)  # fmt: skip
def test_chats_that_are_refused(server, body, param, words):
    answer = post(server, body)
    error = told(answer, 404 if param == "model" else 400, *words)
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [1 << 40]}, "prompt"),
        ({"prompt": [4000]}, "prompt"), ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [3] * CONTEXT}, "prompt"), ({"prompt": "A", "echo": True}, "echo"),
        ({"prompt": "A", "best_of": 3}, "best_of"), ({"prompt": "A", "suffix": "B"}, "suffix"),
        ({"prompt": "A", "logprobs": 21}, "logprobs"),
        ({"prompt": "A", "logprobs": True}, "logprobs"),
    ],
)  # fmt: skip
def test_completions_that_are_refused(server, body, param):
    assert told(post(server, body, "/v1/completions"), 400)["param"] == param


def test_fields_that_ask_for_nothing(server):
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
        "modalities": ["text"], "audio": None, "functions": [], "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "stop": None, "seed": None, "logit_bias": None,
    }  # fmt: skip
    assert post(server, CHAT | harmless).status_code == 200
    harmless = {"echo": False, "best_of": 1, "suffix": "", "user": "me"}
    assert post(server, {"prompt": "A"} | harmless, "/v1/completions").status_code == 200


def test_best_of_as_many_as_are_given_back(server):
    body = {"prompt": "A", "n": 2, "best_of": 2}
    assert len(post(server, body, "/v1/completions").json()["choices"]) == 2


def test_paths_and_methods_that_are_not_there(server):
    told(HTTP.get(server.url + "/v1/embeddings"), 404, "there is no GET /v1/embeddings")
    told(HTTP.get(server.url + "/v1/chat/completions"), 405, "doesn't take GET")
    told(HTTP.post(server.url + "/health"), 405)
    assert HTTP.head(server.url + "/health").status_code == 200


def test_a_huge_body(server):
    most = most_body(CONTEXT)
    told(post(server, b"x" * (most + 1)), 413, str(most))

    def parts():
        for _ in range(1 + most // 65536):
            yield b"x" * 65536

    told(HTTP.post(server.url + "/v1/completions", content=parts()), 413)
    assert post(server, CHAT).status_code == 200


@pytest.mark.parametrize(
    "path, start, item, end",
    [
        ("/v1/chat/completions", '{"messages":[', "1", "]}"),
        ("/v1/chat/completions", '{"messages":[', "{}", "]}"),
        ("/v1/chat/completions", '{"messages":[{"role":"user","content":[', "1", "]}]}"),
        ("/v1/chat/completions", '{"messages":[{"role":"user"}],"tools":[', "1", "]}"),
        ("/v1/chat/completions", '{"logit_bias":{', '"a%d":"x"', "}}"),
        ("/v1/chat/completions", '{"stream_options":{', '"a%d":1', "}}"),
        ("/v1/chat/completions", "{", '"a%d":1', "}"),
        ("/v1/completions", '{"prompt":[', "{}", "]}"),
        ("/v1/completions", '{"prompt":[', "-1", "]}"),
        ("/v1/completions", '{"prompt":[', '"a"', "]}"),
        ("/v1/completions", '{"prompt":[', "[1]", "]}"),
        ("/detokenize", '{"tokens":[', "-1", "]}"),
    ],
)  # fmt: skip
def test_a_body_with_many_mistakes_takes_no_longer_than_one(server, path, start, item, end):
    count = most_body(CONTEXT) // (len(item) + 4)
    body = start + ",".join(item % i if "%" in item else item for i in range(count)) + end
    cost = Cost()
    answer = post(server, body.encode(), path)
    assert cost.seconds() < 0.3
    assert answer.status_code == 400 and len(answer.content) < 1000


def test_a_body_that_does_not_come():
    with face(body_seconds=0.2) as (server, _):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]


def test_what_is_no_http(server):
    host, port = server.url.removeprefix("http://").split(":")
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"x" * 200000):
        with (
            socket.create_connection((host, int(port)), timeout=10) as connection,
            contextlib.suppress(ConnectionError),  # it may hang up before it has heard all
        ):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert HTTP.get(server.url + "/health").status_code == 200


def test_tokens_and_back(server):
    ids = post(server, {"prompt": "ROMEO: who?"}, "/tokenize").json()
    assert ids["count"] == len(ids["tokens"]) and ids["max_model_len"] == CONTEXT
    assert ids["tokens"][0] == 1
    plain = post(server, {"prompt": "ROMEO: who?", "add_special_tokens": False}, "/tokenize").json()
    assert ids["tokens"][1:] == plain["tokens"]
    assert post(server, {"tokens": ids["tokens"]}, "/detokenize").json() == {
        "prompt": "ROMEO: who?"
    }
    chat = post(server, CHAT, "/tokenize").json()
    back = post(server, {"tokens": chat["tokens"]}, "/detokenize").json()["prompt"]
    assert back == "User: Who is there?\nAssistant:"
    told(post(server, {}, "/tokenize"), 400, "either prompt or messages")
    told(post(server, {"tokens": [5000]}, "/detokenize"), 400, "beyond the vocabulary")
    assert post(server, {"prompt": ""}, "/tokenize").json()["tokens"] == [1]
    assert post(server, {"tokens": []}, "/detokenize").json() == {"prompt": ""}
