"""Schemas that are meant to harm: refused, or kept in bounded time and memory."""

import json
import resource
import time

import numpy as np
import pytest

from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.structure.request import structure_of
from vocabularies import DEMO

SECONDS, MIB = (
    10,
    200,
)  # on a busy machine; each took less than one second and 60 MiB on a quiet one


@pytest.fixture(scope="module")
def demo():
    config = ModelConfig.from_directory(DEMO)
    tokenizer = load_tokenizer(DEMO, config)
    structure_of(tokenizer, config, {"type": "json_object"})
    return tokenizer, config


def nested(depth, wrap):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = wrap(schema)
    return schema


def chain(length, link):
    """Return definitions, each of which refers to the next by `link`."""
    names = [{"$ref": f"#/$defs/a{i + 1}"} for i in range(length)]
    found = {f"a{i}": link(name) for i, name in enumerate(names)}
    return {"$ref": "#/$defs/a0", "$defs": {**found, f"a{length}": {"type": "object"}}}


def properties(count, **schema):
    return {"type": "object", "properties": {f"p{i}": dict(schema) for i in range(count)}}


def pattern(text):
    return {"type": "string", "pattern": text}


SCHEMAS = {
    "deep": lambda: nested(90, lambda inner: {"type": "array", "items": inner}),
    "too deep": lambda: nested(100_000, lambda inner: {"type": "array", "items": inner}),
    "doubling": lambda: chain(30, lambda ref: {"allOf": [ref, ref]}),
    "any doubling": lambda: chain(16, lambda ref: {"anyOf": [ref, dict(ref)]}),
    "doubling properties": lambda: chain(25, lambda ref: {
        "allOf": [{"properties": {"x": ref}}, {"properties": {"x": ref}}]}),
    "long chain": lambda: chain(900, lambda ref: dict(ref)),
    "longer chain": lambda: chain(1400, lambda ref: {"items": ref}),
    "chain of deep ones": lambda: chain(40, lambda ref: nested(20, lambda inner: {
        "anyOf": [ref, inner]})),
    "circle": lambda: {"$ref": "#/$defs/a", "$defs": {
        "a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
    "product": lambda: {"allOf": [{"anyOf": [properties(1, const=[i, j]) for j in range(9)]}
                                  for i in range(9)]},
    "huge enum": lambda: {"enum": [f"value {i * 7919 % 100_003}" for i in range(100_000)]},
    "large enum": lambda: {"enum": [f"value {i * 7919 % 10_007}" for i in range(3000)]},
    "enum of objects": lambda: {"enum": [{"a": [i] * 3} for i in range(2000)]},
    "many properties": lambda: properties(2200, type="integer"),
    "many patterns of names": lambda: {"patternProperties": {
        f"^p{i}.*x{i}$": {"type": "integer"} for i in range(1000)}},
    "some patterns of names": lambda: {"patternProperties": {
        f"^(a|b)*a(a|b){{9}}c{i}$": {"type": "integer"} for i in range(50)}},
    "exponential 1": lambda: pattern("^(a+)+$"),
    "exponential 2": lambda: pattern("^(.|b)*a(.|b){300}$"),
    "exponential 3": lambda: pattern("^((a{1,100}){1,100}){1,100}$"),
    "exponential 4": lambda: pattern("^(.{1,1000}){1,1000}$"),
    "exponential 5": lambda: pattern("^" + "(a?)" * 2000 + "a" * 2000 + "$"),
    "deep regex": lambda: pattern("(" * 20_000 + "a" + ")" * 20_000),
    "joined regexes": lambda: {"allOf": [pattern(f"(a|b|c)*{c}.{{50}}x") for c in "abc"]},
    "regex and length": lambda: {**pattern("(x+x+)+y"), "minLength": 1000, "maxLength": 100_000},
    "long text": lambda: {"type": "string", "minLength": 10**9, "maxLength": 10**9},
    "long list": lambda: {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "multiple": lambda: {"type": "integer", "multipleOf": 1_000_003},
    "multiples": lambda: {"allOf": [{"type": "integer", "multipleOf": n} for n in (997, 991, 983)]},
    "many multiples": lambda: {"allOf": [{"multipleOf": 2}] * 1000},
    "huge number": lambda: {"type": "integer", "maximum": 10**5000},
    "no number": lambda: {"type": "number", "maximum": float("nan")},
    "long name": lambda: {"type": "object", "required": ["a" * 60_000]},
    "long reference": lambda: {"$ref": "#/" + "a/" * 20_000},
    "many references": lambda: {"allOf": [{"$ref": f"#/allOf/{i}"} for i in range(2000)]},
    "half a character": lambda: {"enum": ["\ud800"]},
    "no text as a key": lambda: {1: 2},
    "no json": lambda: {"enum": [{1, 2}]},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("strict", [True, False])
def test_harmful_schemas_are_refused_or_kept(demo, name, strict):
    tokenizer, config = demo
    described = {"name": "x", "strict": strict, "schema": SCHEMAS[name]()}
    before, begun = _peak(), time.monotonic()
    random = np.random.default_rng(0)
    try:
        structure = structure_of(
            tokenizer, config, {"type": "json_schema", "json_schema": described}
        )
        for _ in range(100):
            token = int(random.choice(np.flatnonzero(structure.allowed())))
            if token in config.eos_token_ids:
                break
            structure.accept(token)
            if structure.complete:
                break
    except UserError as error:
        assert len(str(error)) < 400 and "\n" not in str(error)
    assert time.monotonic() - begun < SECONDS
    assert _peak() - before < MIB


def test_a_hundred_tools_and_too_much_of_them(demo):
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {
            "type": "object", "properties": {"a": {"enum": ["x" * 80 + str(i)]}}}}}
        for i in range(128)
    ]  # fmt: skip
    begun = time.monotonic()
    structure = structure_of(*demo, tools=tools, tool_choice="required")
    assert structure.allowed().any() and time.monotonic() - begun < SECONDS
    tools[0]["function"]["parameters"]["description"] = "x" * 60_000
    tools[1]["function"]["parameters"]["description"] = "x" * 60_000
    with pytest.raises(UserError, match="128 tools have [0-9]+ bytes in all"):
        structure_of(*demo, tools=tools)


def test_a_schema_is_not_changed(demo):
    schema = SCHEMAS["deep"]()
    text = json.dumps(schema)
    structure_of(*demo, {"type": "json_schema", "json_schema": {"schema": schema}})
    assert json.dumps(schema) == text


def _peak():
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
