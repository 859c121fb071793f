"""Answers that keep to a structure: JSON under a schema, calls of tools. By masks on the logits."""

from tpimpi.structure.calls import ToolCallParser, parse_tool_calls
from tpimpi.structure.forms import ToolForm, tool_form, tool_form_of
from tpimpi.structure.request import structure_of
from tpimpi.structure.structure import Structure
from tpimpi.structure.vocabulary import vocabulary_of

__all__ = [
    "Structure",
    "ToolCallParser",
    "ToolForm",
    "parse_tool_calls",
    "structure_of",
    "tool_form",
    "tool_form_of",
    "vocabulary_of",
]
