"""How a server goes: loading, full, stopping, ended; what it counts and writes down of that."""

import json
import threading
import time

import httpx2
import pytest

from serving import CHAT, HTTP, SAID, face, post, script, told, until
from tpimpi import status


@pytest.fixture(scope="module")
def server():
    with face() as (server, _):
        yield server


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
