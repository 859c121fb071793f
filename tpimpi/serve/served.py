"""The model that is served, as the server sees it: names, prompts, settings, the engine's door."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tpimpi.checkpoint.template import ChatTemplate
from tpimpi.checkpoint.tokenizer import Tokenizer
from tpimpi.engine.settings import GenerationSettings
from tpimpi.model.config import ModelConfig
from tpimpi.serve.errors import ApiError
from tpimpi.serve.schema import Choosing
from tpimpi.structure import ToolForm

OPENAI = {"temperature": 1.0, "top_p": 1.0}  # where the model's files are silent, too


class Ticket(Protocol):
    """A text that was asked for."""

    def cancel(self) -> None:
        """End it, from any thread."""


class Service(Protocol):
    """What the server asks of the engine; from any thread. See engine.service."""

    def submit(
        self, prompt_ids: list[int], settings: GenerationSettings, listener: Callable[[Any], None],
        constraint: Any = None,
    ) -> Ticket:  # fmt: skip
        """Ask for a text; the listener is told its pieces, and at last its end."""

    def stop(self, seconds: float) -> None:
        """Take no more, and let what runs end for so long."""

    def snapshot(self) -> Any:
        """Return what is going on."""


@dataclass(frozen=True)
class Served:
    """A running model. `context`: the most tokens of prompt and text; `queue`: texts that wait."""

    names: tuple[str, ...]
    service: Service
    tokenizer: Tokenizer
    template: ChatTemplate
    config: ModelConfig
    context: int
    defaults: dict[str, Any]  # how to choose where a request is silent: the model's own
    queue: int
    tool_form: ToolForm  # how the model writes calls of tools
    created: int = field(default_factory=lambda: int(time.time()))
    # Long prompts are cut to tokens beside the event loop, which others' texts pass through.
    worker: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
    )

    def named(self, name: str | None) -> str:
        """Return the name by which the model was asked for. Raises ApiError."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            known = ", ".join(self.names)
            raise ApiError(
                404, f"there is no model {name[:200]!a} here; there is {known}", "model_not_found",
                "model",
            )  # fmt: skip
        return name

    def text_ids(self, text: str, param: str, add_bos: bool) -> list[int]:
        """Return a prompt's ids. Raises ApiError and UserError."""
        ids = self.tokenizer.encode(text, add_bos=add_bos, most=self.context)
        return self.checked_ids(ids, param)

    def checked_ids(self, ids: list[int], param: str) -> list[int]:
        """Return ids that something can follow. Raises ApiError."""
        if not ids:
            raise ApiError(400, f"{param} has no tokens; give some text", "invalid_value", param)
        if max(ids) >= self.config.vocab_size:
            raise ApiError(
                400, f"id {max(ids)} is beyond the vocabulary of {self.config.vocab_size} tokens",
                "invalid_value", param,
            )  # fmt: skip
        if len(ids) >= self.context:
            raise ApiError(
                400, f"{param} has {len(ids)} tokens, and the context {self.context}, which the "
                "answer is a part of; shorten it", "context_length_exceeded", param,
            )  # fmt: skip
        return ids

    def settings(
        self, body: Choosing, most_tokens: int | None, logprobs: int | None
    ) -> GenerationSettings:
        """Return how to make a request's first text. Raises UserError.

        Without a seed it has one of its own; without `most_tokens` it may fill the context.
        """
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        wanted = {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": None if body.top_k is None else max(body.top_k, 0),
            "min_p": body.min_p,
            "repeat_penalty": body.repetition_penalty,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "logit_bias": bias or None,
            "stop": stop or None,
            "stop_ids": body.stop_token_ids or None,
            "ignore_eos": body.ignore_eos,
            "logprobs": logprobs,
        }
        seed = secrets.randbits(62) if body.seed is None else body.seed % (1 << 63)
        return GenerationSettings.of(
            {**OPENAI, **self.defaults}, max_new_tokens=most_tokens or self.context, seed=seed,
            **{name: value for name, value in wanted.items() if value is not None},
        )  # fmt: skip

    def hidden(self, settings: GenerationSettings) -> frozenset[int]:
        """Return the ids that end a text made so, and are no part of it."""
        ends = () if settings.ignore_eos else self.config.eos_token_ids
        return frozenset({*settings.stop_ids, *ends})


def of_choice(settings: GenerationSettings, index: int) -> GenerationSettings:
    """Return how to make the text of this index: with a seed of its own."""
    sampling = settings.sampling
    return replace(settings, sampling=replace(sampling, seed=sampling.seed + index))
