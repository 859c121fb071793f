"""`tpimpi serve`: OpenAI's API and a chat page on rank 0, with all ranks computing."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tpimpi.commands import flags
from tpimpi.commands.files import check_folder, check_text, read_text
from tpimpi.console import say
from tpimpi.engine.loading import CONTEXT, MAX_BATCH, SHARED, work_of
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.serve.ending import graceful
from tpimpi.serve.settings import PORT, QUEUE, FaceSettings, memory_of_serving
from tpimpi.shards.request import ShardRequest

if TYPE_CHECKING:
    from tpimpi.serve.face import Face

SUMMARY = "answer over HTTP: OpenAI's API for programs, a chat page for people"
LIBRARIES = ("starlette", "uvicorn", "prometheus_client", "pydantic")
MOST_BATCH, MOST_QUEUE, MOST_PORT = 256, 65536, 65535
LONGEST_NAME = 200


@dataclass(frozen=True)
class Options:
    """A model, how its server is reached, and what both may take."""

    model: str
    shards: ShardRequest
    memory: MemoryRequest
    allreduce: str
    face: FaceSettings
    key_files: tuple[str, ...]
    max_batch: int
    context: int | None  # tokens; None: CONTEXT, or what the model or the budget allows
    kv_tokens: int | None  # of all texts together; None: of some contexts
    grace: float  # seconds that running answers have to end


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    _add_address(parser)
    _add_limits(parser)
    flags.add_running(parser)


def _add_address(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the server is, and for whom."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="127.0.0.1", metavar="NAME",
        help="address to listen at; 0.0.0.0 or :: is all of this machine's, which needs a key or "
        "--insecure (default: %(default)s, for programs on this machine only)",
    )  # fmt: skip
    server.add_argument(
        "--port", type=flags.number(int, 0, MOST_PORT), default=PORT, metavar="N",
        help="port to listen at; 0: any that is free (default: %(default)s)",
    )  # fmt: skip
    server.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help="a key that requests must have; repeatable. Other users of this machine can see it in "
        "the list of processes",
    )  # fmt: skip
    server.add_argument(
        "--api-key-file", action="append", default=[], metavar="FILE",
        help="a file with a key on each line; repeatable",
    )  # fmt: skip
    server.add_argument(
        "--insecure", action="store_true",
        help="let other machines use the server without a key",
    )  # fmt: skip
    server.add_argument(
        "--ssl-certfile", metavar="FILE", help="answer over HTTPS with this certificate (PEM)"
    )
    server.add_argument(
        "--ssl-keyfile", metavar="FILE",
        help="its private key, without a password (default: in the certificate's file)",
    )  # fmt: skip
    server.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="let pages of this origin use the server, such as https://chat.example; *: of any; "
        "repeatable (default: its own page only)",
    )  # fmt: skip
    server.add_argument(
        "--served-model-name", action="append", default=[], metavar="NAME",
        help="what requests call the model; repeatable, the first is told in answers (default: "
        "the name of its directory)",
    )  # fmt: skip
    server.add_argument(
        "--access-log", default="-", metavar="FILE",
        help="add a line of JSON for each request, without prompts and answers; -: standard "
        "output, off: none (default: %(default)s)",
    )  # fmt: skip


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how much is taken at once."""
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-batch", type=flags.number(int, 1, MOST_BATCH), default=MAX_BATCH, metavar="N",
        help="answers that are made at once, in one pass over the weights (default: %(default)s)",
    )  # fmt: skip
    limits.add_argument(
        "--queue", type=flags.number(int, 1, MOST_QUEUE), default=QUEUE, metavar="N",
        help="requests that may wait for their turn; more are refused with status 429 (default: "
        "%(default)s)",
    )  # fmt: skip
    limits.add_argument(
        "--context", type=flags.tokens(2), metavar="N",
        help=f"tokens that a prompt and its answer may have together (default: {CONTEXT}, or what "
        "the model or the memory budget allows)",
    )  # fmt: skip
    limits.add_argument(
        "--kv-tokens", type=flags.tokens(2), metavar="N",
        help="tokens whose keys and values there is memory for, of all answers together (default: "
        f"those of {SHARED} contexts, or fewer where weights would have to stream for them)",
    )  # fmt: skip
    limits.add_argument(
        "--grace", type=flags.number(float, 0, 86400), default=30.0, metavar="SECONDS",
        help="how long running answers may go on after Ctrl-C or SIGTERM; a second one ends at "
        "once (default: %(default)g)",
    )  # fmt: skip


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    for name in args.served_model_name:
        check_text(name, "--served-model-name")
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise UserError(
                f"--served-model-name {name[:40]!r} is no name; give 1 to {LONGEST_NAME} characters"
            )
    for origin in args.allow_origin:
        if origin not in ("*", "null") and not origin.startswith(("http://", "https://")):
            raise UserError(
                f"--allow-origin {origin} is no origin; write it as https://chat.example, or as *"
            )
    for key in args.api_key:
        _check_key(key, "--api-key")
    face = FaceSettings(
        args.host, args.port, tuple(args.api_key), args.insecure, args.ssl_certfile,
        args.ssl_keyfile, tuple(args.served_model_name), tuple(args.allow_origin), args.queue,
        None if args.access_log == "off" else args.access_log,
    )  # fmt: skip
    return Options(
        args.model, flags.shard_request(args), flags.memory_request(args), args.allreduce, face,
        tuple(args.api_key_file), args.max_batch, args.context, args.kv_tokens, args.grace,
    )  # fmt: skip


def _check_key(key: str, flag: str) -> None:
    """Refuse a key that no request could have. Raises UserError."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"{flag} has a key that is empty or has spaces or letters beyond ASCII in it; such a "
            "key can't be sent"
        )


def run(options: Options, group, threads: int) -> None:
    """Serve a model until a signal ends it (collective)."""
    face: Face | None = None
    with group.together():
        if group.rank == 0:
            face = _opened(options)
    try:
        _serve(options, group, threads, face)
    except Exception as error:  # a signal leaves no time for more
        if face is not None:
            face.end(error)
            face.close()
        raise
    if face is not None:
        face.close()


def _opened(options: Options) -> Face:
    """Return a server that answers, that the model is on its way (rank 0). Raises UserError."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"tpimpi serve needs {', '.join(missing)}: {sys.executable} -m pip install "
            "'tpimpi[serve]'"
        )
    keys = list(options.face.keys)
    for path in options.key_files:
        found = [line.strip() for line in read_text(path, "--api-key-file").splitlines()]
        found = [line for line in found if line]
        if not found:
            raise UserError(f"--api-key-file {path} has no key in it; write one on a line")
        for key in found:
            _check_key(key, f"--api-key-file {path}")
        keys += found
    if options.face.access_log not in (None, "-"):
        check_folder(options.face.access_log, "--access-log")
    from tpimpi.serve.face import Face

    face = Face(replace(options.face, keys=tuple(keys)))
    face.open()
    return face


def _serve(options: Options, group, threads: int, face: Face | None) -> None:
    """Load the model, and serve it (collective)."""
    from tpimpi.engine.opened import OpenModel

    model = OpenModel(group, options.model, options.shards)
    most = model.config.max_positions
    with group.together():
        if options.context is not None and options.context > most:
            raise UserError(
                f"--context {options.context} is longer than the model's {most}; give less"
            )
        if options.kv_tokens is not None and options.kv_tokens < (options.context or 2):
            raise UserError(
                f"--kv-tokens {options.kv_tokens} are too few for one context of "
                f"{options.context or 2}; give more"
            )
        if group.rank == 0:
            _prepare(model)
    work = work_of(model.config, options.context, options.max_batch, options.kv_tokens)
    work = replace(work, beside=memory_of_serving(work.context))
    with model.load(options.memory, work, threads, options.allreduce) as llm:
        service = llm.service(queue=options.face.queue)
        if face is not None:
            face.serve(_served(options, model, llm, service))
            say(
                f"{model.config.name} is served at {face.url} (OpenAI's API at {face.url}/v1), "
                f"contexts of up to {llm.plan.context} tokens; Ctrl-C ends it"
            )
            if face.can_be_read:
                say(
                    "whoever watches the network can read what is asked and answered, and the key; "
                    "--ssl-certfile and --ssl-keyfile keep it from them"
                )
        with graceful(face, options.grace):
            service.run()


def _prepare(model) -> None:
    """Load now what the first answer under a schema would: so its memory is in the plan."""
    from tpimpi.structure import vocabulary_of

    try:
        vocabulary_of(model.tokenizer, model.config)
    except UserError as error:
        say(f"answers can't be kept to structures: {error}")


def _served(options: Options, model, llm, service):
    """Return the model as the server sees it (rank 0)."""
    from tpimpi.checkpoint.template import ChatTemplate
    from tpimpi.serve.served import Served
    from tpimpi.structure import tool_form_of

    template = ChatTemplate(model.directory)
    if not template.is_own:
        say(f"{model.config.name} has no chat template; chats are written in {template.source}")
    names = options.face.names or (model.config.name,)
    return Served(
        names, service, llm.tokenizer, template, model.config, llm.plan.context, llm.defaults,
        options.face.queue, tool_form_of(model.directory, llm.tokenizer),
    )  # fmt: skip
