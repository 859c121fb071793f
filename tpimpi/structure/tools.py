"""Tools as OpenAI's API has them: functions with a name and a schema of their arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpimpi.errors import UserError

MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `lenient` leaves to it what masks can't keep."""

    name: str
    parameters: Mapping[str, Any]
    lenient: bool = False


def tools_of(tools: Any) -> tuple[Tool, ...]:
    """Return the functions of a request's `tools`. Raises UserError, by name, for what is wrong."""
    if tools is None:
        return ()
    if not _is_list(tools):
        raise UserError("tools must be a list of functions")
    if len(tools) > MOST_TOOLS:
        raise UserError(f"tools has {len(tools)} functions, at most {MOST_TOOLS} can be told apart")
    found = tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools))
    names = [tool.name for tool in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"tools has the function {twice[0]!r} twice; give each its own name")
    return found


def _tool(where: str, tool: Any) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise UserError(f"{where} must be an object with the type 'function'")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{where} must have a function with a name of 1 to 64 letters, digits, '_', '-' or '.'"
        )
    parameters, strict = function.get("parameters"), function.get("strict")
    if strict not in (None, True, False):
        raise UserError(f"{where}: strict must be true or false")
    if parameters is None:
        parameters = _NO_ARGUMENTS
    if not isinstance(parameters, Mapping):
        raise UserError(f"{where}: parameters must be a JSON schema (an object)")
    if parameters.get("type", "object") != "object":
        raise UserError(f"{where}: parameters must be a schema of the type 'object'")
    return Tool(name, {"type": "object", **parameters}, strict is False)


@dataclass(frozen=True)
class Choice:
    """What a request's `tool_choice` comes to: which tools may be called, and whether one must."""

    tools: tuple[Tool, ...]
    required: bool
    named: bool = False


def choice_of(tools: tuple[Tool, ...], choice: Any) -> Choice:
    """Return which of `tools` may be called. Raises UserError for a wrong or unknown choice."""
    if choice == "none" or (choice is None and not tools):
        return Choice((), False)
    if choice is None or choice == "auto":
        return Choice(tools, False)
    if not tools:
        raise UserError(f"tool_choice is {_shown(choice)}, but there are no tools; add some")
    if choice == "required":
        return Choice(tools, True)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    if not isinstance(function, Mapping) or choice.get("type") != "function":
        raise UserError(
            f"tool_choice is {_shown(choice)}, which must be 'none', 'auto', 'required' or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    found = tuple(tool for tool in tools if tool.name == function.get("name"))
    if not found:
        raise UserError(
            f"tool_choice names the function {_shown(function.get('name'))}, which tools has not"
        )
    return Choice(found, True, named=True)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
