"""The flat, ragged batch: a token's logits are the same bits in whatever company."""

from pathlib import Path

import numpy as np
import pytest

import tpimpi
from support import open_session

DEMO = Path(tpimpi.__file__).parent / "demo"


@pytest.mark.parametrize("window", [None, 2])
def test_bits_do_not_depend_on_chunk_or_company(comm, shared_tmp, window):
    session, group, config = open_session(comm, DEMO, shared_tmp, window, slots=4)
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
