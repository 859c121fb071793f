"""A step as it travels: whatever the number of tokens was before, all ranks get the same."""

import itertools

import numpy as np
import pytest

from tpimpi.comm.group import WORD_BYTES
from tpimpi.engine.step import ADOPT, FAIL, STEP, STOP, StepMessage

DIM, MOST = 5, 40


@pytest.fixture
def message():
    return StepMessage(np.zeros((1, StepMessage.words(MOST, DIM)), np.float32), MOST, DIM)


def told(message, group, tokens, count, seed):
    """Send a step of T tokens, n of them selected, and check that it came whole."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 1 << 30, 4 * tokens + count).astype(np.int32)
    hidden = random.standard_normal((tokens, DIM)).astype(np.float32)
    if group.rank == 0:
        message.hidden[:tokens] = hidden
        message.tell_step(group, tokens, rows)
    else:
        assert message.hear(group) == (STEP, tokens, count, [])
    assert (message.rows(tokens, count) == rows).all()
    assert (message.hidden[:tokens] == hidden).all()


def test_steps_of_changing_lengths(message, group):
    lengths = (1, 1, 2, 1, 16, 16, 17, 40, 1, 3, 40, 40, 2, 2)
    for seed, tokens in enumerate(lengths):
        told(message, group, tokens, min(tokens, 1 + seed % 3), seed)


@pytest.mark.parametrize(("operation", "numbers"), [(STOP, []), (ADOPT, [3, 0, 1, 7]), (FAIL, [])])
def test_what_is_no_step_between_steps(message, group, operation, numbers):
    for before, after in itertools.product((1, 7, 40), repeat=2):
        told(message, group, before, 0, before)
        if group.rank == 0:
            message.tell(group, operation, numbers)
        else:
            assert message.hear(group) == (operation, 0, 0, numbers)
        told(message, group, after, after, after)


def test_a_step_like_the_one_before_is_one_message(message, group):
    """Each message costs the delay of a link."""
    sent = []
    for name in ("bcast", "await_word"):
        real = getattr(group, name)

        def counted(buffer, real=real):
            sent.append(buffer.nbytes)
            real(buffer)

        setattr(group, name, counted)
    for tokens in (1, 1, 4, 4, 4, 20, 1):
        told(message, group, tokens, 1, tokens)
    expected = [1, 1, 2, 1, 1, 2, 1]  # a long step is not expected again, one of one token is
    assert len(sent) == sum(expected)


def test_what_is_waited_for_is_never_longer_than_a_word(group):
    """A longer message would go through MPI's own broadcast, in which a rank can't sleep."""
    dim = WORD_BYTES // 40
    message = StepMessage(np.zeros((1, StepMessage.words(16, dim)), np.float32), 16, dim)
    for tokens in (16, 9, 16):
        if group.rank == 0:
            message.tell_step(group, tokens, np.zeros(4 * tokens, np.int32))
        else:
            assert message.hear(group)[:2] == (STEP, tokens)
        assert message._message(8, message._expected).nbytes <= WORD_BYTES
