"""What a conversation is made of: turns, prompts, thinking told apart, settings over settings."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpimpi.chat.choices import Choices
from tpimpi.chat.conversation import Conversation, Turn
from tpimpi.chat.interrupts import Interrupts
from tpimpi.chat.thinking import Thinking, opens_thinking
from tpimpi.checkpoint.template import ChatTemplate
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from vocabularies import DEMO

MARKS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"


def talk(folder, template=MARKS):
    """Return a conversation in which a character is a token."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "^"}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return Conversation(ChatTemplate(folder), lambda text: [ord(c) for c in text])


def text_of(prompt):
    return "".join(map(chr, prompt.ids))


def test_a_prompt_is_all_that_was_said_with_bos_once(tmp_path):
    found = talk(tmp_path)
    found.tell("be brief")
    found.add("a", "b")
    prompt = found.prompt("c")
    assert text_of(prompt) == "^<system>be brief<end><user>a<end><assistant>b<end><user>c<end>" + (
        "<assistant>"
    )
    assert not prompt.thinking
    assert prompt.ids[: len(found.ids())] == found.ids()  # what is kept is found again


def test_turns_are_taken_back_forgotten_and_dropped(tmp_path):
    found = talk(tmp_path)
    assert found.undo() is None and found.ids() == []
    for letter in "abc":
        found.add(letter * 10, letter)
    assert found.undo() == "c" * 10
    all_of_it = len(found.prompt("?").ids)
    assert found.drop_to(all_of_it, "?") == 0
    assert found.drop_to(all_of_it - 1, "?") == 1 and found.turns == [Turn("b" * 10, "b")]
    assert found.drop_to(1, "?") == 1 and not found.turns  # the question itself is never dropped
    found.tell("s")
    found.add("x", "y")
    found.clear()
    assert found.messages() == [{"role": "system", "content": "s"}]


def test_a_template_may_refuse_what_the_model_is_told(tmp_path):
    found = talk(tmp_path, NO_SYSTEM)
    found.add("a", "b")
    with pytest.raises(UserError, match="no system"):
        found.tell("be brief")
    assert found.system is None
    with pytest.raises(UserError, match="no system"):
        found.take([{"role": "system", "content": "s"}])
    assert found.turns == [Turn("a", "b")] and found.system is None


def test_a_conversation_becomes_another_and_itself_again(tmp_path):
    found = talk(tmp_path)
    found.tell("s")
    found.add("a", "b")
    other = talk(tmp_path)
    other.take(found.messages())
    assert (other.system, other.turns) == ("s", [Turn("a", "b")])


def test_a_plain_form_ends_where_the_user_would_speak(tmp_path):
    template = talk(tmp_path, None).template
    assert "plain form" in template.source and template.stop == ("\nUser:",)
    assert talk(tmp_path).template.stop == () and talk(tmp_path).template.is_own


@pytest.mark.parametrize(
    ("opened", "text", "thoughts", "answer"),
    [
        (False, "hello", "", "hello"),
        (False, "<think>hm</think>\n\nhello", "hm", "hello"),
        (False, " \n<think>\nhm\n</think>hello ", "\nhm\n", "hello "),
        (True, "hm</think> hello", "hm", "hello"),
        (True, "<think>hm</think>hello", "hm", "hello"),
        (True, "still at it", "still at it", ""),
        (True, "a </thin b", "a </thin b", ""),
        (False, "<thin", "", "<thin"),
        (False, "  ", "", "  "),
        (False, "say <think>no</think>", "", "say <think>no</think>"),
        (False, "<think>a</think>b</think>c", "a", "b</think>c"),
        (False, "<think></think>", "", ""),
    ],
)
@given(data=st.data())
def test_thinking_is_told_apart_however_it_comes(opened, text, thoughts, answer, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    thinking, found = Thinking(opened), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += thinking.push(text[begin:end])
    found += thinking.finish()
    assert "".join(part for inside, part in found if inside) == thoughts
    assert "".join(part for inside, part in found if not inside) == answer == thinking.answer
    assert all(part for _, part in found)


def test_an_answer_is_shown_as_soon_as_it_can_be():
    thinking = Thinking(opened=True)
    assert thinking.push("a <b") == [(True, "a <b")]
    assert thinking.push(" </th") == [(True, " ")]  # it may be the end
    assert thinking.push("en") == [(True, "</then")]
    assert thinking.push("</think>x") == [(False, "x")]
    assert thinking.push("</th") == [(False, "</th")]


def test_a_template_that_opens_a_thought(tmp_path):
    found = talk(tmp_path, MARKS.replace("<assistant>{% endif", "<assistant><think>\n{% endif"))
    assert found.prompt("a").thinking and not opens_thinking("<think></think>")


def test_settings_are_what_was_said_over_the_models_own():
    choices = Choices({"top_k": 7}, {"temperature": 0.6, "top_k": 20}, seed=5, stop=("\nUser:",))
    first, second = choices.next(100), choices.next(30)
    assert (first.sampling.temperature, first.sampling.top_k, first.stop) == (0.6, 7, ("\nUser:",))
    assert (first.max_new_tokens, second.max_new_tokens) == (100, 30)
    assert (first.sampling.seed, second.sampling.seed) == (5, 6)  # another answer, another seed
    choices.set("temperature", "0.25")
    choices.set("length", "40")
    choices.set("seed", "9")
    third = choices.next(100)
    assert (third.sampling.temperature, third.max_new_tokens, third.sampling.seed) == (0.25, 40, 9)
    choices.set("temperature", "default")
    assert choices.next(10).sampling.temperature == 0.6
    assert choices.said() == {"top_k": 7, "max_new_tokens": 40, "seed": 9}
    assert "top_k 7" in choices.lines() and "temperature 0.6 (default)" in choices.lines()


def test_stops_that_are_said_are_added_to_the_forms_own():
    choices = Choices({"stop": ("END",)}, {}, 0, length=8, stop=("\nUser:",))
    assert choices.next(100).stop == ("\nUser:", "END") and choices.next(100).max_new_tokens == 8


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("temprature", "1", "temperature, top_k"), ("temperature", "warm", "a number"),
     ("top_k", "1.5", "a whole number"), ("top_p", "2", "from 0 to 1"),
     ("length", "0", "at least 1"), ("temperature", "nan", "finite")],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_changes_nothing(name, text, words):
    choices = Choices({}, {}, 0)
    with pytest.raises(UserError, match=words):
        choices.set(name, text)
    assert choices.said() == {}


def test_ctrl_c_stops_the_answer_or_the_line():
    stopped = []
    with Interrupts() as interrupts:
        assert not interrupts.stop_answer()
        with interrupts.answering(lambda: stopped.append(1)):
            assert interrupts.stop_answer()
            interrupts._on_signal(2, None)
            interrupts._on_signal(2, None)  # the same one: of the launcher, and of the guard
        assert len(stopped) == 2
        interrupts._last = 0.0
        interrupts._on_signal(2, None)  # between an answer and a line there is nothing to stop
        interrupts._last = 0.0
        with pytest.raises(KeyboardInterrupt), interrupts.typing():
            interrupts._on_signal(2, None)


def test_a_long_text_is_refused_by_who_cuts_it_to_tokens(tmp_path):
    def refuse(_):
        raise UserError("too long")

    found = Conversation(SimpleNamespace(render=lambda messages: "x"), refuse)
    with pytest.raises(UserError, match="too long"):
        found.prompt("?")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DEMO, ModelConfig.from_directory(DEMO))


@given(pieces=st.lists(st.text("he \n:Uø", max_size=6), max_size=8), ended=st.booleans())
@example(pieces=[*"hello"], ended=True)
def test_known_ids_stand_for_the_same_text(tmp_path_factory, tokenizer, pieces, ended):
    def written(ids):
        return b"".join(map(tokenizer.token_bytes, ids))

    found = talk(tmp_path_factory.mktemp("talk"))
    found._cut = lambda text: tokenizer.encode(text, add_bos=False)
    found._written = tokenizer.token_bytes
    prompt = found.prompt("hello").ids
    line = found._cut("\n")  # with the blank that this tokenizer puts before all
    made = [i for piece in pieces for i in found._cut("\n" + piece)[len(line) :]]
    found.add("hello", tokenizer.decode(made))
    plain = found.prompt("and?").ids
    found.remember([*prompt, *made, *([2] if ended else [])])
    ids = found.prompt("and?").ids
    assert written(ids) == written(plain)
    if pieces == [*"hello"]:
        assert len(made) == 5 and ids[: len(prompt) + 5] == [*prompt, *made] and ids != plain
