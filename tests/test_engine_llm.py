"""The Python interface on any number of ranks: what it gives, what it refuses, where it is left."""

import contextlib
import time

import numpy as np
import pytest

import tpimpi
from program import DEMO, GREEDY
from tpimpi import launch, progress
from tpimpi.comm import group
from tpimpi.commands import generate
from tpimpi.commands.command_line import parse
from tpimpi.engine.runner import Runner
from tpimpi.errors import MachineError, UserError
from tpimpi.tape.directio import DirectFile


def load(comm, folder):
    return tpimpi.load(DEMO, comm, memory_window=2, context=200, threads=1, save_dir=folder)


@pytest.fixture
def llm(comm, shared_tmp):
    with load(comm, shared_tmp) as llm:
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
    step = Runner.step
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    monkeypatch.setattr(Runner, "step", lambda *args: (time.sleep(0.3), step(*args))[1])
    options = parse(["generate", "-m", "M", "-p", "ROMEO:", "--temp", "0", "-n", "9"]).options
    generate._write(options, llm, "ROMEO:", "ROMEO:", comm.rank == 0)
    text, said = capsys.readouterr()
    if comm.rank == 0:
        assert (
            f"ROMEO:{GREEDY}".startswith(text.rstrip("\n"))
            and "waiting for the first text, for" in said
        )
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
        reason = stream.completion and stream.completion.finish_reason
        assert reason == ("cancelled" if comm.rank == 0 else None)
    text = "".join(llm.stream("ROMEO:", max_new_tokens=48, temperature=0))
    assert comm.rank != 0 or text == GREEDY


def test_what_numpy_has_made_is_taken(comm, llm):
    given = [np.arange(5, 9), [np.int64(5)]] if comm.rank == 0 else None
    numbers = {"max_new_tokens": np.int64(2), "temperature": np.float32(0.5), "seed": 10**40}
    found = llm.generate(given, stop=None, stop_ids=None, **numbers)
    assert [len(c.ids) for c in found] == ([2, 2] if comm.rank == 0 else [])
    assert llm.generate([] if comm.rank == 0 else None) == []


@pytest.mark.parametrize("place", ["in a text", "between texts", "at the end"])
def test_a_rank_that_leaves_with_an_error_is_heard_of(comm, shared_tmp, place):
    start = time.monotonic()
    leaver = 0 if place == "in a text" else comm.size - 1
    with (
        pytest.raises(KeyError if comm.rank == leaver else MachineError, match="mine"),
        load(comm, shared_tmp) as llm,
    ):
        for _ in llm.stream("ROMEO:", max_new_tokens=9):
            if place == "in a text":
                raise KeyError("mine")
        if comm.rank == leaver and place != "in a text":
            raise KeyError("mine")
        if place != "at the end":
            llm.generate(["A"], max_new_tokens=2)
    assert time.monotonic() - start < group.PATIENCE  # nobody waits for one that has gone


def test_after_a_rank_has_left_the_others_can_not_go_on(comm, shared_tmp):
    with contextlib.suppress(KeyError), load(comm, shared_tmp) as llm:
        if comm.rank == comm.size - 1:
            raise KeyError("mine")
        for words in ("mine", "has left"):
            with pytest.raises(MachineError, match=words):
                llm.generate(["A"], max_new_tokens=2)


@pytest.mark.parametrize("failing", [0, -1])
def test_a_read_that_fails_on_one_rank_is_told_on_all(comm, shared_tmp, monkeypatch, failing):
    def fail(*_):
        raise OSError(5, "the disk is on fire", "shard")

    with load(comm, shared_tmp) as llm:
        if comm.rank == failing % comm.size:
            monkeypatch.setattr(DirectFile, "read", fail)
        for _ in range(2):
            with pytest.raises(MachineError, match="on fire: shard"):
                llm.generate(["ROMEO:"], max_new_tokens=100)
        with pytest.raises(MachineError, match="on fire"):
            llm.score("My lord, the night is long.")


def test_logits_that_are_no_numbers_are_told_on_all_ranks(comm, llm):
    llm._session.model._norm_weight[:] = np.nan
    for call in (lambda: llm.generate(["A"]), lambda: llm.score("A man")):
        with pytest.raises(MachineError, match="are not numbers"):
            call()


def test_a_defect_on_rank_0_is_told_on_all(comm, llm):
    error = AttributeError if comm.rank == 0 else MachineError
    for _ in range(2):
        with pytest.raises(error, match="'str' object has no attribute"):
            llm.stream("A", settings="no settings")


def test_calls_of_a_closed_model_are_refused(comm, shared_tmp):
    llm = load(comm, shared_tmp)
    stream = llm.stream("A", max_new_tokens=2)
    llm.close()
    llm.close()
    assert list(stream) == []
    for call in (llm.figures, lambda: llm.stream("A"), lambda: llm.score("A man")):
        with pytest.raises(UserError, match="was closed"):
            call()


def test_an_interrupted_pass_is_told(shared_tmp, monkeypatch):
    from mpi4py import MPI

    from tpimpi.engine import forward

    def interrupt(*_):
        raise KeyboardInterrupt

    with load(MPI.COMM_SELF, shared_tmp / str(MPI.COMM_WORLD.rank)) as llm:
        monkeypatch.setattr(forward, "silu_gate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["A"])
        monkeypatch.undo()
        with pytest.raises(MachineError, match="load it again"):
            llm.generate(["A"])


def test_score_is_that_of_the_engine(comm, llm):
    ids = np.random.default_rng(0).integers(3, 1000, 70).tolist()
    whole, windows, text = llm.score(ids), llm.score(ids, window=20), llm.score("ROMEO:" + GREEDY)
    if comm.rank == 0:
        assert whole.tokens == windows.tokens == 70 and windows.nll != whole.nll
        assert 0 < text.nll / text.tokens < 3 < 10 < whole.nll / whole.tokens
    else:
        assert whole is windows is text is None


REFUSED = [
    ("", {}, "empty"),
    ("word " * 300, {}, "context"),
    ([1, 2000], {}, "2000"),
    ("A", {"temperature": -1}, "temperature is -1"),
    ("A", {"repeat_penalty": float("inf")}, "finite"),
    ("A", {"top_p": 2}, "from 0 to 1"),
    ("A", {"max_new_tokens": 1.5}, "whole number"),
    ("A", {"warmth": 1}, "known are"),
    ("A", {"stop": ["", "b"]}, "empty"),
    ("A", {"stop": [5]}, "stop_ids"),
    ("A", {"stop_ids": [1.5]}, "whole number"),
    ("A", {"stop_ids": [1024]}, "beyond the vocabulary of 1024"),
    ("A", {"logit_bias": {1024: 1.0}}, "id 1024 is beyond the vocabulary of 1024"),
    ("A", {"logit_bias": {7: 101}}, "from -100.0 to 100.0"),
    ("A", {"logit_bias": {"x": 1}}, "whole number"),
    ("A", {"logit_bias": 7}, "id: what is added"),
    ("A", {"logit_bias": [7]}, "pairs of an id and a number"),
    ("A", {"presence_penalty": 3}, "from -2.0 to 2.0"),
    ("A", {"frequency_penalty": "1"}, "must be a number"),
    ("A", {"temperature": float("inf")}, "finite"),
    ("A", {"temperature": 10**400}, "finite"),
    ("A", {"ignore_eos": "no"}, "True or False"),
    (None, {}, "a text or a list of ids"),
    (b"A", {}, "not bytes"),
    ([1.5], {}, "an id is 1.5"),
    (["A"], {}, "an id is 'A'"),
    (np.zeros((2, 2), int), {}, "whole number"),
]


def test_refusals_leave_the_model_as_it_was(comm, llm):
    for prompt, choices, words in REFUSED:
        with pytest.raises(UserError, match=words):
            llm.stream(prompt, **choices)
        assert len(llm.generate(["A"], max_new_tokens=2)) == (comm.rank == 0)
    for prompts in ("ROMEO:", 5, None):
        with pytest.raises(UserError, match="a list of prompts"):
            llm.generate(prompts)
    for window, words in ((1, "least 2"), (0, "least 2"), (2.5, "whole"), (201, "200 tokens")):
        with pytest.raises(UserError, match=words):
            llm.score("My lord, the night is long.", window)
    with pytest.raises(UserError, match="a text or a list of ids"):
        llm.score(None)


def test_without_bos_windows_begin_with_the_token_before(comm, llm):
    object.__setattr__(llm.config, "bos_token_id", None)
    for window in (2, 3, 70):
        score = llm.score([*range(100, 120)], window)
        assert comm.rank != 0 or score.tokens == 19


def test_threads_that_one_rank_refuses_are_refused_on_all(comm, monkeypatch):
    def refuse(_):
        raise UserError("no such threads")

    if comm.rank == comm.size - 1:
        monkeypatch.setattr(launch, "prepare", refuse)
    with pytest.raises(UserError, match="no such threads"):
        tpimpi.load(DEMO, comm)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"context": "9"}, "whole number"),
        ({"threads": 0}, "at least 1"),
        ({"memory_budget": None}, "whole number"),
        ({"memory_budget": 3000000000.5}, "whole number"),
        ({"memory_budget": 200}, "did you mean"),
        ({"prompt_chunk": 1.5}, "whole number"),
        ({"context": 9999}, "from 2 to the model's 512"),
        ({"memory_budget": "3XB"}, "3XB"),
        ({"memory_window": 1}, "at least 2"),
        ({"memory_window": 3, "keep_all": True}, "exclude"),
        ({"memory_budget": 1 << 20}, "too small"),
    ],
)
def test_loads_that_are_refused(comm, shared_tmp, choices, words):
    with pytest.raises(UserError, match=words):
        tpimpi.load(DEMO, comm, save_dir=shared_tmp, **{"threads": 1} | choices)
    with pytest.raises(UserError, match="does not exist"):
        tpimpi.load(DEMO / "nothing", comm, threads=1)
