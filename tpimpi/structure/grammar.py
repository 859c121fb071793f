"""Grammars in llguidance's Lark: of an answer under a schema, and of calls of tools.

A blank is allowed wherever templates and models write one, and bounded everywhere. No grammar
forces tokens (`no_forcing`): the model chooses how to spell what must follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tpimpi.structure.forms import ToolForm
from tpimpi.structure.tools import Choice, Tool

_HEAD = r"""%llguidance {"no_forcing": true}
LEAD: /[ \n]{1,2}/
WS: / |\n{1,2} {0,8}/
TEXT: /(.|\n)*/
"""
# A text that doesn't begin as a bare call does; where it does begin so, the call has begun.
_BARE = r'[ \t\n]{0,8}\{[ \t\n]{0,8}("type"[ \t]?:[ \t]?"function"[ \t]?,[ \t\n]{0,8})?"name"'


def answer_grammar(rule: str) -> str:
    """Return the grammar of a JSON text, as `json_rule` gives it, with blanks before it."""
    return f"{_HEAD}start: LEAD? answer\nanswer: {rule}\n"


def calls_grammar(
    form: ToolForm, choice: Choice, rules: Sequence[str], parallel: bool, answer: str | None
) -> str:
    """Return the grammar of an answer that may, or must, call tools.

    `rules` are those of each tool's arguments, as `json_rule` gives them. The answer is `answer`,
    another one, where it calls none; any text if that is None.
    """
    many = parallel and not choice.named
    opening, closing = _mark(form, form.opening), _mark(form, form.closing)
    close = f" WS? {closing}" if closing else ""
    if form.listed:
        more = '(WS? "," WS? call)*' if many else ""
        calls, after = f'WS? "[" WS? call {more} WS? "]"', ""
    else:
        calls = f"WS? call{close}"
        after = f" (WS? {opening} {calls})* WS?" if many and not form.bare else ""
    lines = [*_calls(form, choice.tools, rules)]
    begun = f"{calls}{after}"
    if choice.required or answer is not None:
        ways = [f"WS? {opening} {begun}"]
        if form.bare:
            ways.append(begun)
            if form.id_of(form.opening) is None:
                ways = ways[1:]
        if not choice.required:
            ways.append("WS? answer")
            lines.append(f"answer: {answer}")
    elif form.bare:
        ways = ["PLAIN", f"bare call_rest{close}"]
        lines += [f"bare[lazy]: /{_BARE}/", f"PLAIN: /(.|\\n)*/ & ~/({_BARE})(.|\\n)*/"]
        if form.id_of(form.opening) is not None:
            ways.append(f"PLAIN {opening} {begun}")
    elif form.id_of(form.opening) is not None:
        ways = ["TEXT", f"TEXT {opening} {begun}"]
    else:
        ways = ["TEXT", f"marked {begun}"]
        lines.append(f"marked[lazy]: TEXT {opening}")
    return "\n".join([f"{_HEAD}start: {' | '.join(ways)}", *lines, ""])


def _calls(form: ToolForm, tools: Sequence[Tool], rules: Sequence[str]) -> Iterator[str]:
    """Yield the rules of one call: of its whole object, and of what follows its first key."""
    yield 'call: "{" WS? "\\"name\\"" call_rest'
    one = " | ".join(f"call_{i}" for i in range(len(tools)))
    yield f'call_rest: WS? ":" WS? ({one}) WS? "}}"'
    key = json.dumps(json.dumps(form.key))
    for i, tool in enumerate(tools):
        name = json.dumps(json.dumps(tool.name))
        yield f'call_{i}: {name} WS? "," WS? {key} WS? ":" WS? arguments_{i}'
        yield f"arguments_{i}: {rules[i]}"


def _mark(form: ToolForm, mark: str) -> str:
    """Return a mark as a grammar has it: a special token by its id, a text in quotes."""
    token = form.id_of(mark)
    return f"<[{token}]>" if token is not None else json.dumps(mark) if mark else ""
