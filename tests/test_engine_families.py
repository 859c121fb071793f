"""Every family against Transformers in FP32, at any number of ranks, windows and prompt chunks."""

import numpy as np
import pytest

from references import FAMILIES
from support import open_session

WAYS = {"resident": (None, 256), "window 2": (2, 7), "window 4": (4, 16)}


def close(ours, theirs):
    """Return the greatest difference as a share of the logits' range."""
    return np.abs(ours - theirs).max() / (theirs.max() - theirs.min())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_greedy_ids(comm, references, shared_tmp, name):
    directory = references / name
    reference = np.load(directory / "reference.npz")
    prompt, greedy = reference["prompt_ids"].tolist(), reference["greedy_ids"].tolist()
    for window, chunk in WAYS.values():
        session, group, _ = open_session(comm, directory, shared_tmp, window, chunk)
        with session:
            if comm.rank == 0:
                runner = session.runner
                logits = []
                for start in range(0, len(prompt), chunk):
                    part = prompt[start : start + chunk]
                    count = len(part)
                    positions = range(start, start + count)
                    lengths = [len(prompt)] * count
                    found = runner.step(part, positions, [0] * count, range(count), lengths)
                    logits.append(found.copy())
                logits = np.concatenate(logits)
                assert close(logits, reference["prompt_logits"]) < 2e-4
                ids, last = [], logits[-1]
                for step in range(len(greedy)):
                    ids.append(int(last.argmax()))
                    last = runner.step([ids[-1]], [len(prompt) + step], [0], [0])[0]
                    if step < len(reference["decode_logits"]):
                        assert close(last, reference["decode_logits"][step]) < 2e-4
                assert ids == greedy
            session.finish()
        group.close()
