"""The flat, ragged batch: a token's logits are the same bits in whatever company."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tpimpi
from support import open_session
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
            runner, alone = session.runner, []
            for ids in texts:  # one token at a time
                rows = [runner.step([t], [i], [0], [0])[0].copy() for i, t in enumerate(ids)]
                alone.append(np.array(rows))
                runner.pages.release(0)
            for ids, expected in zip(texts, alone, strict=True):  # in chunks
                for chunk in (5, 64):
                    for start in range(0, len(ids), chunk):
                        part = ids[start : start + chunk]
                        count = len(part)
                        positions = range(start, start + count)
                        found = runner.step(part, positions, [1] * count, range(count))
                        assert (found == expected[start : start + count]).all()
                    runner.pages.release(1)
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
                found = runner.step(ids, positions, slots, range(len(ids)))
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
                    found = session.runner.step([3, 5, 7], range(3), [slot] * 3, range(3)).copy()
                    session.runner.pages.release(slot)
                logits.append(found)
            session.finish()
        group.close()
    if comm.rank == 0:
        assert (logits[0] == logits[1]).all()


def test_a_step_that_can_not_begin_is_told_to_nobody(comm, shared_tmp):
    session, group, config = open_session(comm, DEMO, shared_tmp)
    with session:
        if comm.rank == 0:
            expected = session.runner.step([5], [0], [0], [0]).copy()
            with pytest.raises(MachineError, match="cut short at embed"):
                session.runner.step([10**9], [0], [0], [0])
            assert (session.runner.step([5], [0], [0], [0]) == expected).all()
        session.finish()
    group.close()


def test_score_is_the_sum_of_log_probabilities(comm, shared_tmp):
    session, group, config = open_session(comm, DEMO, shared_tmp, max_logits=5)
    ids = np.random.default_rng(2).integers(3, config.vocab_size, 23).tolist()
    with session:
        if comm.rank == 0:
            found = session.runner.score(ids)
            rows = [session.runner.step([t], [i], [0], [0])[0].copy() for i, t in enumerate(ids)]
            rows = np.array(rows[:-1], np.float64)
            expected = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(22), ids[1:]]
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        session.finish()
    group.close()
