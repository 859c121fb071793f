"""The Python interface on any number of ranks: what it gives, what it refuses, where it is left."""

import time

import numpy as np
import pytest

import tpimpi
from program import DEMO, GREEDY
from tpimpi import progress
from tpimpi.commands import generate
from tpimpi.commands.command_line import parse
from tpimpi.engine.engine import Engine
from tpimpi.errors import UserError


@pytest.fixture
def llm(comm, shared_tmp):
    with tpimpi.load(
        DEMO, comm, memory_window=2, context=200, threads=1, save_dir=shared_tmp
    ) as llm:
        yield llm


def test_text_is_rank_0s(comm, llm):
    choices = {"max_new_tokens": 48, "temperature": 0}
    stream = llm.stream("ROMEO:", **choices)
    text = "".join(stream)
    assert text == (GREEDY if comm.rank == 0 else "")
    found = llm.generate(["ROMEO:", [1, *range(5, 30)], "ROMEO:"], **choices)
    if comm.rank == 0:
        assert [c.text for c in found[::2]] == [GREEDY] * 2 and len(found[1].ids) == 48
        assert found[0].finish_reason == "length" and stream.completion.ids == found[0].ids
        assert 0 < found[0].first_token_seconds <= found[0].seconds
    else:
        assert found == [] and stream.completion is None
    figures = llm.figures()
    assert [f.rank for f in figures or []] == (list(range(comm.size)) if comm.rank == 0 else [])


def test_the_wait_for_the_first_text_is_told(comm, llm, monkeypatch, capsys):
    prefill = Engine.prefill
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    monkeypatch.setattr(Engine, "prefill", lambda *args: (time.sleep(0.3), prefill(*args))[1])
    options = parse(["generate", "-m", "M", "-p", "ROMEO:", "--temp", "0", "-n", "48"]).options
    generate._write(options, llm, "ROMEO:", "ROMEO:", comm.rank == 0)
    text, said = capsys.readouterr()
    if comm.rank == 0:
        assert text == f"ROMEO:{GREEDY}\n" and "waiting for the first text, for" in said
    else:
        assert (text, said) == ("", "")


def test_seeds_stops_and_ids(comm, llm):
    def texts(**choices):
        return [c.text for c in llm.generate(["O Romeo"] * 2, max_new_tokens=12, **choices)]

    first, again, other = texts(seed=3), texts(seed=3), texts(seed=4)
    if comm.rank == 0:
        assert first == again != other and first[0] == first[1]
    (stopped, by_id) = [
        llm.generate(["ROMEO:"], max_new_tokens=48, temperature=0, **ends)
        for ends in ({"stop": GREEDY[9:14]}, {"stop_ids": [7]})
    ]
    if comm.rank == 0:
        assert stopped[0].text == GREEDY[: GREEDY.index(GREEDY[9:14])]
        assert stopped[0].finish_reason == "stop"
        assert by_id[0].ids.count(7) == (by_id[0].finish_reason == "stop")


def test_a_text_may_be_left_half_way(comm, llm):
    for left in range(3):  # pieces taken on rank 0; the others iterate, or do not
        stream = llm.stream("ROMEO:", max_new_tokens=48, temperature=0)
        if comm.rank == 0 or left == 1:
            for number, _ in enumerate(stream, 1):
                if number >= left:
                    break
        if left == 2:
            stream.close()
            stream.close()
    text = "".join(llm.stream("ROMEO:", max_new_tokens=48, temperature=0))
    assert comm.rank != 0 or text == GREEDY


def test_score_is_that_of_the_engine(comm, llm):
    ids = np.random.default_rng(0).integers(3, 1000, 70).tolist()
    whole, windows, text = llm.score(ids), llm.score(ids, window=20), llm.score("ROMEO:" + GREEDY)
    if comm.rank == 0:
        assert whole.tokens == windows.tokens == 70 and windows.nll != whole.nll
        assert 0 < text.nll / text.tokens < 3 < 10 < whole.nll / whole.tokens
    else:
        assert whole is windows is text is None


@pytest.mark.parametrize(
    ("prompt", "choices", "words"),
    [
        ("", {}, "empty"),
        ("word " * 300, {}, "context"),
        ([1, 2000], {}, "2000"),
        ("A", {"temperature": -1}, "temperature is -1"),
        ("A", {"repeat_penalty": float("inf")}, "must be finite, at least 0.001"),
        ("A", {"top_p": 2}, "from 0 to 1"),
        ("A", {"max_new_tokens": 1.5}, "whole number"),
        ("A", {"warmth": 1}, "known are"),
        ("A", {"stop": ["", "b"]}, "empty"),
    ],
)
def test_refusals_leave_the_model_as_it_was(comm, llm, prompt, choices, words):
    with pytest.raises(UserError, match=words):
        llm.stream(prompt, **choices)
    assert len(llm.generate(["A"], max_new_tokens=2)) == (comm.rank == 0)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"context": 9999}, "from 2 to the model's 512"),
        ({"memory_budget": "3XB"}, "3XB"),
        ({"memory_window": 1}, "at least 2"),
        ({"memory_window": 3, "keep_all": True}, "exclude"),
        ({"memory_budget": 1 << 20}, "too small"),
    ],
)
def test_loads_that_are_refused(comm, shared_tmp, choices, words):
    with pytest.raises(UserError, match=words):
        tpimpi.load(DEMO, comm, threads=1, save_dir=shared_tmp, **choices)
    with pytest.raises(UserError, match="does not exist"):
        tpimpi.load(DEMO / "nothing", comm, threads=1)
