"""Who computes how much: nobody starves, no page is promised twice, the oldest always goes on."""

import random

import pytest

from tpimpi.engine.pages import PAGE_TOKENS, Pages
from tpimpi.engine.scheduler import Scheduler, Text


def begin_all(scheduler):
    found = []
    while start := scheduler.begin():
        scheduler._pages.adopt(start.text.slot, start.found)
        found.append(start.text)
    return found


def scheduler(pages=100, slots=4, max_tokens=512, context=3000):
    own = Pages(pages, slots, context)
    return Scheduler(own, slots, max_tokens, -(-context // PAGE_TOKENS))


def go_on(own, shares, rng=random):
    """Compute shares, and let each text that is whole get a token, or end."""
    for share in shares:
        own.computed(share)
        text = share.text
        if text.left == 0:
            if len(text.ids) == text.most:
                own.remove(text)
            else:
                text.ids.append(rng.randrange(1000))


def test_made_texts_first_and_prompts_share_the_rest():
    own = scheduler()
    made, short, long = Text([1], 50), Text([*range(40)], 50), Text([*range(1000, 3000)], 2500)
    for text in (made, long, short):
        own.add(text)
    assert begin_all(own) == [made, long, short]
    counts = {share.text: share.tokens for share in own.shares(100)}
    assert counts == {made: 1, short: 40, long: 60}
    counts = {share.text: share.tokens for share in own.shares(512)}
    assert counts == {made: 1, short: 40, long: 471}  # as many as a pass holds


def test_a_beginning_that_is_being_computed_is_waited_for():
    own = scheduler()
    first, same, other = (Text([token] * 200, 300) for token in (1, 1, 2))
    for text in (first, same, other):
        own.add(text)
    assert begin_all(own) == [first, other]
    go_on(own, own.shares(512))
    assert begin_all(own) == [same] and same.computed == 192
    assert own._pages.table(same.slot) == own._pages.table(first.slot)[:3]


@pytest.mark.parametrize("pages", [4, 5])
def test_the_last_page_is_copied_only_where_there_is_one_more(pages):
    own = scheduler(pages=pages, slots=2, context=256)
    ids = [*range(250)]
    for cached in (0, 249 if pages == 5 else 192, 249 if pages == 5 else 192):
        text = Text([*ids], 256)
        own.add(text)
        assert begin_all(own) == [text] and text.computed == cached
        while text.slot is not None:
            go_on(own, own.shares(512))
    assert own._pages.used == 0


def test_a_long_text_is_not_passed_by_for_ever():
    own = scheduler(pages=50, slots=4)
    running, long, short = Text([1] * 640, 700), Text([2] * 2900, 2950), Text([3], 9)
    for text in (running, long, short):
        own.add(text)
    assert begin_all(own) == [running]  # long has not room enough, and short is behind it
    own.remove(long)
    assert begin_all(own) == [short]


@pytest.mark.parametrize("seed", range(12))
def test_all_texts_end_however_few_pages_there_are(seed):
    rng = random.Random(seed)
    context = rng.randrange(100, 600)
    own = scheduler(
        -(-context // PAGE_TOKENS) + rng.randrange(4), 5, rng.choice([5, 64, 512]), context
    )
    texts = []
    for _ in range(20):
        prompt = [rng.randrange(3)] * rng.randrange(1, context - 1)
        texts.append(Text(prompt, rng.randrange(len(prompt) + 1, context + 1)))
    coming, passes = list(texts), 0
    while coming or own.running or own.waiting:
        if coming and rng.random() < 0.3:
            own.add(coming.pop())
        begin_all(own)
        shares = own.shares(rng.choice([16, 512]))
        assert shares or not own.running
        assert sum(share.tokens for share in shares) <= own._max_tokens
        if own.running and rng.random() < 0.02:
            own.remove(rng.choice(own.running))
            shares = [share for share in shares if share.text.slot is not None]
        go_on(own, shares, rng)
        passes += 1
        assert passes < 20_000
    assert own._pages.used == 0 and sorted(own._slots) == list(range(5))
    assert all(len(text.ids) <= text.most for text in texts)
