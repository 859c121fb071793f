"""`tpimpi generate`: text that appears as it is made, on rank 0, with all ranks computing."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from tpimpi import status
from tpimpi.commands import flags
from tpimpi.commands.choosing import add_choice, said
from tpimpi.commands.files import check_folder, check_text, read_text
from tpimpi.console import say
from tpimpi.engine.settings import GenerationSettings, SamplingSettings
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.progress import Waiting
from tpimpi.shards.request import ShardRequest
from tpimpi.units import size

SUMMARY = "write text after a prompt"
LENGTH = 20  # new tokens at most, where nothing is said


@dataclass(frozen=True)
class Options:
    """A prompt, how to go on from it, and what that may take."""

    model: str
    shards: ShardRequest
    memory: MemoryRequest
    allreduce: str
    prompt: str | None  # None: of a file
    prompt_file: str | None
    prefix: str
    no_bos: bool
    chat: bool  # the prompt is what a user says, to be written as the model's template has it
    system: str | None  # ... after this
    choices: dict[str, Any]  # of tokens, by the names of GenerationSettings.of
    echo: bool
    report: str | None
    json: bool

    @property
    def settings(self) -> GenerationSettings:
        """How to choose tokens of a model that has no wishes of its own."""
        return GenerationSettings.of(**self.choices)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    flags.add_model(parser)
    _add_prompt(parser)
    add_choice(parser, str(LENGTH), str(SamplingSettings.seed))
    flags.add_running(parser)
    flags.add_report(parser)
    flags.add_output(parser)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to go on from."""
    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", "-p", metavar="TEXT", help="the text to go on from")
    source.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read it from a file, without the newline at its end; - is stdin",
    )
    prompt.add_argument("--prefix", default="", metavar="TEXT", help="text put before the prompt")
    prompt.add_argument(
        "--chat", action="store_true",
        help="write the prompt as a user's message in the form that the model was trained on, its "
        "chat template, and print the answer alone",
    )  # fmt: skip
    prompt.add_argument(
        "--system", metavar="TEXT", help="what the model is told before, with --chat"
    )
    prompt.add_argument("--no-bos", action="store_true", help="don't begin with the BOS token")
    prompt.add_argument(
        "--escape", "-e", action="store_true",
        help=r"read \n, \t, \\ and \u00e9 in --prompt, --prefix and --stop as in JSON",
    )  # fmt: skip
    prompt.add_argument(
        "--no-echo",
        action="store_true",
        help="don't print the prompt again; that of a file never is",
    )


def options(args: argparse.Namespace) -> Options:
    """Return what the flags say."""
    if args.system is not None and not args.chat:
        raise UserError("--system is a part of a conversation; give --chat with it")
    texts = {"--prompt": args.prompt, "--prefix": args.prefix, "--system": args.system}
    texts |= {f"--stop {stop!r}": stop for stop in args.stop}
    for flag, text in texts.items():
        if text is not None:
            check_text(text, flag)
            texts[flag] = _unescaped(text, flag) if args.escape else text
    prompt, prefix, system, *stops = texts.values()
    args.stop = stops
    choices = {"max_new_tokens": LENGTH} | said(args)
    made = Options(
        args.model, flags.shard_request(args), flags.memory_request(args), args.allreduce,
        prompt, args.prompt_file, prefix, args.no_bos, args.chat, system, choices,
        not (args.no_echo or args.chat), args.report, args.output == "json",
    )  # fmt: skip
    _ = made.settings  # what makes no sense is refused at once
    return made


def _unescaped(text: str, flag: str) -> str:
    """Return a text with its escapes read as in a JSON string. Raises UserError."""
    quoted = re.sub(r'(?<!\\)((?:\\\\)*)"', r"\1\"", text)  # quotes need no escape here
    try:
        return json.loads(f'"{quoted}"', strict=False)
    except ValueError as error:
        raise UserError(
            f"{flag} has an escape that is not one ({error}); write a backslash as \\\\, or leave "
            "--escape out"
        ) from None


def run(options: Options, group, threads: int) -> None:
    """Generate text after the prompt (collective)."""
    from tpimpi.commands import report
    from tpimpi.engine.figures import summary
    from tpimpi.engine.opened import OpenModel
    from tpimpi.memory.account import Work

    begin = time.perf_counter()
    model = OpenModel(group, options.model, options.shards)
    most, prompt, ids = model.config.max_positions, "", []
    with group.together():
        if group.rank == 0:
            if options.report:
                check_folder(options.report, "--report")
            prompt = options.prompt
            if prompt is None:
                prompt = read_text(options.prompt_file, "--prompt-file", trim=True)
            prompt = options.prefix + prompt
            ids = _ids(options, model, prompt)
    length = options.settings.max_new_tokens
    prompt_tokens = group.comm.bcast(len(ids))
    work = Work(prompt_tokens, min(prompt_tokens + length, most))
    with model.load(options.memory, work, threads, options.allreduce) as llm:
        if group.rank == 0:
            _say_memory(llm.plan)
            _say_length(length, llm.plan.context - prompt_tokens, llm.plan.context, most)
        completion = _write(options, llm, ids, prompt, group.rank == 0)
        figures = llm.figures()
    if group.rank != 0:
        return
    content = summary(figures, len(ids), len(completion.ids), completion.first_token_seconds,
                      completion.seconds)  # fmt: skip
    content["launch_to_end_seconds"] = time.perf_counter() - begin
    if options.report:
        report.write(options.report, content, figures)
    if options.json:
        found = asdict(completion)
        found = {"prompt_ids": found["prompt_ids"], "generated_ids": found["ids"],
                 "text": found["text"], "finish_reason": found["finish_reason"]}  # fmt: skip
        print(json.dumps(found | {"figures": content}), flush=True)
    else:
        say(report.line(content, figures))


def _ids(options: Options, model, prompt: str) -> list[int]:
    """Return the ids of the prompt, as a conversation if that is asked. Raises UserError."""
    from tpimpi.checkpoint.chat import chat_template_of
    from tpimpi.checkpoint.template import ChatTemplate

    if not options.chat:
        if chat_template_of(model.directory):
            say(
                f"{model.config.name} is a chat model, and its template is not used: it goes on "
                "from the prompt as it is, and may end at once; --chat uses it"
            )
        return model.prompt_ids(prompt, not options.no_bos)
    if not prompt:
        raise UserError("the prompt is empty; give some text")
    template = ChatTemplate(model.directory)
    if not template.is_own:
        say(f"{model.config.name} has no chat template; this is {template.source}")
    messages = [{"role": "user", "content": prompt}]
    if options.system:
        messages.insert(0, {"role": "system", "content": options.system})
    return model.prompt_ids(template.render(messages), add_bos=False)  # it writes BOS itself


def _write(options: Options, llm, ids: list[int], prompt: str, speaks: bool):
    """Show the text as it is made; return what was made (rank 0)."""
    show = speaks and not options.json
    stream = llm.stream(ids if speaks else "", **options.choices)
    with Waiting("waiting for the first text", 0 if speaks else 1) as waiting:
        waiting.begin()
        first = next(stream, "")  # weights that stay in memory are read meanwhile
    status.current.within_line = show
    if show and options.echo and options.prompt is not None:
        print(prompt, end="")
    for piece in chain([first], stream):
        if show:
            print(piece, end="", flush=True)
    if show:
        print(flush=True)
    status.current.within_line = False
    completion = stream.completion
    ends = () if options.settings.ignore_eos else llm.config.eos_token_ids
    if completion and completion.ids[0] in ends:
        say(f"the model ended at once, with token {completion.ids[0]}; --ignore-eos goes on")
    return completion


def _say_memory(plan) -> None:
    """Tell how much of the weights stays in memory where not all of it does."""
    if plan.streamed:
        say(
            f"{size(plan.resident)} of {size(plan.resident + plan.streamed)} of rank 0's weights "
            "stay in memory, the others stream from disk for each token (`tpimpi plan` tells more)"
        )


def _say_length(wanted: int, room: int, context: int, most: int) -> None:
    """Warn where the text will end before the tokens that were asked for."""
    if room < wanted:
        why = "" if context == most else ", which is what the memory budget allows,"
        say(f"the context of {context} tokens{why} leaves room for {room} new tokens of {wanted}")
