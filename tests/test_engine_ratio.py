"""Unequal shares on any number of ranks: Transformers' logits, whoever owns how much or nothing."""

import numpy as np
import pytest

import tpimpi
from program import DEMO, GREEDY
from support import open_session
from tpimpi.errors import UserError
from tpimpi.model.partition import Partition

# By the number of ranks: some own most, some nothing, the first and the last among them.
RATIOS = {
    1: [(1,)],
    2: [(2, 1), (0, 1), (1, 0)],
    3: [(1, 3, 2), (0, 2, 1), (5, 0, 1)],
    4: [(3, 2, 2, 1), (0, 1, 0, 2)],
    5: [(1, 2, 3, 4, 5)],
    8: [(7, 1, 1, 0, 3, 2, 1, 1)],
}
# Of one, two and five key/value heads; with biases; with norms of heads; with a window.
FAMILIES = ("mistral_window", "llama3", "llama31", "biased", "qwen3", "yi")


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(comm, references, shared_tmp, name):
    reference = np.load(references / name / "reference.npz")
    prompt, greedy = reference["prompt_ids"].tolist(), reference["greedy_ids"].tolist()
    for number, shares in enumerate(RATIOS[comm.size]):
        for window in (None, 2):
            folder = shared_tmp / str(number)
            session, group, _ = open_session(comm, references / name, folder, window, shares=shares)
            with session:
                if comm.rank == 0:
                    runner, count = session.runner, len(prompt)
                    given = prompt, range(count), [0] * count, range(count), [count] * count
                    logits = runner.step(*given).copy()
                    theirs = reference["prompt_logits"]
                    difference = np.abs(logits - theirs).max() / (theirs.max() - theirs.min())
                    assert difference < 2e-4
                    ids, last = [], logits[-1]
                    for step in range(len(greedy)):
                        ids.append(int(last.argmax()))
                        last = runner.step([ids[-1]], [count + step], [0], [0])[0]
                    assert ids == greedy
                session.finish()
            group.close()


def test_each_rank_holds_its_share(comm, shared_tmp):
    shares = RATIOS[comm.size][-1]
    session, group, config = open_session(comm, DEMO, shared_tmp, shares=shares)
    with session:
        held = comm.allgather(session.tape.resident_bytes)
        session.finish()
    group.close()
    assert [bytes_ > 0 for bytes_ in held] == [share > 0 for share in shares]
    order = [held[rank] for rank in np.argsort(shares, kind="stable")]
    assert order == sorted(order) or len(set(shares)) < len(shares)


@pytest.mark.parametrize("spelled", [tuple, lambda shares: ",".join(str(s / 2) for s in shares)])
def test_load_takes_a_ratio(comm, shared_tmp, spelled):
    ratio = spelled(RATIOS[comm.size][0])
    with tpimpi.load(DEMO, comm, context=64, threads=1, save_dir=shared_tmp, ratio=ratio) as llm:
        (found,) = llm.generate(["ROMEO:"], max_new_tokens=16, temperature=0) or [None]
    if comm.rank == 0:
        assert GREEDY.startswith(found.text) and len(found.ids) == 16


@pytest.mark.parametrize(
    ("ratio", "said"),
    [("1,x", "ratio: 'x' in '1,x' is no number"), ((1, -1), "-1 is less than nothing"),
     ([0.0], "gives no rank a share"), (3, "ratio: "), ([True], "'True' in 'True' is no number"),
     ([1] * 99, "lists 99 shares, but there")],
)  # fmt: skip
def test_load_refuses_what_is_no_ratio(comm, shared_tmp, ratio, said):
    with pytest.raises(UserError, match=said):
        tpimpi.load(DEMO, comm, threads=1, save_dir=shared_tmp, ratio=ratio)


def test_auto_finds_the_shares_it_took_before(comm, shared_tmp, capfd):
    """In a folder that the user named, whatever is measured the second time."""
    choices = {"context": 64, "threads": 1, "save_dir": shared_tmp}
    if comm.size > 1:
        with tpimpi.load(DEMO, comm, ratio=RATIOS[comm.size][0], **choices) as llm:
            before = llm._model.source.partition
    capfd.readouterr()
    with tpimpi.load(DEMO, comm, ratio="auto", **choices) as llm:
        partition = llm._model.source.partition
        (found,) = llm.generate(["ROMEO:"], max_new_tokens=16, temperature=0) or [None]
    said = capfd.readouterr().err
    assert len(set(comm.allgather(partition.to_json()))) == 1
    if comm.rank == 0:
        assert GREEDY.startswith(found.text) and len(found.ids) == 16
    if comm.size == 1:
        assert partition == Partition.of(llm.config, [1])
        return
    assert partition.to_json() == before.to_json()
    if comm.rank == 0:
        assert "as measured: weights in memory" in said
        assert "there are shards of this cut" in said
