"""Questions and answers, with a model that says what it is told to: what is kept and refused."""

import pytest

from talks import TEMPLATE, Talk
from tpimpi.errors import MachineError, UserError


@pytest.fixture
def talk(tmp_path):
    return Talk(tmp_path)


def test_each_prompt_goes_on_from_all_before(talk):
    talk.leader.answers = [[" he", "llo"], ["fine"]]
    notes = talk.type("hi", "how are you?")
    assert talk.prompts == ["u:hi|a:", "u:hi|a: hello|u:how are you?|a:"]
    assert talk.turns == [("hi", " hello"), ("how are you?", "fine")]
    assert [text for kind, text in talk.screen.shown if kind == "answer"] == ["he", "llo", "fine"]
    assert "6 tokens after a prompt of 7, 3 of them cached | first token 0.50 s" in notes
    assert "5.00 tokens/s" in notes and all(text.closed for text in talk.leader.texts)
    assert talk.leader.asked[1][1].max_new_tokens == 100 - len(talk.prompts[1])


def test_thinking_is_shown_apart_and_not_fed_back(talk):
    talk.leader.answers = [["<th", "ink>let me", " see</thi", "nk>\n\nhello"]]
    talk.type("hi", "and?")
    assert talk.screen.of("thinking") == "let me see" and talk.screen.of("answer") == "helloyes"
    assert talk.prompts[1] == "u:hi|a:hello|u:and?|a:"


def test_a_template_that_opens_a_thought(tmp_path):
    talk = Talk(tmp_path, template=TEMPLATE.replace("a:{% endif", "a:<think>\n{% endif"))
    talk.leader.answers = [["hm</think>", "hello"], ["hm"]]
    notes = talk.type("hi", "and?")
    assert talk.screen.of("thinking") == "hmhm" and talk.turns == [("hi", "hello")]
    assert "still thinking, so the question is not kept; /retry" in notes


def test_ctrl_c_stops_the_answer_and_not_the_program(talk):
    talk.leader.answers = [["some ", lambda: talk.interrupts.stop_answer(), "more"]]
    notes = talk.type("hi", "and?")
    assert talk.turns == [("hi", "some "), ("and?", "yes")] and "| stopped" in notes


def test_ctrl_c_before_the_first_word_keeps_nothing(talk):
    talk.leader.answers = [[lambda: talk.interrupts.stop_answer(), "more"], ["yes"]]
    notes = talk.type("hi", "/retry")
    assert "there is no answer, so the question is not kept" in notes
    assert talk.turns == [("hi", "yes")] and talk.prompts == ["u:hi|a:"] * 2


def test_ctrl_c_twice_at_an_empty_line_leaves(talk):
    stop = KeyboardInterrupt
    notes = talk.type(stop(), "hi", stop(), stop(), "never")
    assert talk.prompts == ["u:hi|a:"] and notes.count("Ctrl-C again") == 2
    with pytest.raises(KeyboardInterrupt):
        talk.type(KeyboardInterrupt(15))  # SIGTERM is another matter


def test_an_answer_as_long_as_is_allowed(talk):
    talk.leader.answers = [["12", "34", "56"], ["x"] * 200]
    assert "ended at 4 tokens (/set length)" in talk.type("/set length 4", "hi")
    assert talk.turns == [("hi", "1234")]
    assert "the context of 100 tokens is full" in talk.type("/set length 400", "hi")


def test_a_full_context_is_told_with_the_numbers_and_the_way_out(talk):
    talk.leader.answers = [["x" * 60]]
    talk.type("hi")
    notes = talk.type("y" * 40)
    assert "the conversation has 113 tokens, and the context 100" in notes
    assert "/undo" in notes and "/clear" in notes and "--drop-oldest" in notes
    assert len(talk.turns) == 1 and len(talk.prompts) == 1
    talk.type("/undo", "/retry")
    assert talk.turns == [("y" * 40, "yes")]  # what had no answer is what is asked again
    assert "shorten it, or start with a longer --context" in talk.type("/clear", "z" * 200)


def test_the_oldest_turns_are_forgotten_where_that_is_asked(tmp_path):
    talk = Talk(tmp_path, drop_oldest=True)
    talk.leader.answers = [["x" * 30], ["y" * 20], ["z"]]
    notes = talk.type("one", "two", "three")
    assert "would have 78 tokens of 100: the oldest turn is forgotten" in notes  # 25 are reserved
    assert talk.turns == [("two", "y" * 20), ("three", "z")]


def test_a_refusal_of_the_engine_ends_nothing(talk):
    talk.leader.answers = [UserError("no such stop id"), ["fine"]]
    assert "no such stop id" in talk.type("hi", "/retry") and talk.turns == [("hi", "fine")]
    talk.leader.answers = [MachineError("the disk is gone")]
    with pytest.raises(MachineError):
        talk.type("again")


def test_a_template_that_refuses_is_heard(tmp_path):
    talk = Talk(tmp_path, template="{{ raise_exception('not today') }}")
    assert "refuses this conversation: not today" in talk.type("hi")
    assert not talk.prompts and not talk.turns
