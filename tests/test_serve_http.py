"""The server as HTTP has it: who may come in, what is refused and how, what goes on meanwhile."""

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
import threading
import time

import httpx2
import pytest

from serving import CONTEXT, SAID, Cost, face, script, until
from tpimpi import status
from tpimpi.errors import UserError
from tpimpi.serve.face import Face
from tpimpi.serve.page import _page
from tpimpi.serve.settings import FaceSettings, most_body

HTTP = httpx2.Client(timeout=20)
CHAT = {"messages": [{"role": "user", "content": "Who is there?"}]}


def post(server, body, path="/v1/chat/completions", **more):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(server.url + path, content=content, **more)


def told(answer, code, *words):
    """Check that an answer is an error in OpenAI's form; return it."""
    assert answer.status_code == code, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    return error


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


# Who may come in.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "[::1]", "10.1.2.3", "a.localhost"])
def test_this_machines_names(server, host):
    assert post(server, CHAT, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "[::", "localhost.evil"]
)
def test_a_name_that_was_made_to_lead_here(server, host):
    error = told(post(server, CHAT, headers={"Host": host}), 403, "not this machine's name")
    assert error["code"] == "wrong_host"


def test_pages_of_other_origins(server):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        answer = post(server, CHAT, headers={"Origin": origin})
        told(answer, 403, "may not use this server")
        assert "access-control-allow-origin" not in answer.headers
    ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = HTTP.options(server.url + "/v1/chat/completions", headers=ask)
    assert answer.status_code == 403
    assert post(server, CHAT, headers={"Origin": server.url}).status_code == 200


def test_an_origin_that_is_let_in():
    with face(origins=("https://chat.example",), keys=("secret",)) as (server, _):
        origin = {"Origin": "https://chat.example"}
        wanted = origin | {"Access-Control-Request-Headers": "authorization,content-type"}
        answer = HTTP.options(server.url + "/v1/chat/completions", headers=wanted)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        answer = post(server, CHAT, headers=origin)
        assert answer.status_code == 401  # which the page may read, and ask for the key
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        answer = post(server, CHAT, headers=origin | {"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        told(post(server, CHAT, headers={"Origin": "https://other.example"}), 403)


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic one", "one", "Bearer ONE"]
)
def test_keys(given):
    with face(keys=("one", "two")) as (server, service):
        headers = {} if given is None else {"Authorization": given}
        for path in ("/v1/models", "/metrics", "/v1/ranks", "/nowhere"):
            answer = HTTP.get(server.url + path, headers=headers)
            assert told(answer, 401, "Authorization: Bearer")["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        told(post(server, CHAT, headers=headers), 401)
        assert not service.texts
        assert HTTP.get(server.url + "/health").status_code == 200
        for key in ("one", "two"):
            assert post(server, CHAT, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    with face(certificate=str(certificate), private_key=str(key)) as (server, _):
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=certificate)
        answer = httpx2.post(server.url + "/v1/chat/completions", json=CHAT, verify=trust)
        assert answer.json()["choices"][0]["message"]["content"] == SAID
        answer = httpx2.post(server.url + "/v1/chat/completions", json=CHAT, verify=trust,
                             headers={"Origin": server.url})  # fmt: skip
        assert answer.status_code == 200
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", other], check=True, capture_output=True)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-in", other, "-aes128", "-passout", "pass:x", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    for wrong in (other, locked, certificate, tmp_path / "nothing.pem", tmp_path):
        with pytest.raises(UserError, match="--ssl-"):
            Face(FaceSettings(port=0, certificate=str(certificate), private_key=str(wrong))).open()


# Where it listens.


def test_an_address_in_use(server):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port {port} can't be listened at"):
        Face(FaceSettings(port=port)).open()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "x" * 300])
def test_a_host_that_is_not_this_one(host):
    with pytest.raises(UserError, match="--host"):
        Face(FaceSettings(host=host, port=0, keys=("k",))).open()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_key(host):
    with pytest.raises(UserError, match="--insecure"):
        Face(FaceSettings(host=host, port=0)).open()


def test_all_addresses_at_one_port():
    with face(host="localhost") as (server, _):
        assert HTTP.get(server.url + "/health").status_code == 200


# How it goes.


def test_loading():
    with face(loading=True) as (server, service):
        status.current.begin("cutting the shards")
        status.current.figures, status.current.percent = "3 GiB of 10 GiB", 30
        answer = HTTP.get(server.url + "/health")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        health = answer.json()
        assert (health["status"], health["doing"]) == ("loading", "cutting the shards")
        assert (health["progress"], health["fraction"]) == ("3 GiB of 10 GiB", 0.3)
        assert health["ranks"][0]["doing"] == "cutting the shards"
        error = told(post(server, CHAT), 503, "cutting the shards (3 GiB of 10 GiB)")
        assert error["code"] == "loading"
        told(HTTP.get(server.url + "/v1/models"), 503)
        assert HTTP.get(server.url + "/metrics").status_code == 200
        status.current.begin("computing")
        assert HTTP.get(server.url + "/health").json()["fraction"] is None


def test_a_full_queue():
    with face(script(seconds=0.05, most=2)) as (server, service):
        threads = [threading.Thread(target=post, args=(server, CHAT)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(service.texts) == 2)
        answer = post(server, CHAT)
        assert told(answer, 429, "2 texts wait already")["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
        # Of several texts none is made where not all can be.
        told(post(server, CHAT | {"n": 2, "stream": True}), 429)
        for thread in threads:
            thread.join()
        until(lambda: all(text.ended.is_set() for text in service.texts))
        assert post(server, CHAT).status_code == 200


def test_an_engine_that_has_ended():
    with face() as (server, service):
        service.failed = "rank 1 on old-laptop was killed"
        assert told(post(server, CHAT), 503, "rank 1 on old-laptop")["code"] == "engine_ended"
        server.end(RuntimeError("rank 1 has died"))
        told(post(server, CHAT), 503, "rank 1 has died")
        health = HTTP.get(server.url + "/health")
        assert health.status_code == 503 and health.json()["status"] == "ended"


def test_stopping_ends_what_runs_and_tells_it():
    with face(script(seconds=0.1)) as (server, service):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(post(server, CHAT)))
        thread.start()
        until(lambda: service.texts)
        server.stop(seconds=0)
        thread.join()
        assert told(answers[0], 503, "being stopped")["code"] == "server_stopping"
        told(post(server, CHAT), 503, "being stopped")
        assert HTTP.get(server.url + "/health").json() == {"status": "stopping"}
    with pytest.raises(httpx2.ConnectError):
        HTTP.get(server.url + "/health")


def test_closing_lets_clients_have_the_last_of_their_answers():
    answers = []
    with face(script(seconds=0.02)) as (server, service):
        thread = threading.Thread(target=lambda: answers.append(post(server, CHAT)))
        thread.start()
        until(lambda: service.texts)
    thread.join()
    assert answers[0].json()["choices"][0]["message"]["content"] == SAID


def test_metrics(server):
    post(server, CHAT | {"stream": True})
    post(server, {"prompt": 3}, "/v1/completions")
    HTTP.get(server.url + "/some/secret/path")
    text = HTTP.get(server.url + "/metrics").text
    for line in (
        "tpimpi_requests_running 1.0", "tpimpi_requests_waiting 0.0", "tpimpi_batch_max 8.0",
        "tpimpi_kv_pages_used 7.0", "tpimpi_prompt_tokens_total 50.0",
        'tpimpi_rank_disk_wait_seconds_total{host="here",rank="0"} 0.5',
        'tpimpi_http_requests_total{path="/v1/completions",status="400"}',
        'tpimpi_http_requests_total{path="other",status="404"}',
    ):  # fmt: skip
        assert line in text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts["tpimpi_first_token_seconds_count"]) >= 1
    assert float(counts["tpimpi_token_seconds_count"]) >= 10
    assert "secret" not in text


def test_ranks(server):
    found = HTTP.get(server.url + "/v1/ranks").json()
    assert found["max_batch"] == 8 and found["ranks"][0]["host"] == "here"


def test_the_access_log_has_no_prompts(tmp_path):
    log = tmp_path / "log.jsonl"
    with face(access_log=str(log)) as (server, _):
        answer = post(server, {"messages": [{"role": "user", "content": "hush"}], "user": "hush"})
        post(server, CHAT | {"stream": True})
        post(server, {"messages": "hush", "hush": 1})
        HTTP.get(server.url + "/hush?hush=hush", headers={"Authorization": "hush"})
    text = log.read_text()
    assert "hush" not in text and SAID not in text
    lines = [json.loads(line) for line in text.splitlines()]  # as requests ended
    (stream,) = (line for line in lines if line.get("stream"))
    chat, refused, nowhere = (line for line in lines if line is not stream)
    assert chat["id"] == answer.headers["x-request-id"]
    assert (chat["method"], chat["path"], chat["status"]) == ("POST", "/v1/chat/completions", 200)
    assert chat["client"] == "127.0.0.1" and chat["model"] == "demo"
    assert chat["completion_tokens"] > 0 and chat["finish_reason"] == "stop"
    assert stream["completion_tokens"] == chat["completion_tokens"]
    assert (refused["status"], nowhere["path"]) == (400, "other")
    assert time.strptime(chat["time"][:19], "%Y-%m-%dT%H:%M:%S")


def test_a_log_that_cant_be_written_does_not_end_the_server(capfd):
    with face(access_log="/dev/full") as (server, _):
        assert [post(server, CHAT).status_code for _ in range(3)] == [200] * 3
    assert capfd.readouterr().err.count("the access log can't be written any more") == 1


def test_the_page_may_run_its_own_script_only(server, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    script = "<script>alert('</'+'b>')</script>"
    page.write_text(f"<!doctype html><style>b {{}}</style>{script}", encoding="utf-8")
    monkeypatch.setattr("tpimpi.serve.page.PAGE", page)
    _page.cache_clear()
    answer = HTTP.get(server.url)
    _page.cache_clear()
    assert answer.text == page.read_text() and answer.headers["content-type"].startswith(
        "text/html"
    )
    digest = base64.b64encode(hashlib.sha256(b"alert('</'+'b>')").digest()).decode()
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["script-src"] == f"'sha256-{digest}'" and policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
