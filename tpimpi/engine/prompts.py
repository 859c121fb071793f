"""What a text is asked for with, checked against the model and its memory (rank 0)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.engine.generation import Generation
from tpimpi.engine.request import Constraint
from tpimpi.engine.settings import GenerationSettings, whole_number
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig


def prompt_ids(
    tokenizer: Tokenizer, config: ModelConfig, text: str, add_bos: bool = True
) -> list[int]:
    """Return a prompt's ids. Raises UserError for one that can't be gone on from."""
    most = config.max_positions
    if not text:
        raise UserError("the prompt is empty; give some text")
    ids = tokenizer.encode(text, add_bos=add_bos, most=most)
    if not ids:
        raise UserError("the prompt has no tokens; give some more text")
    if len(ids) >= most:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the model's context {most}; shorten it so "
            "that something can follow"
        )
    return ids


class Prompts:
    """Make texts of prompts for a model whose memory was planned for `context` tokens."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, context: int):
        self.tokenizer, self.config, self.context = tokenizer, config, context

    def generation(
        self, prompt: str | Sequence[int], settings: GenerationSettings, add_bos: bool = True,
        constraint: Constraint | None = None,
    ) -> Generation:  # fmt: skip
        """Return the text that is to be made after a prompt, a text or its ids.

        Raises UserError for what the model doesn't know, and where nothing can follow.
        """
        named = [("stop id", token) for token in settings.stop_ids]
        named += [("the logit_bias's id", token) for token, _ in settings.sampling.logit_bias]
        for what, token in named:
            if token >= self.config.vocab_size:
                raise UserError(
                    f"{what} {token} is beyond the vocabulary of {self.config.vocab_size} tokens"
                )
        if isinstance(prompt, str):
            ids = prompt_ids(self.tokenizer, self.config, prompt, add_bos)
        else:
            ids = self.checked(prompt)
        room = self.context - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens, and memory was planned for a context of "
                f"{self.context}; shorten it, or load the model with a longer context"
            )
        return Generation(
            self.tokenizer, ids, settings, self.config.eos_token_ids,
            min(settings.max_new_tokens, room), constraint,
        )  # fmt: skip

    def checked(self, ids: Sequence[int]) -> list[int]:
        """Return ids as a list. Raises UserError for one that the model doesn't know."""
        if isinstance(ids, bytes | bytearray) or not isinstance(ids, Iterable):
            raise UserError(f"give a text or a list of ids, not {type(ids).__name__}")
        ids = [whole_number("an id", i, 0) for i in ids]
        for token in ids:
            if token >= self.config.vocab_size:
                raise UserError(
                    f"id {token} is beyond the vocabulary of {self.config.vocab_size} tokens"
                )
        if not ids:
            raise UserError("there are no ids; give some")
        return ids
