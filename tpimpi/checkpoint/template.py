"""Chat templates: from a conversation to the text that a model goes on from.

A template is a program in Jinja that comes with a model's files, so it runs in Jinja's sandbox,
where it can change nothing and reach nothing of Python. It is rendered as Transformers renders it,
and writes the special tokens itself, BOS among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpimpi.checkpoint.chat import chat_template_of
from tpimpi.checkpoint.tokenizer_settings import read_settings
from tpimpi.errors import UserError

# Of a checkpoint without a template: what Llama 2's chat models were trained on, and a plain form.
LLAMA_2 = """\
{%- set system = messages[0].content if messages[0].role == 'system' -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set first = loop.first or (system and loop.index0 == 1) -%}
{{- bos_token }}[INST] {% if first and system %}<<SYS>>
{{ system }}
<</SYS>>

{% endif %}{{ message.content | trim }} [/INST]
{%- elif message.role == 'assistant' -%}
{{- ' ' + message.content | trim + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- message.role | capitalize + ': ' + message.content | trim + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


class ChatTemplate:
    """The template of a model directory, or one of those above; `source` says which.

    `stop` are texts at which an answer in this form is over.

    Special tokens are what the tokenizer's settings call `bos_token`, `eos_token` and so on.
    Raises UserError.
    """

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        self.special = special_tokens(directory)
        text = chat_template_of(directory)
        self.source = f"the template of {directory.name}"
        if text is None:
            llama = _is_like_llama_2(directory)
            text = LLAMA_2 if llama else PLAIN
            self.source = (
                "Llama 2's [INST] form" if llama else "a plain form (User: ..., Assistant:)"
            )
        self.is_own = self.source.startswith("the template")
        # A model that was not trained to end there goes on with the user's part.
        self.stop = ("\nUser:",) if text == PLAIN else ()
        try:
            self._template = _ENVIRONMENT.from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"{self.source} is no template of Jinja ({error})") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence | None = None,
        documents: Sequence | None = None, add_generation_prompt: bool = True, **more,
    ) -> str:  # fmt: skip
        """Return a conversation as text. `messages` have a `role` and a `content` each.

        With `add_generation_prompt` it ends where the assistant is to begin. `more` are what a
        template may ask for by other names, such as `enable_thinking`. Raises UserError where the
        template refuses them.
        """
        try:
            return self._template.render(
                messages=list(messages), tools=tools, documents=documents,
                add_generation_prompt=add_generation_prompt, **self.special, **more,
            )  # fmt: skip
        except _Refusal as error:
            raise UserError(f"{self.source} refuses this conversation: {error}") from None
        except (jinja2.TemplateError, RecursionError, *_MISTAKES) as error:
            raise UserError(f"{self.source} can't write this conversation ({error})") from None


def special_tokens(directory: Path) -> dict[str, str]:
    """Return the special tokens of a tokenizer by what they are for: {bos_token: <s>, ...}."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_settings(directory, name).items():
            if isinstance(value, Mapping):
                value = value.get("content")
            if key.endswith("_token") and isinstance(value, str):
                found[key] = value
    return {"bos_token": "", "eos_token": ""} | found


def _is_like_llama_2(directory: Path) -> bool:
    """Whether a model without a template is of Llama 2's kind, by its architecture and tokens."""
    config = read_settings(directory, "config.json")
    return config.get("model_type") == "llama" and config.get("vocab_size") == 32000


_MISTAKES = (TypeError, ValueError, LookupError, ArithmeticError)  # of a program in a template


class _Refusal(jinja2.TemplateError):
    """What a template raises about a conversation."""


def _refuse(message: str):
    raise _Refusal(message)


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Write JSON as it is: Jinja's own filter escapes what HTML must not contain."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model was trained on: as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja wants it

    def parse(self, parser):
        """Return what stands between."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)
_ENVIRONMENT.filters["tojson"] = _json
_ENVIRONMENT.globals["raise_exception"] = _refuse
_ENVIRONMENT.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
