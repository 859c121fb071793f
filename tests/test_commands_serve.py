"""`tpimpi serve` as a user starts it: the real engine behind OpenAI's client, signals, mistakes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import httpx2
import openai
import pytest

from program import DEMO, GREEDY, TPIMPI, refused, run
from test_commands_kill import rank_processes
from tpimpi.commands import serve as command
from tpimpi.commands.command_line import parse
from tpimpi.errors import UserError
from tpimpi.serve.settings import most_body

SECONDS = 120


class Server:
    """A server that runs; `process` is its launcher."""

    def __init__(self, process, errors):
        self.process, self._errors = process, errors
        self.url = ""

    @property
    def errors(self):
        """What it has said."""
        return self._errors.read_text()

    def wait(self):
        """Wait until it takes requests."""
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"is served at (\S+) ", self.errors)):
            assert self.process.poll() is None and time.monotonic() < end, self.errors
            time.sleep(0.05)
        self.url = found[1]

    def client(self, **more):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **more)


@contextlib.contextmanager
def serving(mpirun, ranks, folder, *flags, wait=True):
    """Yield a Server of the demo model on so many ranks (0: without a launcher)."""
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    command = [*launcher, *TPIMPI, "serve", "--model", DEMO, "--threads", "1", *flags]
    errors = folder / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=file,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    server = Server(process, errors)
    try:
        if wait:
            server.wait()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module", params=[1, 2])
def server(request, mpirun, tmp_path_factory):
    with serving(mpirun, request.param, tmp_path_factory.mktemp("serve"), "--port", 0) as found:
        yield found


def test_the_greedy_text(server):
    client = server.client()
    length = {"max_tokens": 48, "temperature": 0}
    answer = client.completions.create(model="demo", prompt="ROMEO:", **length)
    assert answer.choices[0].text == GREEDY and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 48
    stream = client.completions.create(model="demo", prompt="ROMEO:", stream=True, **length)
    assert "".join(chunk.choices[0].text for chunk in stream) == GREEDY


def test_a_chat_and_what_it_found_again(server):
    client = server.client()
    messages = [{"role": "user", "content": "Speak to me of love, and of the moon. " * 8}]
    wanted = {"model": "demo", "messages": messages, "max_tokens": 8, "seed": 5, "logprobs": True}
    first = client.chat.completions.create(**wanted, top_logprobs=2)
    again = client.chat.completions.create(**wanted, top_logprobs=2)
    assert first.choices == again.choices
    assert again.usage.prompt_tokens_details.cached_tokens >= 64
    told = first.choices[0].logprobs.content
    text = b"".join(bytes(one.bytes) for one in told).decode()
    assert len(told) == 8 and text.strip() == first.choices[0].message.content.strip()
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in told)


def test_a_stop_text_and_several_texts(server):
    answer = server.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hail"}], n=4, max_tokens=60,
        stop=["e"], seed=1,
    )  # fmt: skip
    texts = [choice.message.content for choice in answer.choices]
    assert all("e" not in text for text in texts) and len(set(texts)) > 1


def test_an_answer_under_a_schema(server):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "name": {"type": "string", "maxLength": 9}},
        "required": ["age", "name"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "who", "schema": schema}}
    answer = server.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Who?"}], response_format=form,
        max_tokens=200, n=2, seed=2,
    )  # fmt: skip
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        found = json.loads(choice.message.content)
        assert set(found) == {"age", "name"} and isinstance(found["age"], int)


def test_a_call_that_must_be(server):
    parameters = {
        "type": "object", "properties": {"hour": {"enum": [1, 2, 3]}}, "required": ["hour"],
        "additionalProperties": False,
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "ring", "parameters": parameters}}
    stream = server.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Ring"}], tools=[tool], stream=True,
        tool_choice="required", parallel_tool_calls=False, max_tokens=200, seed=4,
    )  # fmt: skip
    chunks = [chunk.choices[0] for chunk in stream]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert calls[0].function.name == "ring" and chunks[-1].finish_reason == "tool_calls"
    assert json.loads("".join(call.function.arguments for call in calls))["hour"] in (1, 2, 3)


def test_what_the_engine_refuses(server):
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="and the context 512"):
        client.completions.create(model="demo", prompt="a b c " * 600)
    with pytest.raises(openai.BadRequestError, match="beyond the vocabulary of 1024"):
        client.completions.create(model="demo", prompt="A", logit_bias={"1024": 1})
    with pytest.raises(openai.BadRequestError, match="64 may wait"):
        client.completions.create(model="demo", prompt="A", n=65)


def test_a_client_that_leaves_makes_room(server):
    with httpx2.stream(
        "POST", f"{server.url}/v1/completions",
        json={"prompt": "A", "max_tokens": 500, "n": 8, "stream": True, "ignore_eos": True},
    ) as answer:  # fmt: skip
        next(answer.iter_lines())
    end = time.monotonic() + 20
    while (found := httpx2.get(f"{server.url}/v1/ranks").json())["running"]:
        assert time.monotonic() < end
    assert found["pages_used"] == 0


def test_figures_of_all_ranks(server):
    end = time.monotonic() + 20
    while not (ranks := httpx2.get(f"{server.url}/v1/ranks").json()["ranks"]):
        assert time.monotonic() < end
        time.sleep(0.1)
    text = httpx2.get(f"{server.url}/metrics").text
    for rank in range(len(ranks)):
        assert re.search(rf'tpimpi_rank_compute_seconds_total{{.*rank="{rank}"}} [0-9.]+', text)


def test_memory_stays_within_the_plan(server):
    context = server.client().models.list().data[0].model_extra["max_model_len"]
    start, item, end = '{"messages":[', '{"role":"user","content":""}', "]}"
    count = most_body(context) // (len(item) + 1) - 1
    body = start + ",".join([item] * count) + end
    for _ in range(3):
        answer = httpx2.post(f"{server.url}/v1/chat/completions", content=body.encode())
        assert answer.status_code == 400
    end = time.monotonic() + 20
    while not (ranks := httpx2.get(f"{server.url}/v1/ranks").json()["ranks"]):
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1.5)  # until figures are told anew
    httpx2.get(f"{server.url}/v1/ranks")
    time.sleep(1.5)
    ranks = httpx2.get(f"{server.url}/v1/ranks").json()["ranks"]
    assert all(rank["peak_memory_bytes"] <= rank["planned_memory_bytes"] for rank in ranks)


@pytest.mark.parametrize("ranks, number", [(0, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_lets_running_answers_end(mpirun, tmp_path, ranks, number):
    with serving(mpirun, ranks, tmp_path, "--port", 0) as server:
        stream = server.client().completions.create(
            model="demo", prompt="A", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(number)
        *_, last = chunks
        assert last.choices[0].finish_reason == "length"
        server.process.wait(20)
        assert "stopping: no more requests" in server.errors
        assert "Traceback" not in server.errors


def test_answers_that_do_not_end_in_time_are_told(mpirun, tmp_path):
    with serving(mpirun, 1, tmp_path, "--port", 0, "--grace", 0) as server:
        stream = server.client().completions.create(
            model="demo", prompt="A", max_tokens=500, n=8, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="being stopped"):
            list(chunks)
        server.process.wait(20)


def test_it_answers_while_it_loads(mpirun, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(mpirun, 1, tmp_path, "--port", port, wait=False) as server:
        end, seen = time.monotonic() + SECONDS, []
        while not seen or seen[-1] != 200:
            assert server.process.poll() is None and time.monotonic() < end, server.errors
            with contextlib.suppress(httpx2.TransportError):
                seen.append(httpx2.get(f"http://127.0.0.1:{port}/health").status_code)
        assert seen[0] == 503 and set(seen) == {503, 200}


def serve(mpirun, *flags, ranks=0):
    return run(mpirun, ranks, "serve", "--model", DEMO, *flags)


def test_an_address_in_use_ends_all_ranks(mpirun):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = serve(mpirun, "--port", port, ranks=2)
    refused(process, 2, f"--port {port} can't be listened at", "in use")


def test_mistakes(mpirun, tmp_path):
    empty, wrong = tmp_path / "keys", tmp_path / "certificate.pem"
    empty.write_text("\n \n")
    wrong.write_text("nothing")
    for words, *flags in (
        ("--insecure", "--host", "0.0.0.0", "--port", 0),
        ("has no key in it", "--port", 0, "--api-key-file", empty),
        ("can't be used", "--port", 0, "--ssl-certfile", wrong),
        ("longer than the model's 512", "--port", 0, "--context", 4096),
    ):
        refused(serve(mpirun, *flags), 2, words)


@pytest.mark.parametrize(
    "flags",
    [
        ["--api-key", "two words"], ["--api-key="], ["--served-model-name", " "],
        ["--allow-origin", "chat.example"], ["--port", "65536"], ["--max-batch", "0"],
        ["--queue", "0"], ["--grace", "-1"],
    ],
)  # fmt: skip
def test_flags_that_make_no_sense(flags):
    with pytest.raises(UserError, match=flags[0].rstrip("=")):
        parse(["serve", "--model", str(DEMO), *flags])


def test_a_rank_that_dies_ends_the_server_and_its_answers(mpirun, tmp_path):
    with serving(mpirun, 2, tmp_path, "--port", 0) as server:
        stream = server.client().completions.create(
            model="demo", prompt="A", max_tokens=500, n=8, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        chunks = iter(stream)
        next(chunks)
        begin = time.monotonic()
        os.kill(rank_processes(server.process)[1], signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx2.TransportError)):
            list(chunks)
        assert server.process.wait(20) == 1 and time.monotonic() - begin < 15
        assert "rank 1 on " in server.errors and "was killed" in server.errors


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setattr(command, "LIBRARIES", ("starlette", "no_such_library"))
    with pytest.raises(UserError, match="needs no_such_library: .* -m pip install"):
        command._opened(parse(["serve", "--model", str(DEMO)]).options)
