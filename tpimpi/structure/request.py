"""From a request's `response_format`, `tools` and `tool_choice` to what keeps an answer to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.structure.forms import HERMES, ToolForm
from tpimpi.structure.grammar import answer_grammar, calls_grammar
from tpimpi.structure.schema import MOST_OF_ALL, json_rule
from tpimpi.structure.structure import Structure
from tpimpi.structure.tools import choice_of, tools_of
from tpimpi.structure.vocabulary import Vocabulary, vocabulary_of

# llguidance goes down a schema by recursion. The bounds on schemas let it need some 8 MiB at most;
# these are only taken from memory where they are used.
_STACK = 64 << 20
_STARTING = threading.Lock()
_ANSWER = "the schema of response_format"


def structure_of(
    tokenizer: Tokenizer, config: ModelConfig, response_format: Any = None, tools: Any = None,
    tool_choice: Any = None, parallel_tool_calls: bool = True, form: ToolForm | None = None,
) -> Structure | None:  # fmt: skip
    """Return what keeps an answer to what is asked; None where any text will do.

    The first four are as OpenAI's API has them. `form` is how the model writes calls, see
    `tool_form_of`. For one text; safe in any thread. Raises UserError for what is wrong in a
    request, and, with the reason, for what can't be kept by masks.
    """
    choice = choice_of(tools_of(tools), tool_choice)
    schema = _schema_of(response_format)
    if not choice.tools and schema is None:
        return None
    form = (form or HERMES).with_ids(tokenizer.special_ids)
    answers = schema is not None and not choice.required
    if answers and choice.tools and form.bare:
        raise UserError(
            "this model writes calls of tools as JSON, so that an answer under response_format "
            "can't be told from one; leave one of them out, or say tool_choice 'required'"
        )
    vocabulary = vocabulary_of(tokenizer, config)

    parts = [_Part(_ANSWER, *schema)] if answers else []
    parts += [
        _Part(f"the schema of the tool {tool.name!r}", tool.parameters, tool.lenient)
        for tool in choice.tools
    ]
    rules = [json_rule(*part) for part in parts]
    if sum(map(len, rules)) > MOST_OF_ALL:
        raise UserError(
            f"the schemas of {len(rules)} tools have {sum(map(len, rules))} bytes in all, at most "
            f"{MOST_OF_ALL} can be kept; leave some out"
        )

    def make() -> Structure:
        alone = [
            _tried(vocabulary, rule, part) for rule, part in zip(rules, parts, strict=True)
        ]  # so that one that can't be kept is told by its name
        if not choice.tools:
            return alone[0]
        answer, of_tools = (rules[0], rules[1:]) if answers else (None, rules)
        grammar = calls_grammar(form, choice, of_tools, parallel_tool_calls, answer)
        return Structure(vocabulary, grammar, open_end=not choice.required and answer is None)

    return _with_room(make)


class _Part(NamedTuple):
    what: str
    schema: Any
    lenient: bool


def _tried(vocabulary: Vocabulary, rule: str, part: _Part) -> Structure:
    """Return what keeps an answer to a schema alone. Raises UserError."""
    try:
        return Structure(vocabulary, answer_grammar(rule), what=part.what)
    except UserError as error:
        lenient = json_rule(part.what, part.schema, lenient=True)
        if part.lenient or not _can_be_kept(vocabulary, lenient):
            raise
        raise UserError(
            f"{error}; leave that out, or say strict: false to leave it to the model"
        ) from error


def _can_be_kept(vocabulary: Vocabulary, rule: str) -> bool:
    try:
        return bool(Structure(vocabulary, answer_grammar(rule)))
    except UserError:
        return False


def _schema_of(response_format: Any) -> tuple[Any, bool] | None:
    """Return the schema that a `response_format` asks for, and whether not to insist on all of it.

    Only `strict: false` leaves what can't be kept to the model.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise UserError("response_format must be an object with a type")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}, False
    if kind != "json_schema":
        raise UserError(
            f"response_format has the type {kind!r:.60}, which must be 'text', 'json_object' or "
            "'json_schema'"
        )
    described = response_format.get("json_schema")
    if not isinstance(described, Mapping) or "schema" not in described:
        raise UserError("response_format must have a json_schema with a schema in it")
    strict = described.get("strict")
    if strict not in (None, True, False):
        raise UserError("response_format: strict must be true or false")
    return described["schema"], strict is False


def _with_room(make: Callable[[], Structure]) -> Structure:
    """Return what a function returns, called in a thread with a large stack."""
    made: list[Structure] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(make())
        except BaseException as error:  # raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, name="structure", daemon=True)
    with _STARTING:
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
