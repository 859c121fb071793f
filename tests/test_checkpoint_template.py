"""Chat templates are rendered as Transformers renders them; what they refuse is a sentence."""

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from tpimpi.checkpoint.template import ChatTemplate, special_tokens
from tpimpi.errors import UserError

# Written for this test: each uses what templates of well-known models use.
TEMPLATES = {
    "marks": """{{ bos_token }}{% for message in messages %}
<|{{ message['role'] }}|>
{{ message.content | trim }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}""",
    "system_once": """{%- set ns = namespace(system='', first=true) -%}
{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'system' %}{% continue %}{% endif -%}
  {%- if m.role == 'user' -%}
    {{- '[U] ' + (ns.system + '\\n\\n' if ns.first and ns.system else '') + m.content -}}
    {%- set ns.first = false -%}
  {%- else -%}
    {% generation %}{{ '[A] ' + m.content + eos_token }}{% endgeneration %}
  {%- endif -%}
{%- endfor -%}""",
    "tools": """{% macro show(tool) %}{{ tool | tojson(indent=2) }}{% endmacro %}
{% if tools %}# Tools
{% for tool in tools %}
{{ show(tool) }}
{% endfor %}{% endif %}
{% for d in documents or [] %}<doc {{ loop.index }}>{{ d.text }}</doc>{% endfor %}
{% for m in messages %}{{ m.role | upper }}: {{ m.content }}
{% if loop.index0 > 3 %}{% break %}{% endif %}
{% endfor %}{{ messages[-1] | tojson }}""",
    "date": "{{ strftime_now('%Y') }} {{ messages | length }}{{ dict(a=1).a }}{{ pad_token }}",
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOOLS = [{"type": "function", "function": {"name": "wetter", "description": "für <b>heute</b>"}}]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=30)}
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def template_of(folder, text, **settings):
    (folder / "chat_template.jinja").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL | settings))
    return ChatTemplate(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_does(tmp_path_factory, name):
    template = template_of(tmp_path_factory.mktemp("model"), TEMPLATES[name])

    @given(MESSAGES, st.booleans(), st.sampled_from([None, TOOLS]))
    def same(messages, asked, tools):
        documents = [{"text": "<one> & two"}] if tools else None
        (expected,), _ = render_jinja_template(
            [messages], tools=tools, documents=documents, chat_template=TEMPLATES[name],
            add_generation_prompt=asked, **SPECIAL,
        )  # fmt: skip
        assert template.render(messages, tools, documents, asked) == expected

    same()


def test_special_tokens_are_texts_or_objects(tmp_path):
    template_of(tmp_path, "x", eos_token={"content": "<end>", "special": True}, unk_token=None)
    assert special_tokens(tmp_path) == SPECIAL | {"eos_token": "<end>"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}", "is no template of Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must"),
        ("{{ messages[7].content + 1 }}", "can't write this conversation"),
        ("{{ 1 / 0 }}", "can't write this conversation"),
        ("{{ ''.__class__.__mro__ }}", "can't write this conversation"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "can't write this conversation"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "can't write this conversation"),
        ("{{ messages.append(1) }}", "can't write this conversation"),
        ("{% include '/etc/passwd' %}", "can't write this conversation"),
    ],
)
def test_what_can_not_be_written_is_a_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        template_of(tmp_path, text).render([{"role": "user", "content": "x"}])


CHAT = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "llama", "vocab_size": 32000},
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]",
        ),
        (
            {"model_type": "qwen2", "vocab_size": 32000},
            "<s>System: Be brief.\nUser: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:",
        ),
    ],
)
def test_a_model_without_a_template(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    template = ChatTemplate(tmp_path)
    assert not template.is_own and template.render(CHAT) == expected
    if config["model_type"] == "llama":
        assert template.render(CHAT[1:2]) == "<s>[INST] Hi [/INST]"


def test_the_year_is_this_one(tmp_path):
    assert (
        template_of(tmp_path, TEMPLATES["date"]).render(CHAT).startswith(f"{datetime.now():%Y} 4")
    )
