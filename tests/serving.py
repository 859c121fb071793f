"""A server over an engine that follows a script: what its answers are, a test says beforehand."""

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field, fields

import httpx2

from program import DEMO
from tpimpi.checkpoint.template import ChatTemplate
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.engine.figures import RankFigures
from tpimpi.engine.generation import Completion
from tpimpi.engine.request import Piece, Token
from tpimpi.engine.service import Busy, Snapshot
from tpimpi.engine.settings import GenerationSettings
from tpimpi.errors import MachineError, UserError
from tpimpi.model.config import ModelConfig
from tpimpi.serve.face import Face
from tpimpi.serve.served import Served
from tpimpi.serve.settings import FaceSettings
from tpimpi.structure.forms import HERMES

HTTP = httpx2.Client(timeout=20)
CHAT = {"messages": [{"role": "user", "content": "Who is there?"}]}

SAID = "It is the east, and Juliet is the sun."
CONTEXT = 128


@dataclass
class Text:
    """What was asked for, and whether it was taken back."""

    prompt_ids: list
    settings: GenerationSettings
    constraint: object
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self):
        self.cancelled.set()


class Script:
    """A service in which each text is `said`, a token each `seconds`, in a thread of its own.

    `first` are the seconds before the first token; `error` is what a text ends with in its midst.
    """

    def __init__(self, tokenizer, config, said=SAID, seconds=0.0, first=0.0, error=None, most=64):
        self.tokenizer, self.config = tokenizer, config
        self.said, self.seconds, self.first, self.error = said, seconds, first, error
        self.texts, self.most, self.failed, self.stopped = [], most, None, threading.Event()

    def submit(self, prompt_ids, settings, listener, constraint=None):
        if self.failed is not None:
            raise MachineError(self.failed)
        if sum(not text.ended.is_set() for text in self.texts) >= self.most:
            raise Busy(f"{self.most} texts wait already; ask again later")
        for token, _ in settings.sampling.logit_bias:
            if token >= self.config.vocab_size:
                raise UserError(f"id {token} is beyond the vocabulary")
        text = Text(prompt_ids, settings, constraint)
        self.texts.append(text)
        threading.Thread(target=self._make, args=(text, listener), daemon=True).start()
        return text

    def _make(self, text, listener):
        ids = self.tokenizer.encode(self.said, add_bos=False)
        length = min(len(ids), text.settings.max_new_tokens)
        decoding, tokens, said, reason = self.tokenizer.decoding(), [], "", "cancelled"
        text.cancelled.wait(self.first)
        for at, token in enumerate(ids[:length]):
            if text.cancelled.wait(self.seconds) or self.stopped.is_set():
                break
            if self.error is not None and at == 3:
                text.ended.set()
                return listener(self.error)
            wanted = text.settings.logprobs
            top = tuple((other, -0.5 - other) for other in range(5, 5 + (wanted or 0)))
            tokens.append(Token(token, None if wanted is None else -0.25, top))
            piece = decoding.push(token)
            said += piece
            listener(Piece(piece, (tokens[-1],)))
        else:
            reason = "length" if length < len(ids) else "stop"
        text.ended.set()
        done = Completion(
            text.prompt_ids, ids[: len(tokens)], said, reason, self.first, 1.0, 2, tuple(tokens)
        )
        return listener(done)

    def stop(self, seconds):
        self.stopped.set()

    def snapshot(self):
        figures = dict.fromkeys((field.name for field in fields(RankFigures)), 0)
        figures |= {"host": "here", "disk_wait_seconds": 0.5, "budget_bytes": None}
        return Snapshot(1, 0, 8, 100, 7, 3, 11, 50, 5, 40, (RankFigures(**figures),))


def script(**more):
    """Return a service that says SAID, or as `Script` is told."""
    config = ModelConfig.from_directory(DEMO)
    return Script(load_tokenizer(DEMO, config), config, **more)


def served_by(service, names=("demo",), defaults=None):
    """Return the demo model with another engine."""
    return Served(
        names, service, service.tokenizer, ChatTemplate(DEMO), service.config, CONTEXT,
        defaults or {}, service.most, HERMES,
    )  # fmt: skip


@contextlib.contextmanager
def face(service=None, loading=False, names=("demo",), defaults=None, **settings):
    """Yield (face, its service): a server at a free port."""
    service = service or script()
    wanted = {"port": 0, "access_log": None} | settings
    with contextlib.closing(Face(FaceSettings(**wanted))) as server:
        server.open()
        if not loading:
            server.serve(served_by(service, names, defaults))
        yield server, service


def until(condition, seconds=10):
    """Wait for what is to come soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.005)


class Cost:
    """The seconds that the newest server's thread has computed since this was made."""

    def __init__(self):
        thread = [thread for thread in threading.enumerate() if thread.name == "http"][-1]
        self._clock = time.pthread_getcpuclockid(thread.ident)
        self._begin = time.clock_gettime(self._clock)

    def seconds(self):
        """How many."""
        return time.clock_gettime(self._clock) - self._begin


def post(server, body, path="/v1/chat/completions", **more):
    """Return the answer to a body, which is sent as it is or as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(server.url + path, content=content, **more)


def told(answer, code, *words):
    """Check that an answer is an error in OpenAI's form; return it."""
    assert answer.status_code == code, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]
    return error
    for word in words:
        assert word in error["message"]
    return error
