"""The engine keeps a text to a structure, and others beside it are what they are alone."""

import json

import jsonschema
import pytest

import tpimpi
from program import DEMO
from test_structure import PERSON, asked
from test_structure_tools import TOOLS
from tpimpi.errors import UserError
from tpimpi.structure.calls import parse_tool_calls
from tpimpi.structure.request import structure_of


@pytest.fixture
def llm(comm, shared_tmp):
    with tpimpi.load(DEMO, comm, context=400, threads=1, save_dir=shared_tmp) as llm:
        yield llm


def test_the_demo_model_at_temperature_2_writes_what_parses(comm, llm):
    with llm.leading() as leader:
        if leader is None:
            return
        for seed in range(4):
            structure = structure_of(llm.tokenizer, llm.config, asked(PERSON, strict=True))
            text = leader.stream(
                "ROMEO:", temperature=2.0, top_p=1.0, seed=seed, max_new_tokens=380,
                constraint=structure,
            )  # fmt: skip
            jsonschema.validate(json.loads("".join(text)), PERSON)
            assert text.completion.finish_reason == "stop"
        for choices in ({"temperature": 0.0}, {"temperature": 2.0, "repeat_penalty": 1.5}):
            structure = structure_of(
                llm.tokenizer, llm.config, tools=TOOLS, tool_choice="required",
                parallel_tool_calls=False,
            )  # fmt: skip
            text = leader.stream("ROMEO:", max_new_tokens=380, constraint=structure, **choices)
            content, calls = parse_tool_calls("".join(text), TOOLS)
            assert content is None and json.loads(calls[0]["function"]["arguments"]) is not None


def test_what_is_cut_off_is_told_and_what_fails_fails_alone(comm, llm):
    hard = {"type": "string", "pattern": "^(.{1,1000}){1,1000}$"}  # as its first letters tell
    with llm.leading() as leader:
        if leader is None:
            return
        structure = structure_of(llm.tokenizer, llm.config, asked({"type": "string"}))
        text = leader.stream("ROMEO:", temperature=0, max_new_tokens=5, constraint=structure)
        assert "".join(text).lstrip().startswith('"')
        assert text.completion.finish_reason == "length"
        structure = structure_of(llm.tokenizer, llm.config, asked(hard))
        with pytest.raises(UserError, match="can't be kept"):
            "".join(leader.stream("ROMEO:", max_new_tokens=90, seed=1, constraint=structure))
        assert "".join(leader.stream("ROMEO:", temperature=0, max_new_tokens=5))
