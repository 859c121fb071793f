"""A conversation whose keys and values were saved goes on without computing them again."""

import numpy as np
import pytest

import tpimpi
from program import DEMO
from tpimpi.errors import UserError

IDS = np.random.default_rng(3).integers(3, 1000, 150).tolist()
GREEDY = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 12}


def load(comm, folder, **choices):
    return tpimpi.load(DEMO, comm, context=400, threads=1, save_dir=folder, **choices)


def made(leader, ids):
    text = leader.stream(ids, **GREEDY)
    for _ in text:
        pass
    return text.completion


def test_a_saved_text_goes_on(comm, shared_tmp):
    folder = shared_tmp / "conversation.kv"
    kept, first = 0, None
    with load(comm, shared_tmp) as llm, llm.leading() as leader:
        if leader is not None:
            first = made(leader, IDS)
            kept = leader.keep([*first.prompt_ids, *first.ids], folder)
            assert kept == 161  # all but the last, which nobody has gone on from
            assert leader.keep([5, 6, 7], folder / "nothing") == 0
            turn = [*first.prompt_ids, *first.ids, 9, 9, 9]
            expected = made(leader, turn).ids
    kept = comm.bcast(kept)
    (mine,) = folder.glob(f"kv-{comm.rank}-of-{comm.size}.h5")
    assert mine.stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob("*.partial"))
    with load(comm, shared_tmp) as llm, llm.leading() as leader:
        if leader is not None:
            ids = turn[:kept]
            leader.recall(ids, folder)
            again = made(leader, turn)
            assert again.cached_tokens == kept and again.ids == expected
    others = shared_tmp / "of another run"
    comm.Barrier()
    if comm.rank == comm.size - 1:
        others.mkdir()
        (others / "kv-0-of-9.h5").touch()
        damaged = bytearray(mine.read_bytes())
        damaged[-20000] ^= 1
        mine.write_bytes(damaged)
    comm.Barrier()
    with load(comm, shared_tmp) as llm, llm.leading() as leader:
        if leader is not None:
            for wrong, words in (
                (lambda: leader.recall(ids, folder), rf"damaged.*\(rank {comm.size - 1} on "),
                (lambda: leader.recall([*ids[:-1], 5], folder), "another text"),
                (lambda: leader.recall(ids, folder / "nothing"), "does not exist"),
                (lambda: leader.recall(ids, others), f"of 9 ranks, this run has {comm.size}"),
                (lambda: leader.recall([5] * 401, folder), "401 tokens"),
            ):
                with pytest.raises(UserError, match=words):
                    wrong()
            assert llm._session.runner.pages.used == 0
            assert made(leader, turn).ids == expected  # nothing of the damaged ones was found


def test_a_folder_that_cannot_be_made_is_told_and_all_go_on(comm, shared_tmp):
    with load(comm, shared_tmp) as llm, llm.leading() as leader:
        if leader is not None:
            (shared_tmp / "file").write_text("")
            first = made(leader, IDS)
            with pytest.raises(UserError, match="(File exists|Not a directory).*rank"):
                leader.keep(first.prompt_ids, shared_tmp / "file")
            assert made(leader, IDS).ids == first.ids


def test_prompts_of_a_list_are_made_together(comm, shared_tmp):
    prompts = [IDS, IDS[:70], [*IDS[:100], 5], [7, 8]] * 3
    with load(comm, shared_tmp, max_batch=5) as llm:
        found = llm.generate(prompts, seed=3, max_new_tokens=9, ignore_eos=True)
        alone = [llm.generate([p], seed=3, max_new_tokens=9, ignore_eos=True) for p in prompts]
        if comm.rank == 0:
            assert [c.ids for c in found] == [c.ids for (c,) in alone]
            assert found[-1].cached_tokens == 0 < found[4].cached_tokens
            passes = llm._session.engine.passes
            assert passes < 9 * 3 + 15 + 9 * 12  # of 9 * 12 * 2 one by one


def test_logprobs_are_those_of_the_logits(comm, shared_tmp):
    with load(comm, shared_tmp) as llm:
        found = llm.generate([[1, *IDS[:9]]], logprobs=3, max_new_tokens=4, temperature=0)
        score = llm.score([*IDS[:9], *found[0].ids] if comm.rank == 0 else IDS)
        first = llm.score(IDS[:9])
        if comm.rank == 0:
            told = sum(token.logprob for token in found[0].tokens)
            assert told == pytest.approx(first.nll - score.nll, abs=1e-4)
            for token in found[0].tokens:
                assert token.top[0] == (token.id, token.logprob) and len(token.top) == 3
                assert sorted(token.top, key=lambda pair: -pair[1]) == list(token.top)


def test_texts_in_turn_are_each_whole(comm, shared_tmp):
    """Also beside one that fails, and not beyond the block."""
    with load(comm, shared_tmp) as llm:
        expected = llm.generate([IDS, IDS[:9]], **GREEDY)
        with llm.leading() as leader:
            if leader is not None:
                texts = [leader.stream(ids, **GREEDY) for ids in (IDS, IDS[:9])]
                failing = leader.stream(IDS[:5], constraint=_Failing(), **GREEDY)
                pieces, left = ["", ""], [iter(text) for text in texts]
                third = iter(failing)
                assert next(third)
                with pytest.raises(UserError, match="half-way"):
                    leader.recall(IDS, shared_tmp)
                for number in [0, 1, 1, 0] * 20:
                    pieces[number] += next(left[number], "")
                with pytest.raises(ValueError, match="broken"):
                    list(third)
                assert pieces == [c.text for c in expected]
                assert llm._session.runner.pages.used == 0
                with pytest.raises(UserError, match="serve what rank 0 leads"):
                    llm.figures()
                late = leader.stream(IDS, **GREEDY)
        if comm.rank == 0:
            with pytest.raises(UserError, match="was left"):
                list(late)
        assert len(llm.generate([IDS], **GREEDY)) == (comm.rank == 0)


class _Failing:
    complete = False

    def allowed(self):
        return None

    def accept(self, token):
        self.left = getattr(self, "left", 4) - 1
        if not self.left:
            raise ValueError("the structure is broken")


def test_a_pool_of_one_context_serves_texts_that_fill_it(comm, shared_tmp):
    with load(comm, shared_tmp, kv_tokens=400) as llm:
        prompts = [[5] * 397, [5] * 390 + [9] * 7, [5] * 397, IDS]
        found = [llm.generate([p], **GREEDY | {"max_new_tokens": 2}) for p in prompts]
        if comm.rank == 0:
            assert found[0][0].ids == found[2][0].ids
            assert llm._session.runner.pages.used == 0
