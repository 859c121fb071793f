"""Whose the pages of the KV cache are, and which tokens' keys and values lie in them (rank 0).

A page has users, the sequences that read it, and a name: the hash of all tokens up to its end. A
page with a name outlives its users, until its memory is needed: the longest unused goes first. So a
prompt that begins as an earlier text did finds the pages of that beginning (Kwon et al. 2023,
arXiv:2309.06180, and Zheng et al. 2023, arXiv:2312.07104, share them in the same way).

Keys and values don't depend on company, so those found are the bits that would be computed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpimpi.errors import MachineError
from tpimpi.kernels.attention import PAGE as PAGE_TOKENS

NONE = -1  # where a slot's table has no page
_ROOT = b""  # the name of what comes before the first page


@dataclass(frozen=True)
class Found:
    """The beginning of a text that lies in pages already: `tokens` of them.

    Of the last one of `copied` only some tokens are the same, so that it must be copied.
    """

    tokens: int = 0
    pages: tuple[int, ...] = ()
    copied: int | None = None  # the page


@dataclass(frozen=True)
class Adopted:
    """What a slot's table begins with, and the page to be copied before: from, to."""

    tokens: int
    pages: tuple[int, ...]
    copy: tuple[int, int] | None


def names_of(ids: Sequence[int]) -> list[bytes]:
    """Return the names of all full pages of a text."""
    names, name = [], _ROOT
    for end in range(PAGE_TOKENS, len(ids) + 1, PAGE_TOKENS):
        name = _name(name, ids[end - PAGE_TOKENS : end])
        names.append(name)
    return names


def _name(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(before + np.array(ids, "<i8").tobytes(), digest_size=16).digest()


class Pages:
    """`count` pages for `slots` sequences of at most `context` tokens each.

    Where no layer sees more than `window` positions, pages before them are given back.
    """

    def __init__(self, count: int, slots: int, context: int, window: int | None = None):
        self.count, self.context, self._window = count, context, window
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._named: dict[bytes, int] = {}  # full pages by their names
        # Of each name the pages that go on from there, and their tokens: also of unfinished ones.
        self._next: dict[bytes, dict[int, tuple[int, ...]]] = {}
        self._before: dict[int, bytes] = {}  # of each page in _next: the name it goes on from
        self._unused: OrderedDict[int, None] = OrderedDict()  # with names; the oldest first
        self._tables: list[list[int]] = [[] for _ in range(slots)]
        self._last: list[list[bytes]] = [[] for _ in range(slots)]  # the names of its full pages

    @property
    def room(self) -> int:
        """How many pages can be taken."""
        return len(self._free) + len(self._unused)

    @property
    def used(self) -> int:
        """How many pages sequences use."""
        return self.count - self.room

    @property
    def cached(self) -> int:
        """How many pages nobody uses, but may be found again."""
        return len(self._unused)

    def table(self, slot: int) -> list[int]:
        """Return the pages of a sequence, NONE where they were given back."""
        return self._tables[slot]

    def missing(self, slot: int, last: int) -> int:
        """Return how many pages a sequence must take for positions up to `last`."""
        return max(last // PAGE_TOKENS + 1 - len(self._tables[slot]), 0)

    def give_back(self, slot: int, first: int) -> None:
        """Take the pages back that no token of a sequence sees from position `first` on."""
        if self._window is None:
            return
        table = self._tables[slot]
        seen = max(first - self._window + 1, 0) // PAGE_TOKENS
        if NONE in table[seen : first // PAGE_TOKENS + 1]:
            self.release(slot)  # the text begins anew
            return
        for index in range(min(seen, len(table))):
            if table[index] != NONE:
                self._drop(table[index])
                table[index] = NONE
        table += [NONE] * (seen - len(table))

    def reserve(self, slot: int, first: int, last: int) -> dict[int, int]:
        """Give positions first .. last of a sequence pages; return the new ones by their number.

        Raises MachineError beyond the context, and where no page is left.
        """
        if last >= self.context:
            raise MachineError(f"position {last} is beyond the planned {self.context} tokens")
        self.give_back(slot, first)
        table, new = self._tables[slot], {}
        for index in range(len(table), last // PAGE_TOKENS + 1):
            new[index] = self._take()
            table.append(new[index])
        return new

    def is_unused(self, page: int) -> bool:
        """Tell whether a page is there only to be found again."""
        return page in self._unused

    def find(self, ids: Sequence[int], names: Sequence[bytes]) -> Found:
        """Return how much of a text lies in pages; `names` are those of its full pages.

        At least the last token does not: what comes after it is asked for.
        """
        most = len(ids) - 1
        pages, before = [], _ROOT
        for name in names[: most // PAGE_TOKENS]:
            if name not in self._named:
                break
            pages.append(self._named[name])
            before = name
        at = len(pages) * PAGE_TOKENS
        rest = ids[at : min(at + PAGE_TOKENS, most)]
        best, copied = 0, None
        for page, tokens in self._next.get(before, {}).items():
            same = _common(tokens, rest)
            if same > best:
                best, copied = same, page
        return Found(at + best, tuple(pages), copied)

    def adopt(self, slot: int, found: Found) -> Adopted:
        """Let an empty slot begin with what was found. There must be room for one page besides."""
        table, copy = self._tables[slot], None
        assert not table
        for page in found.pages:
            self._use(page)
            table.append(page)
        if found.copied is not None:
            self._use(found.copied)  # so that it isn't taken itself
            try:
                copy = found.copied, self._take()
            finally:
                self._drop(found.copied)
            table.append(copy[1])
        return Adopted(found.tokens, tuple(table), copy)

    def name(self, slot: int, ids: Sequence[int]) -> None:
        """Let the full pages of a sequence be found again; `ids` are its computed tokens."""
        names = self._last[slot]
        while (len(names) + 1) * PAGE_TOKENS <= len(ids):
            index = len(names)
            before = names[-1] if names else _ROOT
            tokens = tuple(ids[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS])
            name = _name(before, tokens)
            names.append(name)
            page = self._tables[slot][index]
            if name not in self._named and page != NONE and page not in self._before:
                self._named[name] = page
                self._follow(before, page, tokens)

    def release(self, slot: int, ids: Sequence[int] = (), spoiled: bool = False) -> None:
        """Take all pages of a sequence back, of which `ids` are computed (none: not to be found).

        `spoiled`: none of them must be found again.
        """
        table = self._tables[slot]
        if spoiled:
            for page in table:
                if page != NONE:
                    self._forget(page)
        elif ids:
            self.name(slot, ids)
            index, rest = divmod(len(ids), PAGE_TOKENS)
            page = table[index] if rest and index < len(table) else NONE
            if page != NONE and page not in self._before:
                names = self._last[slot]
                self._follow(names[-1] if names else _ROOT, page, tuple(ids[-rest:]))
        for page in reversed(table):  # what goes on from others is forgotten before them
            if page != NONE:
                self._drop(page)
        self._tables[slot], self._last[slot] = [], []

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        elif self._unused:
            page, _ = self._unused.popitem(last=False)
            self._forget(page)
        else:
            raise MachineError(f"all {self.count} pages for keys and values are in use")
        self._users[page] = 1
        return page

    def _use(self, page: int) -> None:
        self._users[page] += 1
        self._unused.pop(page, None)

    def _drop(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        if page in self._before:
            self._unused[page] = None
        else:
            self._free.append(page)

    def _follow(self, before: bytes, page: int, tokens: tuple[int, ...]) -> None:
        self._next.setdefault(before, {})[page] = tokens
        self._before[page] = before

    def _forget(self, page: int) -> None:
        """Let a page not be found any more."""
        before = self._before.pop(page, None)
        if before is None:
            return
        others = self._next[before]
        tokens = others.pop(page)
        if not others:
            del self._next[before]
        if len(tokens) == PAGE_TOKENS and self._named.get(name := _name(before, tokens)) == page:
            del self._named[name]
        if not self._users[page]:
            self._unused.pop(page, None)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginnings."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
