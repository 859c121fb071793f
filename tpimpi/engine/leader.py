"""Rank 0 while it leads: texts one after another, whenever it likes; between them others sleep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpimpi.engine.figures import RankFigures
from tpimpi.engine.prompts import Prompts
from tpimpi.engine.request import Constraint
from tpimpi.engine.session import Session
from tpimpi.engine.settings import GenerationSettings
from tpimpi.engine.stream import Text
from tpimpi.errors import UserError


class Leader:
    """What `LLM.leading` gives rank 0. `defaults` are those of the model for sampling."""

    def __init__(self, session: Session, prompts: Prompts, defaults: Mapping[str, object]):
        self._session, self._prompts, self.defaults = session, prompts, defaults
        session.rest()

    @property
    def context(self) -> int:
        """How many tokens prompt and text may have together."""
        return self._prompts.context

    def stream(
        self, prompt: str | Sequence[int], settings: GenerationSettings | None = None,
        add_bos: bool = True, constraint: Constraint | None = None, **choices,
    ) -> Text:  # fmt: skip
        """Return the text after a prompt, a text or its ids. Raises UserError."""
        wanted = settings or GenerationSettings.of(self.defaults, **choices)
        generation = self._prompts.generation(prompt, wanted, add_bos, constraint)
        return Text(self._session, generation)

    def keep(self, ids: Sequence[int], folder: str) -> int:
        """Save what is computed of a text, a file a rank in `folder`; return how many tokens.

        Raises UserError for the first rank that can't.
        """
        self._refuse_while_busy()
        return self._session.runner.save(ids, folder)

    def recall(self, ids: Sequence[int], folder: str) -> None:
        """Read a text's first tokens back that `keep` has saved, so that it goes on after them.

        `ids` are as many as it said. Raises UserError where they are not that, or damaged.
        """
        self._refuse_while_busy()
        if len(ids) > self.context:
            raise UserError(
                f"the text that was saved has {len(ids)} tokens, and memory was planned for "
                f"{self.context}; load the model with a longer context"
            )
        self._session.runner.recall(self._prompts.checked(ids), folder)

    def _refuse_while_busy(self) -> None:
        """Raise UserError in the middle of a text, whose pages would be taken."""
        if self._session.engine.busy:
            raise UserError("a text is half-way; finish or close it before others are kept")

    def figures(self) -> list[RankFigures]:
        """Return all ranks' figures since the start."""
        self._session.wake()
        found = self._session.runner.figures()
        self._session.rest()
        return found
