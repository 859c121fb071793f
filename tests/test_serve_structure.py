"""Answers under a schema and calls of tools, as OpenAI's client gets them."""

import json

import openai
import pytest

from serving import face, script

MESSAGES = [{"role": "user", "content": "What is the weather in Verona?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Verona"}}\n</tool_call>'


def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(server, **more):
    return client(server).chat.completions.create(model="demo", messages=MESSAGES, **more)


@pytest.fixture(scope="module")
def calls():
    """A server whose model calls a tool twice after some words."""
    with face(script(said=f"Let me see. {CALL}\n{CALL}")) as (server, service):
        yield server, service


def test_calls_come_back_parsed(calls):
    server, service = calls
    answer = ask(server, tools=[WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "Let me see."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"] * 2
    for call in choice.message.tool_calls:
        assert json.loads(call.function.arguments) == {"city": "Verona"} and call.id
    assert service.texts[-1].constraint is not None


def test_streamed_calls_are_the_same(calls):
    server, _ = calls
    content, found, reasons = "", {}, []
    for chunk in ask(server, tools=[WEATHER], stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            one = found.setdefault(call.index, {"name": "", "arguments": ""})
            one["name"] += call.function.name or ""
            one["arguments"] += call.function.arguments or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
    assert content.strip() == "Let me see." and reasons == ["tool_calls"]
    assert [one["name"] for one in found.values()] == ["weather"] * 2
    assert all(json.loads(one["arguments"]) == {"city": "Verona"} for one in found.values())


def test_a_call_that_is_cut_off(calls):
    server, _ = calls
    answer = ask(server, tools=[WEATHER], max_tokens=40)
    assert answer.choices[0].finish_reason == "length"


def test_no_tools_are_used_where_none_may_be(calls):
    server, service = calls
    answer = ask(server, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert CALL in answer.choices[0].message.content
    assert service.texts[-1].constraint is None


def test_each_text_has_a_constraint_of_its_own(calls):
    server, service = calls
    ask(server, n=3, response_format={"type": "json_object"})
    constraints = [text.constraint for text in service.texts[-3:]]
    assert len(set(map(id, constraints))) == 3 and None not in constraints
    client(server).completions.create(
        model="demo", prompt="A", extra_body={"response_format": {"type": "json_object"}}
    )
    assert service.texts[-1].constraint is not None


@pytest.mark.parametrize(
    "more, param",
    [
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nothing"}}}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_structures_that_are_refused(calls, more, param):
    server, service = calls
    before = len(service.texts)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **more)
    assert caught.value.param == param and len(service.texts) == before
