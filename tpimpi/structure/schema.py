"""Schemas as anybody may send them: bounded before llguidance sees them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from tpimpi.errors import UserError

# llguidance bounds its own work by fuel, but not how deep it goes, nor what a multiple costs.
MOST_BYTES = 1 << 16  # of a schema as JSON
MOST_OF_ALL = 1 << 17  # of the schemas of a request
MOST_DEPTH = 100  # objects and lists within each other
MOST_REACH = 2000  # the same, along all references
MOST_DIGITS = 300  # of a number
_MOST_UNITS = 1000  # of a multiple, in its smallest unit: 0.5 has 5
_MOST_MULTIPLES = 20
_MOST_PATTERNS = 50  # of names of properties, each of which is compared with the others

# Blanks where JSON may have them: a space, or a new line with its indentation. A small model that
# may write any number of them goes on for ever.
_BLANKS = r" ?|\n( {0,24}|\t{0,8})"
_OPTIONS = "x-guidance"


def json_rule(what: str, schema: Any, lenient: bool = False) -> str:
    """Return the part of a Lark grammar that stands for a schema's JSON texts.

    `lenient` leaves what can't be kept by masks to the model. Raises UserError, in which `what`
    names the schema, for what would take unbounded time or memory.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise UserError(f"{what} is {_kind(schema)}, which must be a JSON schema (an object)")
    if _OPTIONS in schema:
        raise UserError(f"{what} has {_OPTIONS!r}, which is no keyword of JSON Schema; remove it")
    _check_size(what, schema)
    options = {"whitespace_flexible": True, "whitespace_pattern": _BLANKS, "lenient": lenient}
    text = json.dumps({**schema, _OPTIONS: options}, allow_nan=False)
    return f"%json {text}"


def _check_size(what: str, schema: Any) -> None:
    """Refuse what is too deep, too long or too costly, in time linear in its size."""
    values = list(_walk(what, schema))
    multiples, patterns, targets = 0, 0, set()
    for value, _ in values:
        if isinstance(value, Mapping):
            multiples += _check_multiple(what, value.get("multipleOf"))
            if isinstance(of_names := value.get("patternProperties"), Mapping):
                patterns += len(of_names)
            if isinstance(target := value.get("$ref"), str):
                targets.add(target)
    for key, count, most in (
        ("multipleOf", multiples, _MOST_MULTIPLES),
        ("patternProperties", patterns, _MOST_PATTERNS),
    ):
        if count > most:
            raise UserError(f"{what} has {count} {key}, at most {most} can be kept; leave some out")
    size = len(json.dumps(schema))
    if size > MOST_BYTES:
        raise UserError(f"{what} has {size} bytes, at most {MOST_BYTES} can be kept; shorten it")
    heights: dict[int, int] = {}
    for value, _ in reversed(values):  # what is inside before what it is in
        heights[id(value)] = 1 + max((heights[id(v)] for v in _inside(value)), default=0)
    reached = [schema, *(_resolved(schema, target) for target in targets)]
    reach = sum(heights[id(value)] for value in reached)
    if reach > MOST_REACH:
        raise UserError(
            f"{what} goes {reach} levels deep along its {len(targets)} references, at most "
            f"{MOST_REACH} can be followed; shorten it"
        )


def _walk(what: str, schema: Any) -> Iterator[tuple[Any, int]]:
    """Yield each value of a schema and how deep it stands; refuse what is too deep or no JSON."""
    waiting, left = [(schema, 1)], MOST_BYTES
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if depth > MOST_DEPTH:
            raise UserError(f"{what} is nested more than {MOST_DEPTH} levels deep; flatten it")
        if left < 0:
            raise UserError(f"{what} has more than {MOST_BYTES} values; shorten it")
        if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
            raise UserError(f"{what} has a key that is no text; a schema is a JSON object")
        if isinstance(value, int | float):
            _check_number(what, value)
        elif not (value is None or isinstance(value, Mapping | list | str)):
            raise UserError(f"{what} has {_kind(value)} in it, which is no JSON")
        yield value, depth
        waiting += [(inner, depth + 1) for inner in _inside(value)]


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _resolved(schema: Any, target: str) -> Any:
    """Return what a reference points to, all of the schema where that isn't plain."""
    if not target.startswith("#/"):
        return schema
    value = schema
    for name in unquote(target[2:]).split("/"):
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(value, Mapping) or name not in value:
            return schema
        value = value[name]
    return value


def _check_number(what: str, value: float) -> None:
    whole = isinstance(value, int)
    if abs(value) >= 10**MOST_DIGITS if whole else not math.isfinite(value):
        raise UserError(
            f"{what} has a number of more than {MOST_DIGITS} digits in it; leave it out"
        )


def _check_multiple(what: str, value: Any) -> bool:
    """Return whether there is a multiple; refuse one of too many remainders to tell apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    units = int("".join(map(str, digits))) * 10 ** max(0, min(int(exponent), 4))
    if units > _MOST_UNITS:
        raise UserError(
            f"{what} has multipleOf {value}, which is more than {_MOST_UNITS} of its smallest "
            "unit and can't be kept; leave it out"
        )
    return True


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")
