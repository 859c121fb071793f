"""How models write their calls of tools: the form that a model's template teaches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tpimpi.checkpoint.chat import chat_template_of
from tpimpi.checkpoint.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToolForm:
    """A call is `opening`, a JSON object with `name` and an object under `key`, and `closing`.

    With `listed`, the objects are the items of one list behind one mark. With `bare`, the mark may
    be missing where the text begins with a call. A mark with an id in `hidden` is a special token:
    it has no text.
    """

    name: str
    opening: str
    closing: str
    key: str = "arguments"
    listed: bool = False
    bare: bool = False
    hidden: tuple[tuple[str, int], ...] = ()

    def id_of(self, mark: str) -> int | None:
        """Return the id of a mark that is a special token."""
        return dict(self.hidden).get(mark)

    def with_ids(self, special_ids: Mapping[str, int]) -> ToolForm:
        """Return this form as a tokenizer with these special tokens has it."""
        marks = [mark for mark in (self.opening, self.closing) if mark in special_ids]
        return replace(self, hidden=tuple((mark, special_ids[mark]) for mark in marks))


HERMES = ToolForm("hermes", "<tool_call>", "</tool_call>")
MISTRAL = ToolForm("mistral", "[TOOL_CALLS]", "", listed=True)
LLAMA = ToolForm("llama", "<|python_tag|>", "", key="parameters", bare=True)


def tool_form_of(directory: str | Path, tokenizer: Tokenizer) -> ToolForm:
    """Return the form of a model directory's calls. Raises UserError for a wrong file."""
    return tool_form(chat_template_of(directory), tokenizer.special_ids)


def tool_form(template: str | None, special_ids: Mapping[str, int]) -> ToolForm:
    """Return the form that a template teaches, else that of the special tokens, else Hermes'."""
    text = template or ""
    if HERMES.opening in text:
        form = HERMES
    elif MISTRAL.opening in text:
        form = MISTRAL
    elif '"parameters"' in text and ("ipython" in text or LLAMA.opening in text):
        form = LLAMA
    else:
        known = (form for form in (HERMES, MISTRAL, LLAMA) if form.opening in special_ids)
        form = next(known, HERMES)
    return form.with_ids(special_ids)
