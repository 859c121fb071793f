"""The flat, ragged batch: a token's logits are the same bits in whatever company."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpimpi
from support import open_session
from tpimpi.engine.kvcache import KVCache, kept_window
from tpimpi.errors import MachineError

DEMO = Path(tpimpi.__file__).parent / "demo"


@pytest.mark.parametrize(
    ("name", "window", "threads"),
    [("demo", None, 1), ("demo", 2, 1), ("demo", None, 2), ("mistral_window", 2, 1),
     ("qwen2_window", None, 1), ("qwen3", 2, 1), ("qwen3_window", None, 1), ("yarn", 2, 1),
     ("dynamic", None, 1)],
)  # fmt: skip
def test_bits_do_not_depend_on_chunk_or_company(
    comm, references, shared_tmp, name, window, threads
):
    directory = DEMO if name == "demo" else references / name
    session, group, config = open_session(
        comm, directory, shared_tmp, window, slots=4, threads=threads
    )
    random = np.random.default_rng(1)
    texts = [random.integers(3, config.vocab_size, n).tolist() for n in (33, 7, 70)]
    with session:
        if comm.rank == 0:
            engine, alone = session.engine, []
            for ids in texts:  # one token at a time
                rows = [engine.step([t], [i], [0], [0])[0].copy() for i, t in enumerate(ids)]
                alone.append(np.array(rows))
                engine.release(0)
            for ids, expected in zip(texts, alone, strict=True):  # in chunks
                for chunk in (5, 64):
                    for start in range(0, len(ids), chunk):
                        part = ids[start : start + chunk]
                        count = len(part)
                        positions = range(start, start + count)
                        found = engine.step(part, positions, [1] * count, range(count))
                        assert (found == expected[start : start + count]).all()
                    engine.release(1)
            # Three sequences side by side, a different number of tokens of each.
            at = [0, 0, 0]
            while any(a < len(ids) for a, ids in zip(at, texts, strict=True)):
                ids, positions, slots, expected = [], [], [], []
                for slot, step in ((2, 9), (0, 4), (1, 1)):
                    stop = min(at[slot] + step, len(texts[slot]))
                    ids += texts[slot][at[slot] : stop]
                    positions += range(at[slot], stop)
                    slots += [slot] * (stop - at[slot])
                    expected += list(alone[slot][at[slot] : stop])
                    at[slot] = stop
                found = engine.step(ids, positions, slots, range(len(ids)))
                assert (found == np.array(expected)).all()
        session.finish()
    group.close()


def test_a_matrix_of_another_encoding_beside_others(comm, references, shared_tmp):
    """Keys' matrices in f32 between those in f16: the same numbers, and so the same bits."""
    mixed = shared_tmp / "mixed"
    if comm.rank == 0:
        shutil.copytree(references / "llama31", mixed)
        (path,) = mixed.glob("*.safetensors")
        tensors = load_file(path)
        for name in tensors:
            if "k_proj" in name:
                tensors[name] = tensors[name].astype(np.float32)
        save_file(tensors, path, {"format": "pt"})
    comm.Barrier()
    logits = []
    for directory in (references / "llama31", mixed):
        session, group, _ = open_session(comm, directory, shared_tmp / directory.name)
        with session:
            if comm.rank == 0:
                # Twice: in the first pass nothing lies in memory yet.
                for slot in (0, 0):
                    found = session.engine.step([3, 5, 7], range(3), [slot] * 3, range(3)).copy()
                    session.engine.release(slot)
                logits.append(found)
            session.finish()
        group.close()
    if comm.rank == 0:
        assert (logits[0] == logits[1]).all()


def test_a_step_that_can_not_begin_is_told_to_nobody(comm, shared_tmp):
    session, group, config = open_session(comm, DEMO, shared_tmp)
    with session:
        if comm.rank == 0:
            expected = session.engine.step([5], [0], [0], [0]).copy()
            with pytest.raises(MachineError, match="cut short at embed"):
                session.engine.step([10**9], [0], [0], [0])
            assert (session.engine.step([5], [0], [0], [0]) == expected).all()
        session.finish()
    group.close()


def test_score_is_the_sum_of_log_probabilities(comm, shared_tmp):
    session, group, config = open_session(comm, DEMO, shared_tmp, max_logits=5)
    ids = np.random.default_rng(2).integers(3, config.vocab_size, 23).tolist()
    with session:
        if comm.rank == 0:
            found = session.engine.score(ids)
            rows = [session.engine.step([t], [i], [0], [0])[0].copy() for i, t in enumerate(ids)]
            rows = np.array(rows[:-1], np.float64)
            expected = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(22), ids[1:]]
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        session.finish()
    group.close()


def test_pages_that_no_layer_sees_are_given_back():
    cache = KVCache(layers=1, kv_heads=1, head_dim=8, slots=2, context=10_000, window=100, chunk=70)
    pages = cache.keys.shape[1] // 2
    assert pages == 4  # 168 positions before the last token of a chunk, wherever they begin
    for start in (*range(0, 9_900, 70), 0, 35):  # at the end the text begins anew
        positions = np.arange(start, start + 70, dtype=np.int32)
        for slot in (0, 1):
            cache.reserve(positions, np.full(70, slot))
            row = cache.page_table[slot]
            seen = range(max(start - 99, 0) // 64, (start + 69) // 64 + 1)
            assert (row[seen.start : seen.stop] >= 0).all() and (row[: seen.start] < 0).all()
        held = cache.page_table[cache.page_table >= 0]
        assert len(held) == len(set(held.tolist())) <= 2 * pages
    cache.release(0)
    cache.release(1)
    assert sorted(cache._free) == list(range(2 * pages))


def test_all_pages_stay_where_a_layer_sees_them():
    cache = KVCache(1, 1, 8, 1, 1000, kept_window((None, 5)), 1)
    for at in range(1000):
        cache.reserve(np.array([at]), np.array([0]))
    assert (cache.page_table >= 0).all() and kept_window((7, 5)) == 7
