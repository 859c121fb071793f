"""Pages are counted, found again by their tokens, and never two texts' at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.engine.kvcache import kept_window
from tpimpi.engine.pages import NONE, PAGE_TOKENS, Pages, names_of
from tpimpi.errors import MachineError
from tpimpi.memory.account import pages_held


def held(pages, slots):
    return [page for slot in range(slots) for page in pages.table(slot) if page != NONE]


def test_pages_that_no_layer_sees_are_given_back():
    most = pages_held(10_000, 100, 70, PAGE_TOKENS)
    assert most == 4  # 168 positions before the last token of a chunk, wherever they begin
    pages = Pages(2 * most, 2, 10_000, window=100)
    for start in (*range(0, 9_900, 70), 0, 35):  # at the end the text begins anew
        for slot in (0, 1):
            pages.reserve(slot, start, start + 69)
            seen = max(start - 99, 0) // PAGE_TOKENS
            table = pages.table(slot)
            assert len(table) == (start + 69) // PAGE_TOKENS + 1
            assert NONE not in table[seen:] and set(table[:seen]) <= {NONE}
        assert len(held(pages, 2)) == len(set(held(pages, 2))) == pages.used
    pages.release(0)
    pages.release(1)
    assert pages.room == 2 * most


def test_all_pages_stay_where_a_layer_sees_them():
    pages = Pages(16, 1, 1000)
    for at in range(1000):
        pages.reserve(0, at, at)
    assert NONE not in pages.table(0) and len(pages.table(0)) == 16 and kept_window((7, 5)) == 7
    assert kept_window((None, 5)) is None
    with pytest.raises(MachineError, match="position 1000 is beyond the planned 1000"):
        pages.reserve(0, 1000, 1000)
    with pytest.raises(MachineError, match="all 1 pages"):
        Pages(1, 1, 1000).reserve(0, 0, 64)


def make(pages, slot, ids):
    """Compute a text from where it isn't found, and return what was found."""
    found = pages.find(ids, names_of(ids))
    adopted = pages.adopt(slot, found)
    assert len(adopted.pages) * PAGE_TOKENS >= adopted.tokens == found.tokens
    pages.reserve(slot, found.tokens, len(ids) - 1)
    pages.name(slot, ids)
    return adopted


def test_a_text_that_goes_on_is_found_and_its_last_page_copied():
    pages, random = Pages(40, 3, 1000), np.random.default_rng(0)
    ids = random.integers(0, 1000, 200).tolist()
    assert make(pages, 0, ids).tokens == 0
    # While it runs, only its full pages are found: the other may still grow.
    assert pages.find(ids, names_of(ids)).tokens == 192
    pages.release(0, ids)
    assert (pages.used, pages.cached) == (0, 4)
    longer = [*ids, *random.integers(0, 1000, 30).tolist()]
    adopted = make(pages, 1, longer)
    assert adopted.tokens == 200 and adopted.copy[0] != adopted.copy[1] == adopted.pages[3]
    assert len(set(adopted.pages)) == 4 and adopted.copy[0] not in adopted.pages
    # The same text once more: all but its last token, of which the logits are wanted.
    again = pages.find(ids, names_of(ids))
    assert again.tokens == 199 and again.copied is not None
    fork = make(pages, 2, [*ids[:100], *reversed(ids[100:])])  # leaves it within a page
    assert fork.tokens == 100 and fork.pages[0] == adopted.pages[0]
    assert len(set(held(pages, 3))) == pages.used


def test_the_longest_unused_is_forgotten_first_and_the_end_before_the_beginning():
    pages, texts = Pages(6, 1, 1000), [[n] * 129 for n in range(3)]
    for ids in texts[:2]:
        make(pages, 0, ids)
        pages.release(0, ids)
    assert pages.room == 6 and pages.cached == 6
    make(pages, 0, texts[2])
    pages.release(0, texts[2])
    found = [pages.find([*ids, 5], names_of(ids)).tokens for ids in texts]
    assert found[1:] == [129, 129] and found[0] == 0


def test_what_is_spoiled_is_not_found():
    pages, ids = Pages(6, 2, 1000), [7] * 129
    make(pages, 0, ids)
    pages.release(0, ids, spoiled=True)
    assert pages.cached == 0 and pages.find(ids, names_of(ids)).tokens == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_page_is_two_texts_and_what_is_found_is_theirs(data):
    """Against a model of the memory: which token was written to which place of which page."""
    slots = 3
    pages, memory = Pages(12, slots, 600), np.full((12, PAGE_TOKENS), -1)
    texts: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        slot = data.draw(st.integers(0, slots - 1))
        if slot in texts:
            spoiled = data.draw(st.booleans())
            pages.release(slot, texts.pop(slot), spoiled)
            continue
        # Few tokens, so that texts begin alike.
        lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
        ids = [token for token, n in enumerate(lengths) for _ in range(n)]
        found = pages.find(ids, names_of(ids))
        if -(-len(ids) // PAGE_TOKENS) > pages.room:
            continue
        adopted = pages.adopt(slot, found)
        if adopted.copy:
            memory[adopted.copy[1]] = memory[adopted.copy[0]]
        pages.reserve(slot, adopted.tokens, len(ids) - 1)
        table = pages.table(slot)
        for at in range(adopted.tokens, len(ids)):
            memory[table[at // PAGE_TOKENS], at % PAGE_TOKENS] = ids[at]
        texts[slot] = ids
        pages.name(slot, ids)
        for other, written in texts.items():
            table = pages.table(other)
            read = [memory[table[n // PAGE_TOKENS], n % PAGE_TOKENS] for n in range(len(written))]
            assert read == written
    for slot, ids in texts.items():
        pages.release(slot, ids)
    assert pages.used == 0 and pages.room == 12
