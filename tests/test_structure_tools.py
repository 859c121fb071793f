"""Calls of tools: which may come, in the form that the template teaches, and how they are told."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_structure import asked, written
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.structure.calls import ToolCallParser, parse_tool_calls
from tpimpi.structure.forms import HERMES, LLAMA, MISTRAL, tool_form
from tpimpi.structure.request import structure_of
from vocabularies import DEMO, changed

PLACE = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 6}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "get_time"}},
    {"type": "function", "function": {"name": "get", "parameters": {"properties": {}}}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = '"name": "get_weather", "KEY": {"city": "Rome", "unit": "c"}}'
FORMS = {
    "hermes": (HERMES, "<tool_call>\n{" + CALL + "\n</tool_call>"),
    "mistral": (MISTRAL, "[TOOL_CALLS] [{" + CALL + "]"),
    "llama": (LLAMA, "{" + CALL),
}
TEXTS = {
    name: text.replace("KEY", form.key) for name, (form, text) in FORMS.items()
}  # as each model writes one call


@pytest.fixture(scope="module")
def demo():
    config = ModelConfig.from_directory(DEMO)
    return load_tokenizer(DEMO, config), config


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Return the demo's (tokenizer, config) with the marks of all forms as special tokens."""
    folder = tmp_path_factory.mktemp("marked")
    names = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"]
    settings = {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": names}
    config = changed(folder, settings)
    tokenizer = load_tokenizer(folder, config)
    assert {"[TOOL_CALLS]", "<|python_tag|>"} <= set(tokenizer.special_ids)
    return tokenizer, config


def taken(model, structure, text):
    """Let a model write a text, token by token; return whether it may end there."""
    tokenizer, config = model
    marks = [mark for form, _ in FORMS.values() for mark in (form.opening, form.closing) if mark]
    first = tokenizer.encode("x", add_bos=False)  # so that no blank is put before the text
    ids = tokenizer.encode("x" + text, add_bos=False)
    if len(ids) < len(first) or ids[: len(first)] != first:
        ids = tokenizer.encode(text, add_bos=False)
    else:
        ids = ids[len(first) :]
    assert "".join(mark for mark in marks if mark in text) or ids
    for at, token in enumerate(ids):
        assert structure.allowed()[token], tokenizer.decode(ids[:at])
        structure.accept(token)
    return bool(structure.allowed()[list(config.eos_token_ids)].all())


def check_calls(calls, parameters=None):
    for call in calls:
        assert call["type"] == "function" and len(call["id"]) >= 9
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        if name == "get_weather":
            jsonschema.validate(arguments, PLACE)
        else:
            assert name in ("get_time", "get") and isinstance(arguments, dict)


@pytest.mark.parametrize("kind", ["demo", "marked"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", range(3))
def test_a_random_model_calls_what_it_must(request, kind, form, choice, seed):
    model = request.getfixturevalue(kind)
    form = FORMS[form][0].with_ids(model[0].special_ids)
    structure = structure_of(
        *model, tools=TOOLS[:2], tool_choice=choice, parallel_tool_calls=False, form=form
    )
    text, ended = written(model, structure, seed)
    assert ended
    content, calls = parse_tool_calls(text, TOOLS, form)
    assert content is None and len(calls) == 1
    assert choice == "required" or calls[0]["function"]["name"] == "get_weather"
    check_calls(calls)


@pytest.mark.parametrize("kind", ["demo", "marked"])
@pytest.mark.parametrize("form", FORMS)
def test_text_until_a_call_begins_then_only_a_call(request, kind, form):
    model = request.getfixturevalue(kind)
    text, form = TEXTS[form], FORMS[form][0].with_ids(model[0].special_ids)
    before = "" if form.bare else "Let me [look], {a} < b:\n"
    structure = structure_of(*model, tools=TOOLS, form=form)
    opening = text[: text.index("{")] if not form.bare else '{"name"'
    assert form.bare or taken(model, structure, before)
    assert not taken(model, structure, opening)
    narrow = np.flatnonzero(structure.allowed())
    told = {model[0].decode([narrow[0], i])[len(model[0].decode([narrow[0]])) :] for i in narrow}
    assert all(set(piece) <= set(' \n\t{[":') for piece in told), told
    assert taken(model, structure, text.removeprefix(opening))
    content, calls = parse_tool_calls(before + text.replace(form.opening, "")
                                      if form.hidden else before + text, TOOLS, form)  # fmt: skip
    if form.id_of(form.closing) is None:
        assert (content or "").rstrip() == before.rstrip()
    assert [call["function"]["name"] for call in calls] == ["get_weather"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Rome", "unit": "c"}


def test_a_mark_that_is_one_token_with_a_text(tmp_path):
    """Qwen's marks are added tokens that are not special."""
    marks = {str(1024 + i): {"content": mark, "special": False}
             for i, mark in enumerate(["<tool_call>", "</tool_call>"])}  # fmt: skip
    config = changed(tmp_path, {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": marks})
    tokenizer = load_tokenizer(tmp_path, config)
    form = tool_form("<tool_call>", tokenizer.special_ids)
    structure = structure_of(tokenizer, config, tools=TOOLS, form=form)
    assert form.hidden == () and taken((tokenizer, config), structure, "Well, ")
    structure.accept(1024)
    assert not structure.allowed()[[1024, 1025, *config.eos_token_ids]].any()
    body = TEXTS["hermes"].removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert not taken((tokenizer, config), structure, body)
    assert structure.allowed()[1025]
    structure.accept(1025)
    ids = [1024, *tokenizer.encode(body, add_bos=False), 1025]
    assert [c["function"]["name"] for c in parse_tool_calls(tokenizer.decode(ids), TOOLS)[1]] == [
        "get_weather"
    ]


def test_a_bare_call_behind_its_mark(marked):
    tokenizer, config = marked
    form = LLAMA.with_ids(tokenizer.special_ids)
    structure = structure_of(tokenizer, config, tools=TOOLS, form=form)
    assert taken(marked, structure, "Well: ")
    structure.accept(form.id_of(form.opening))
    assert taken(marked, structure, TEXTS["llama"]) and structure.complete


@pytest.mark.parametrize("text", ['{"names": [1]}', '{"a": 1}', "Hello.", '{ "nam', " {}"])
def test_other_json_than_a_call_is_text(demo, text):
    structure = structure_of(*demo, tools=TOOLS, form=LLAMA)
    assert taken(demo, structure, text)
    assert parse_tool_calls(text, TOOLS, LLAMA) == (text, [])


@pytest.mark.parametrize("form", ["hermes", "mistral"])
def test_several_calls(demo, form):
    first, form = TEXTS[form], FORMS[form][0]
    second = '{"name": "get_time", "arguments": {}}'
    both = (
        f"{first}\n<tool_call>\n{second}\n</tool_call>"
        if form is HERMES
        else f"{first[:-1]}, {second}]"
    )
    assert taken(demo, structure_of(*demo, tools=TOOLS, tool_choice="required", form=form), both)
    calls = parse_tool_calls(both, TOOLS, form)[1]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
    assert len({call["id"] for call in calls}) == 2
    one = structure_of(
        *demo, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, form=form
    )
    assert taken(demo, one, first) and one.complete


def test_none_means_none_and_an_answer_may_have_a_schema_beside_tools(demo):
    assert structure_of(*demo, tools=TOOLS, tool_choice="none") is None
    wanted = asked({"enum": ["yes", "no"]})
    for text in ('"yes"', TEXTS["hermes"]):
        assert taken(demo, structure_of(*demo, wanted, TOOLS), text)
    assert not structure_of(*demo, wanted, TOOLS, "none").allowed()[demo[0].encode("<")[-1]]
    with pytest.raises(UserError, match="leave one of them out"):
        structure_of(*demo, wanted, TOOLS, form=LLAMA)


def test_without_an_end_token_a_call_ends_the_text_and_text_does_not(demo):
    model = demo[0], replace(demo[1], eos_token_ids=())
    structure = structure_of(*model, tools=TOOLS[:2], tool_choice="required")
    text, ended = written(model, structure, 1)
    assert ended and len(parse_tool_calls(text, TOOLS)[1]) == 1
    free = structure_of(*model, tools=TOOLS)
    for token in demo[0].encode("some text", add_bos=False):
        free.accept(token)
        assert not free.complete


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_tell_the_same_as_the_whole(form, data):
    text, form = TEXTS[form], FORMS[form][0]
    before = "" if form.bare else data.draw(st.text("a <to[{", max_size=8)) + "."
    text = before + text[: data.draw(st.integers(0, len(text)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    parser, deltas = ToolCallParser(form), []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        deltas += parser.push(text[start:stop])
    deltas += parser.finish()
    content, calls = "", []
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls) and call["function"]["name"]
                calls.append([call["function"]["name"], ""])
            else:
                assert call["function"]["arguments"]
                calls[call["index"]][1] += call["function"]["arguments"]
    told, whole = parse_tool_calls(text, TOOLS, form)
    assert (content or None) == told
    assert calls == [list(call["function"].values()) for call in whole]
    assert parser.called == len(calls)


def test_a_name_comes_first_and_arguments_as_they_are_written():
    parser = ToolCallParser(HERMES)
    deltas = [parser.push(letter) for letter in "Hm. " + TEXTS["hermes"]]
    flat = [delta for some in deltas for delta in some]
    parts = [delta["tool_calls"][0] for delta in flat if "tool_calls" in delta]
    assert parts[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert parts[0]["id"].startswith("call_") and parts[0]["type"] == "function"
    assert all(set(part) == {"index", "function"} for part in parts[1:])
    assert len(parts) > 20
    said = "".join(part["function"]["arguments"] for part in parts)
    assert json.loads(said) == {"city": "Rome", "unit": "c"}


def test_a_mark_without_text_is_known_by_its_id():
    form = MISTRAL.with_ids({"[TOOL_CALLS]": 5})
    parser = ToolCallParser(form)
    text = 'a list [{"name": "get_time", "arguments": {}}] of calls'
    assert parser.push(text, [7]) == [{"content": text}]
    assert parser.push("", [5]) == []
    assert parser.push(' [{"name": "get_time",', [8]) != []
    assert parser.push(' "arguments": {"a": "}]"}}]', [9, 2])[0]["tool_calls"][0]["function"] == {
        "arguments": '{"a": "}]"}'
    }
    assert parser.finish() == [] and parser.called == 1


@pytest.mark.parametrize(
    "template, special, name, hidden",
    [
        ("... <tool_call> ...", {}, "hermes", {}),
        ("{{ '[TOOL_CALLS] [' }}", {"[TOOL_CALLS]": 5}, "mistral", {"[TOOL_CALLS]": 5}),
        ('{"name": x, "parameters": y} ipython', {"<|python_tag|>": 9}, "llama",
         {"<|python_tag|>": 9}),
        (None, {"[TOOL_CALLS]": 5, "<s>": 1}, "mistral", {"[TOOL_CALLS]": 5}),
        ("{{ messages }}", {"<tool_call>": 3, "</tool_call>": 4}, "hermes",
         {"<tool_call>": 3, "</tool_call>": 4}),
        (None, {}, "hermes", {}),
    ],
)  # fmt: skip
def test_the_form_is_what_the_template_teaches(template, special, name, hidden):
    form = tool_form(template, special)
    assert form.name == name and dict(form.hidden) == hidden


def function(**fields):
    return [{"type": "function", "function": {"name": "f", **fields}}]


@pytest.mark.parametrize(
    "tools, choice, sentence",
    [
        ("f", None, "must be a list"),
        ([1], None, r"tools\[0\] must be an object"),
        ([{"type": "retrieval"}], None, "with the type 'function'"),
        (function(name="a b"), None, "a name of 1 to 64"),
        (function(name='x"'), None, "a name of 1 to 64"),
        (function(name=None), None, "a name of 1 to 64"),
        (function(name="é"), None, "a name of 1 to 64"),
        (function() * 2, None, "twice"),
        (function() * 129, None, "at most 128"),
        (function(parameters=[]), None, "must be a JSON schema"),
        (function(parameters={"type": "string"}), None, "of the type 'object'"),
        (function(strict="no"), None, "true or false"),
        (function(parameters={"not": {}}), None, "schema of the tool 'f'.*strict: false"),
        (function(), "always", "must be 'none', 'auto', 'required' or"),
        (function(), {"type": "function"}, "must be 'none'"),
        (function(), {"type": "function", "function": {"name": "g"}}, "'g', which tools has not"),
        ([], "required", "there are no tools"),
        (None, {"type": "function", "function": {"name": "g"}}, "there are no tools"),
    ],
)
def test_wrong_tools_are_refused_by_name(demo, tools, choice, sentence):
    with pytest.raises(UserError, match=sentence):
        structure_of(*demo, tools=tools, tool_choice=choice)
