"""Whatever is sent: no 5xx, no hang, an error in the form that the description says."""

import json

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving import face
from tpimpi.serve import answers

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip
LABELS = [
    "GET /health", "GET /metrics", "GET /v1/models", "GET /v1/models/{name}", "POST /detokenize",
    "POST /tokenize", "POST /v1/chat/completions", "POST /v1/completions",
]  # fmt: skip
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def http():
    """A client of a server that runs as long as these tests do."""
    with face() as (server, _), httpx2.Client(base_url=server.url, timeout=10) as client:
        yield client


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", LABELS)
def test_what_the_description_says(http, label, mode):
    schema = schemathesis.openapi.from_url(str(http.base_url.join("/openapi.json")))
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    assert sorted(operations) == LABELS

    @QUICK
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(checks=CHECKS, timeout=10)

    if operations[label].body or mode == GenerationMode.POSITIVE:
        check()
    else:  # nothing can be wrong in what has no parts
        assert label.startswith("GET ")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
GOOD = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who is there?"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "nobody"},
        ],
        "model": "demo", "n": 2, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
        "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "seed": 3, "stop": ["x", "y"], "stop_token_ids": [5], "logit_bias": {"3": 4},
        "logprobs": True, "top_logprobs": 2, "stream": False, "stream_options": None,
        "response_format": {"type": "text"}, "tools": None, "tool_choice": None, "user": "me",
        "documents": [{"title": "a", "text": "b"}], "chat_template_kwargs": {"thinking": True},
    },
    "/v1/completions": {
        "prompt": ["A", "B"], "model": "demo", "n": 2, "max_tokens": 3, "logprobs": 2, "stop": "x",
        "echo": False, "best_of": None, "suffix": None, "stream": False, "seed": 1,
        "logit_bias": {"3": 4}, "stop_token_ids": [4],
    },
    "/tokenize": {"prompt": "A", "add_special_tokens": True, "model": "demo"},
    "/detokenize": {"tokens": [1, 2, 3], "model": "demo"},
}  # fmt: skip


def places(value, path=()):
    """Yield the way to each part of a body."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, part in inner:
        yield from places(part, (*path, key))


def changed(value, path, new):
    """Return a body with another value, or nothing, at a place."""
    if not path:
        return new
    copy = value.copy()
    if len(path) == 1 and new is changed:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def spoiled(draw):
    """Return (path, body): one that is right but for one or two places."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body = GOOD[path]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(places(body))))
        new = draw(ANY | st.just(changed)) if place else draw(ANY)
        body = changed(body, place, new)
    if isinstance(body, dict) and draw(st.booleans()):
        body = body | {"stream": True}
    return path, body


@settings(QUICK, max_examples=250)
@given(sent=spoiled())
def test_bodies_that_are_nearly_right(http, sent):
    path, body = sent
    answer = http.post(path, content=json.dumps(body).encode("utf-8", "surrogatepass"))
    assert answer.status_code in (200, 400, 404, 429), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@settings(QUICK, max_examples=100)
@given(path=st.sampled_from(sorted(GOOD)), data=st.binary(max_size=200))
def test_bodies_of_any_bytes(http, path, data):
    assert http.post(path, content=data).status_code in (200, 400)


def test_the_right_bodies_are_right(http):
    for path, body in GOOD.items():
        assert http.post(path, json=body).status_code == 200
    assert http.get("/health").json() == {"status": "ok"}


def test_events_are_as_described(http):
    chunks = {
        "/v1/chat/completions": TypeAdapter(answers.ChatChunk),
        "/v1/completions": TypeAdapter(answers.CompletionChunk),
    }
    for path, kind in chunks.items():
        body = GOOD[path] | {"stream": True, "stream_options": {"include_usage": True}}
        lines = http.post(path, json=body).text.split("\n\n")
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events.pop() == "[DONE]" and len(events) > 5
        for event in events:
            kind.validate_json(event, extra="forbid")
