"""`tpimpi chat`: a conversation at the terminal, on rank 0, with all ranks computing."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpimpi import status
from tpimpi.commands import flags
from tpimpi.commands.choosing import add_choice, said
from tpimpi.commands.files import check_text
from tpimpi.errors import MachineError, UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.shards.request import ShardRequest
from tpimpi.units import size

SUMMARY = "talk with a model at the terminal"
PLAIN_LENGTH = 256  # tokens of an answer at most, of a model that was not trained to end it


@dataclass(frozen=True)
class Options:
    """Which model to talk with, how it answers, and what that may take."""

    model: str
    shards: ShardRequest
    memory: MemoryRequest
    allreduce: str
    context: int | None  # tokens; None: as long as is usual
    system: str | None
    load: str | None  # a saved conversation
    history: bool
    drop_oldest: bool
    said: dict[str, Any]  # of GenerationSettings


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    talk = parser.add_argument_group("conversation")
    # Taken to be refused, else it would be an abbreviation of --prompt-chunk.
    parser.add_argument("--prompt", "-p", help=argparse.SUPPRESS)
    talk.add_argument("--system", metavar="TEXT", help="what the model is told before all turns")
    talk.add_argument("--load", metavar="FILE", help="go on with a conversation that /save wrote")
    talk.add_argument(
        "--context", type=flags.tokens(2), metavar="N",
        help="tokens of a conversation at most (default: 4096, or what model and memory have)",
    )  # fmt: skip
    talk.add_argument(
        "--drop-oldest",
        action="store_true",
        help="forget the oldest turns where the context is full, in place of saying so",
    )
    talk.add_argument(
        "--no-history",
        action="store_true",
        help="don't keep what is typed for the next time (in ~/.local/state/tpimpi/history or "
        "$XDG_STATE_HOME/tpimpi/history)",
    )
    lasts = "what the context has left; 256 where the model has no chat template"
    add_choice(parser, lasts, seed="another one each time")
    flags.add_running(parser)


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say. Raises UserError."""
    if args.prompt is not None:
        raise UserError(
            "chat takes no --prompt: questions are typed, or come from a pipe; tpimpi generate "
            "--chat --prompt answers a single one"
        )
    texts = {"--system": args.system} | {f"--stop {stop!r}": stop for stop in args.stop}
    for flag, text in texts.items():
        if text is not None:
            check_text(text, flag)
    return Options(
        args.model, flags.shard_request(args), flags.memory_request(args), args.allreduce,
        args.context, args.system, args.load, not args.no_history, args.drop_oldest, said(args),
    )  # fmt: skip


def run(options: Options, group, threads: int) -> None:
    """Talk until the user leaves (collective)."""
    from tpimpi.chat import files
    from tpimpi.checkpoint.template import ChatTemplate
    from tpimpi.engine.loading import CONTEXT, ENOUGH
    from tpimpi.engine.opened import OpenModel
    from tpimpi.memory.account import Work

    model, template = OpenModel(group, options.model, options.shards), None
    most = model.config.max_positions
    with group.together():
        if options.context and options.context > most:
            raise UserError(f"--context is {options.context}, but the model's is {most} tokens")
        if group.rank == 0:
            template = ChatTemplate(model.directory)
            if options.load:
                files.read(Path(options.load).expanduser())  # before an hour of loading
    wanted = options.context or min(CONTEXT, most)
    work = Work(wanted - 1, wanted, enough=wanted if options.context else min(ENOUGH, most))
    with (
        model.load(options.memory, work, threads, options.allreduce) as llm,
        _left_alone(group.rank),
        llm.leading() as leader,
    ):
        if leader is not None:
            _talk(options, model, llm, leader, template)


@contextlib.contextmanager
def _left_alone(rank: int) -> Iterator[None]:
    """Let Ctrl-C be rank 0's alone: it stops an answer, not a rank."""
    before, status.current.takes_interrupts = signal.getsignal(signal.SIGINT), True
    if rank != 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        status.current.takes_interrupts = False


def _talk(options: Options, model, llm, leader, template) -> None:
    """Talk with the user (rank 0)."""
    from tpimpi.chat import commands, terminal
    from tpimpi.chat.choices import Choices
    from tpimpi.chat.conversation import Conversation
    from tpimpi.chat.editor import Edited, Lines, can_edit, has_library
    from tpimpi.chat.interrupts import Interrupts
    from tpimpi.chat.screen import Screen
    from tpimpi.chat.session import Known, Session

    context, plan = llm.plan.context, llm.plan
    conversation = Conversation(
        template,
        lambda text: model.tokenizer.encode(text, add_bos=False, most=context),
        model.tokenizer.token_bytes,
    )
    choices = Choices(
        options.said, llm.defaults, secrets.randbelow(1 << 31),
        None if template.is_own else min(PLAIN_LENGTH, max(context // 4, 1)), template.stop,
    )  # fmt: skip
    memory = f"{size(plan.resident)} of rank 0's weights in memory"
    if plan.streamed:
        memory += f", {size(plan.streamed)} stream from disk for each token"
    form = "its own chat template" if template.is_own else template.source
    known = Known(
        model.config.name, model.source.fingerprint, form, context, memory, options.drop_oldest
    )  # fmt: skip
    number = terminal.find()
    edits = number is not None and can_edit()
    with contextlib.ExitStack() as stack:
        if number is not None:
            stack.enter_context(terminal.ours(number, single_keys=edits))
        screen, interrupts = Screen(number), stack.enter_context(Interrupts())
        session = Session(leader, conversation, choices, known, screen, interrupts)
        if options.system:
            conversation.tell(options.system)
        screen.note(
            f"{known.name}: {form}; {context} tokens of context\n"
            "/help lists the commands, /exit leaves"
        )
        if options.load:
            commands.load(session, options.load, options.said)
        if edits:
            words = [command.name for command in commands.COMMANDS]
            editor = Edited(screen, interrupts, words, _history(options.history, screen))
        else:
            if number is not None and not has_library():
                screen.note(
                    "lines are edited better with prompt_toolkit: "
                    f"{sys.executable} -m pip install prompt_toolkit"
                )
            editor = Lines(screen, interrupts)
        with contextlib.closing(editor):
            session.run(editor, commands.do)


def _history(wanted: bool, screen) -> Path | None:
    """Return the file for what is typed, None where there is to be none or can't be."""
    from tpimpi.chat.history import history_file

    try:
        return history_file() if wanted else None
    except (UserError, MachineError) as error:
        screen.note(str(error))
        return None
