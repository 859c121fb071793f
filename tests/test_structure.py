"""Answers under a schema parse and keep to it, whatever the model: random logits, temperature 2."""

import json
import threading
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.structure.request import structure_of
from vocabularies import DEMO, byte_level, copied, train_marked

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["hare", "hen", "Löwe", None]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
        "born": {"type": "string", "format": "date"},
        "next": {"anyOf": [{"$ref": "#/$defs/code"}, {"type": "null"}]},
    },
    "required": ["name", "age", "kind", "tags", "born", "next"],
    "additionalProperties": False,
    "$defs": {"code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+(é|ü)?$", "maxLength": 9}},
}


def asked(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.fixture(scope="module", params=["demo", "marked", "byte-level"])
def model(request, tmp_path_factory):
    """Return (tokenizer, config) of a kind of vocabulary, padded beyond the tokenizer's."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "demo":
        config = ModelConfig.from_directory(DEMO)
        return load_tokenizer(DEMO, config), config
    if request.param == "marked":
        config = copied(folder, train_marked(folder), 310, {})
    else:
        config = replace(byte_level(folder), eos_token_ids=(1,))
    return load_tokenizer(folder, config), config


@pytest.fixture(scope="module")
def demo():
    config = ModelConfig.from_directory(DEMO)
    return load_tokenizer(DEMO, config), config


def written(model, structure, seed, most=3000, ends=True):
    """Return what random logits at temperature 2 write, and whether they came to an end."""
    tokenizer, config = model
    random, ids = np.random.default_rng(seed), []
    for _ in range(most):
        allowed = structure.allowed()
        assert allowed.any()
        logits = np.where(allowed, random.normal(0, 3, config.vocab_size) / 2, -np.inf)
        weights = np.exp(logits - logits.max())
        token = int(random.choice(config.vocab_size, p=weights / weights.sum()))
        if ends and token in config.eos_token_ids:
            return tokenizer.decode(ids), True
        ids.append(token)
        structure.accept(token)
        if structure.complete:
            return tokenizer.decode(ids), True
    return tokenizer.decode(ids), False


@pytest.mark.parametrize("seed", range(8))
def test_a_random_model_keeps_to_a_schema(model, seed):
    text, ended = written(model, structure_of(*model, asked(PERSON, strict=True)), seed)
    assert ended
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("seed", range(8))
def test_a_random_model_writes_an_object(model, seed):
    text, ended = written(model, structure_of(*model, {"type": "json_object"}), seed, 6000)
    if ended:  # nothing bounds its strings; what is cut off is told as such by the engine
        assert isinstance(json.loads(text), dict)
    else:
        assert text.lstrip().startswith("{")


SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)},
        st.integers(-999, 999), st.integers(-999, 999),
    ),  # fmt: skip
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
                           st.integers(-99, 99), st.booleans(), st.none()), min_size=1, max_size=4),
    ),
)  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)


def _larger(inner):
    return st.one_of(
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner, st.integers(0, 3),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda found, optional: {
                "type": "object", "properties": found, "additionalProperties": False,
                "required": [name for name in found if name not in optional],
            },
            st.dictionaries(NAMES, inner, max_size=4), st.sets(NAMES, max_size=2),
        ),
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(SCALARS, _larger, max_leaves=8), seed=st.integers(0, 2**32 - 1))
def test_any_schema_is_kept_or_refused(demo, schema, seed):
    try:
        structure = structure_of(*demo, asked(schema))
    except UserError as error:
        assert "\n" not in str(error)
        return
    text, ended = written(demo, structure, seed)
    assert ended
    jsonschema.validate(json.loads(text), schema)


def test_only_end_tokens_once_it_is_complete(model):
    tokenizer, config = model
    structure = structure_of(tokenizer, config, asked({"enum": [True]}))
    for token in tokenizer.encode("true", add_bos=False):
        assert not structure.complete
        assert not structure.allowed()[list(config.eos_token_ids)].any()
        structure.accept(token)
    assert structure.complete
    assert np.flatnonzero(structure.allowed()).tolist() == list(config.eos_token_ids)


def test_a_number_may_end_or_go_on(demo):
    tokenizer, config = demo
    structure = structure_of(tokenizer, config, asked({"type": "integer"}))
    for token in tokenizer.encode("12", add_bos=False):
        structure.accept(token)
    allowed = structure.allowed()
    assert not structure.complete
    assert allowed[list(config.eos_token_ids)].all() and allowed.sum() > 5


def test_a_model_without_an_end_token_is_told_when_it_is_complete(demo):
    """Its text ends as soon as it may, for it can't say so."""
    tokenizer, config = demo[0], replace(demo[1], eos_token_ids=())
    for schema, most in ((PERSON, 3000), ({"type": "integer"}, 10)):
        for seed in range(3):
            structure = structure_of(tokenizer, config, asked(schema))
            text, ended = written((tokenizer, config), structure, seed, most)
            assert ended and structure.complete and not structure.allowed().any()
            jsonschema.validate(json.loads(text), schema)


def test_no_blank_goes_on_for_ever(demo):
    """A weak model that likes blanks best must come to something else."""
    tokenizer, config = demo
    structure = structure_of(tokenizer, config, asked(PERSON))
    blanks = {i for i in range(config.vocab_size) if not tokenizer.decode([i, i]).strip()}
    row = 0
    for _ in range(400):
        likes = [i for i in np.flatnonzero(structure.allowed()) if i in blanks]
        if likes:
            token, row = likes[0], row + 1
        else:
            token, row = int(np.flatnonzero(structure.allowed())[0]), 0
        assert row < 40
        structure.accept(token)
        if structure.complete:
            break


def test_no_structure_asked_for(demo):
    assert structure_of(*demo) is None
    assert structure_of(*demo, {"type": "text"}) is None
    assert structure_of(*demo, None, [], "auto") is None


def test_a_token_that_is_not_allowed_is_an_error_and_stays_one(demo):
    tokenizer, config = demo
    structure = structure_of(tokenizer, config, {"type": "json_object"})
    wrong = int(np.flatnonzero(~structure.allowed())[0])
    for _ in range(2):
        with pytest.raises(UserError, match="can't be kept"):
            structure.accept(wrong)
    with pytest.raises(UserError, match="can't be kept"):
        structure.allowed()


def test_many_threads_make_structures(demo):
    tokenizer = load_tokenizer(DEMO, demo[1])
    found = []

    def make(seed):
        structure = structure_of(tokenizer, demo[1], asked(PERSON))
        found.append(written((tokenizer, demo[1]), structure, seed)[0])

    threads = [threading.Thread(target=make, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for text in found:
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize(
    "wanted, sentence",
    [
        ("json", "must be an object with a type"),
        ({"type": "yaml"}, "'yaml', which must be"),
        ({"type": "json_schema"}, "must have a json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "must have a json_schema"),
        (asked([]), "is a list"),
        (asked("x"), "is text"),
        (asked({}, strict="yes"), "true or false"),
        (asked({"type": "no such type"}), "can't be kept: "),
        (asked(False), "true or false"),
        (asked({"enum": []}), "can't be kept: "),
        (asked({"type": "string", "enum": [1]}), "can't be kept: "),
        (asked({"not": {"type": "string"}}), "can't be kept: .*not"),
        (asked({"type": "array", "uniqueItems": True}), "can't be kept: .*uniqueItems"),
        (asked({"type": "string", "pattern": "(?=a)b"}), "can't be kept: .*look"),
        (asked({"type": "string", "format": "no-such"}), "can't be kept: .*no-such"),
        (asked({"$ref": "http://127.0.0.1:9/schema"}), "can't be kept: "),
        (asked({"$ref": "#/$defs/missing"}), "can't be kept: "),
        (asked({"$ref": "#"}), "can't be kept: "),
        (asked({"x-guidance": {"lenient": True}}), "no keyword of JSON Schema"),
    ],
)
def test_what_can_not_be_kept_is_refused_with_its_reason(demo, wanted, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        structure_of(*demo, wanted)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert str(caught.value).count("; ") <= 1


def test_strict_false_leaves_to_the_model_what_masks_can_not_keep(demo):
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}
    text, ended = written(demo, structure_of(*demo, asked(schema, strict=False)), 3)
    assert ended and isinstance(json.loads(text), list)
