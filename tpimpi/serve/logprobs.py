"""How likely tokens were, in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from tpimpi.checkpoint.tokenizer import Tokenizer

LEAST = -9999.0  # what OpenAI's API says where a probability is 0; JSON knows no infinity


class Likely(TypedDict):
    """A token that could be, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Likely):
    """The token that was taken, and the likeliest ones at its place."""

    top_logprobs: list[Likely]


class ChatLogprobs(TypedDict):
    """Of a text in a chat."""

    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Of a text after a prompt: a list entry for each token. Offsets are in its characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Teller:
    """Write the figures of a text's tokens; `hidden` ids end a text and are no part of it."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]):
        self._bytes = lru_cache(4096)(tokenizer.token_bytes)
        self._hidden, self._offset = hidden, 0

    def chat(self, tokens: Sequence) -> ChatLogprobs:
        """Return the next tokens' figures, as engine.request.Token has them."""
        content: list[TokenLogprob] = [
            {**self._likely(t.id, t.logprob), "top_logprobs": [self._likely(*one) for one in t.top]}
            for t in tokens if t.id not in self._hidden
        ]  # fmt: skip
        return {"content": content, "refusal": None}

    def completion(self, tokens: Sequence, alternatives: int) -> CompletionLogprobs:
        """Return the next tokens' figures; offsets go on from those told before."""
        told = [t for t in tokens if t.id not in self._hidden]
        texts, offsets = [], []
        for token in told:
            texts.append(self._text(token.id))
            offsets.append(self._offset)
            self._offset += len(texts[-1])
        top = [{self._text(i): _finite(p) for i, p in reversed(t.top)} for t in told]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(t.logprob) for t in told],
            "top_logprobs": top if alternatives else None,
            "text_offset": offsets,
        }

    def _likely(self, token: int, logprob: float) -> Likely:
        data = self._bytes(token)
        return {
            "token": data.decode(errors="replace"), "logprob": _finite(logprob),
            "bytes": list(data),
        }  # fmt: skip

    def _text(self, token: int) -> str:
        data = self._bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float:
    """Return what JSON can hold."""
    return LEAST if logprob is None or not logprob > LEAST else float(logprob)
