"""Which texts compute how many tokens in the next pass, and which wait. Pure: no arrays, no MPI.

Texts that are being made go first, a token each, as they are what a reader waits for; prompts share
what is left of the pass (Agrawal et al. 2023, arXiv:2308.16369, mix them so). A
text begins when there are pages for its prompt. If pages run out later, the youngest text gives its
own back and waits; its tokens are computed again, or found, and are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tpimpi.engine.pages import PAGE_TOKENS, Found, Pages, names_of


class Text:
    """A text as the scheduler sees it: its ids so far, how many are computed, its slot."""

    def __init__(self, ids: list[int], most: int):
        self.ids, self.most = ids, most  # grows; tokens that it will have at most
        self.computed = 0  # tokens whose keys and values lie in pages
        self.slot: int | None = None
        self._names: list[bytes] | None = None

    @property
    def left(self) -> int:
        """How many of its tokens are not computed."""
        return len(self.ids) - self.computed

    @property
    def names(self) -> Sequence[bytes]:
        """The names of its full pages, as they were when it came."""
        if self._names is None:
            self._names = names_of(self.ids)
        return self._names

    def wait(self) -> None:
        """Have nothing computed, and no slot."""
        self.computed, self.slot, self._names = 0, None, None


@dataclass(frozen=True)
class Start:
    """A text that begins in its slot, with what was found of it."""

    text: Text
    found: Found


@dataclass(frozen=True)
class Share:
    """So many tokens of a text, from its first that is not computed."""

    text: Text
    tokens: int


class Scheduler:
    """Texts that wait and texts that run, in the order in which they came.

    `most_pages` are what one text holds at most; with `shares_pages` it may begin with those of
    others.
    """

    def __init__(
        self, pages: Pages, slots: int, max_tokens: int, most_pages: int, shares_pages: bool = True
    ):
        self._pages, self._max_tokens, self._most_pages = pages, max_tokens, most_pages
        self._shares_pages = shares_pages
        self._slots = list(range(slots - 1, -1, -1))  # free ones
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        self.preempted = 0  # times that a text gave its pages to an older one

    def add(self, text: Text) -> None:
        """Let a text wait for its turn."""
        self.waiting.append(text)

    def remove(self, text: Text, spoiled: bool = False) -> None:
        """Forget a text, wherever it is; what is computed and not `spoiled` may be found."""
        if text.slot is None:
            if text in self.waiting:
                self.waiting.remove(text)
        else:
            self._leave(text, spoiled)

    def begin(self) -> Start | None:
        """Let a text begin, the first that can; None where none can.

        One whose beginning is being computed for another text waits for that. Behind one for which
        there are no pages the others wait, too, or it would wait for ever.
        """
        if not self.waiting or not self._slots:
            return None
        coming = self._coming()
        for text in self.waiting:
            found = self._pages.find(text.ids, text.names) if self._shares_pages else Found()
            full = len(found.pages)
            if full < len(text.names) and text.names[full] in coming:
                continue
            need = min((len(text.ids) - 1) // PAGE_TOKENS + 1, self._most_pages) - full
            unused = sum(self._pages.is_unused(page) for page in found.pages)
            if found.copied is not None:
                # While it is copied both pages are needed: it may be the very last one.
                room = self._pages.room - unused - self._pages.is_unused(found.copied)
                found = found if room else Found(full * PAGE_TOKENS, found.pages)
            if self.running and need + self._owed() > self._pages.room - unused:
                return None
            self.waiting.remove(text)
            self.running.append(text)
            text.slot, text.computed = self._slots.pop(), found.tokens
            return Start(text, found)
        return None

    def shares(self, prompt_tokens: int) -> list[Share]:
        """Return who computes what in the next pass: of prompts up to `prompt_tokens` tokens.

        Their pages are reserved.
        """
        counts: dict[Text, int] = {}
        for text in [t for t in self.running if t.left == 1]:
            if len(counts) < self._max_tokens and self._reserve(text, 1):
                counts[text] = 1
        room = min(self._max_tokens - len(counts), prompt_tokens)
        prompts = sorted((t for t in self.running if t.left > 1), key=lambda t: t.left)
        for place, text in enumerate(prompts):
            # An equal part of what is left: so none waits for a long one, nor that for many.
            count = min(text.left, -(-room // (len(prompts) - place)))
            if count and self._reserve(text, count):
                counts[text] = count
                room -= count
        return [Share(t, count) for t, count in counts.items() if t.slot is not None]

    def computed(self, share: Share) -> None:
        """Take note that a share is computed: full pages of it may be found by others."""
        text, before = share.text, share.text.computed
        text.computed += share.tokens
        if self._shares_pages and before // PAGE_TOKENS < text.computed // PAGE_TOKENS:
            self._pages.name(text.slot, text.ids[: text.computed])

    def _reserve(self, text: Text, count: int) -> bool:
        """Reserve pages for tokens of a text, from younger ones if need be; False: it waits now."""
        if text.slot is None:
            return False  # an older one has its pages
        first, last = text.computed, text.computed + count - 1
        self._pages.give_back(text.slot, first)
        while self._pages.missing(text.slot, last) > self._pages.room:
            youngest = self.running[-1]
            self._leave(youngest)
            self.preempted += 1
            self.waiting.appendleft(youngest)
            if youngest is text:
                return False
        self._pages.reserve(text.slot, first, last)
        return True

    def _leave(self, text: Text, spoiled: bool = False) -> None:
        self._pages.release(text.slot, text.ids[: text.computed], spoiled or not self._shares_pages)
        self._slots.append(text.slot)
        self.running.remove(text)
        text.wait()

    def _owed(self) -> int:
        """Return how many pages the texts that run need for their prompts, and then one each."""
        missing = (self._pages.missing(text.slot, len(text.ids) - 1) for text in self.running)
        return sum(min(pages, self._most_pages) + 1 for pages in missing)

    def _coming(self) -> set[bytes]:
        """Return the names of pages of prompts that are being computed."""
        if not self._shares_pages:
            return set()
        return {
            name
            for text in self.running
            if text.left > 1
            for name in text.names[text.computed // PAGE_TOKENS :]
        }
