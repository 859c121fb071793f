"""What begins with a slash: the commands of a conversation, as data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpimpi.chat import files
from tpimpi.chat.session import Session
from tpimpi.engine.figures import decode_rate, taken
from tpimpi.errors import MachineError, UserError

NOTHING = "nothing"  # as the text of /system: it is told nothing


@dataclass(frozen=True)
class Command:
    """How it is written, what it does, and the function that does it; `last`: it ends all.

    `also` are other names of it.
    """

    name: str
    takes: str
    summary: str
    run: Callable[[Session, str], None]
    last: bool = False
    also: tuple[str, ...] = ()


def do(session: Session, text: str) -> bool:
    """Run a command as it was typed; return whether it was the last one."""
    word, _, rest = text.strip().partition(" ")
    command = next((c for c in COMMANDS if word.lower() in (c.name, *c.also)), None)
    try:
        if command is None:
            raise UserError(_unknown(word))
        if rest.strip() and not command.takes:
            raise UserError(f"{command.name} takes nothing after it")
        command.run(session, rest.strip())
    except (UserError, MachineError) as error:
        session.screen.note(str(error))
        return False
    return command.last


def _unknown(word: str) -> str:
    like = difflib.get_close_matches(word.lower(), [c.name for c in COMMANDS], 1, 0.5)
    near = f"did you mean {like[0]}?" if like else "/help lists them"
    return f"there is no command {word}; {near} (a question that begins with / is written as //...)"


def _help(session: Session, _: str) -> None:
    width = max(len(f"{c.name} {c.takes}") for c in COMMANDS)
    lines = [f"{f'{c.name} {c.takes}':{width}}  {c.summary}" for c in COMMANDS]
    session.screen.note("\n".join([*lines, "", *session.keys]))


def _clear(session: Session, _: str) -> None:
    count = len(session.conversation.turns)
    session.conversation.clear()
    session.asked, session.kept, session.refused = None, False, False
    session.screen.note(f"{_turns(count)} forgotten")


def _undo(session: Session, _: str) -> None:
    question = session.conversation.undo()
    if question is None:
        raise UserError("there is no turn to take back")
    session.kept = False
    if not session.refused:  # else that one is still to be answered
        session.asked = question
    left = _turns(len(session.conversation.turns))
    session.screen.note(f"taken back: {_short(question)}; {left} left")


def _retry(session: Session, _: str) -> None:
    if session.kept:
        session.asked = session.conversation.undo()
    if session.asked is None:
        raise UserError("there is no question to ask again")
    session.screen.note(f"asked again: {_short(session.asked)}")
    session.ask(session.asked)


def _system(session: Session, text: str) -> None:
    if text:
        session.conversation.tell(None if text == NOTHING else text)
    told = session.conversation.system
    session.screen.note(f"the model is told: {told}" if told else "the model is told nothing")


def _set(session: Session, text: str) -> None:
    name, _, value = text.replace("=", " ", 1).partition(" ")
    if not text:
        session.screen.note("\n".join(session.choices.lines()))
        return
    if not value.strip():
        raise UserError(f"/set {name} needs a value, such as /set temperature 0.7")
    session.screen.note(session.choices.set(name, value.strip()))


def _save(session: Session, text: str) -> None:
    kv = "--kv" in (*text.split()[:1], *text.split()[-1:])
    name = text.removeprefix("--kv").removesuffix("--kv").strip() if kv else text
    _refuse_flags("/save", name, "/save takes a file and --kv")
    name = name or session.file
    if not name:
        raise UserError("/save needs a file: /save FILE")
    path, talk, known = Path(name).expanduser().absolute(), session.conversation, session.known
    if kv and not talk.turns:
        raise UserError("nothing was said yet, so there is nothing that --kv could keep")
    before = files.kept(path)
    # The file first: a folder without one is of no use.
    saved = files.Saved(
        known.name, known.fingerprint, talk.messages(), session.choices.said()
    )  # fmt: skip
    files.write(path, saved)
    session.file = str(path)
    told = f"{_turns(len(talk.turns))} saved in {path}"
    if kv:
        folder = files.folder_of(path)
        ids = talk.ids()
        count = session.leader.keep(ids, str(folder))
        if count:
            kept = replace(saved, kv=folder.name, kv_tokens=count, kv_ids=tuple(ids))
            files.write(path, kept)
            told += f", the keys and values of {count} tokens in {folder}"
            before = None
        else:
            told += "; no keys and values, as nothing of it has been computed here yet"
    if before is not None and files.remove(before):
        told += f"; the keys and values that were saved before are removed: {before}"
    session.screen.note(told)


def load(session: Session, text: str, said: Mapping[str, Any] | None = None) -> None:
    """Go on with the conversation in a file, and with its settings, but for what is `said`.

    Raises UserError.
    """
    if not text:
        raise UserError("/load needs a file: /load FILE")
    path, known = Path(text).expanduser().absolute(), session.known
    if not path.exists():
        _refuse_flags("/load", text, "/load takes a file alone, and finds what --kv has saved")
    saved = files.read(path)
    talk, before = session.conversation, session.choices.said()
    session.choices.take(_tuples(saved.settings) | dict(said or {}))
    try:
        talk.take(saved.messages)
    except UserError:
        session.choices.take(before)
        raise
    session.file, session.asked = str(path), None
    session.kept = bool(talk.turns)
    told = f"{_turns(len(talk.turns))} loaded from {path}"
    same = saved.fingerprint == known.fingerprint
    if not same:
        told += f"; they were with another model, {saved.model}"
    if saved.kv and same:
        told += f"; {_recalled(session, path.with_name(saved.kv), saved)}"
    elif saved.kv:
        told += "; their keys and values are computed again"
    session.screen.note(told)


def _refuse_flags(command: str, text: str, takes: str) -> None:
    """Refuse words that look like flags. Raises UserError."""
    flag = next((word for word in text.split() if word.startswith("--")), None)
    if flag is not None:
        raise UserError(f"{command} knows no {flag}; {takes}")


def _recalled(session: Session, folder: Path, saved: files.Saved) -> str:
    """Take the keys and values that were saved; return what is told of that."""
    count = saved.kv_tokens
    session.conversation.remember(saved.kv_ids)
    try:
        ids = session.conversation.ids()
        session.leader.recall(ids[:count], str(folder))
    except (UserError, MachineError) as error:
        session.conversation.remember(())
        return str(error)
    return f"keys and values of {count} of {len(ids)} tokens are there again"


def _stats(session: Session, _: str) -> None:
    total, known = session.totals, session.known
    try:
        context = str(len(session.conversation.ids()))
    except UserError:  # it was loaded, and is too long
        context = f"more than {known.context}"
    rate = decode_rate(total.made - total.answers + 1, total.first, total.seconds)
    session.screen.note("\n".join([
        f"model {known.name}, {known.fingerprint}; {known.form}",
        f"context {context} of {known.context} tokens; {known.memory}",
        f"{_count(total.answers, 'answer')} of {total.made} tokens, {rate:.2f} tokens/s",
        f"prompts of {total.prompt} tokens, {total.cached} of them cached; first tokens after "
        f"{total.first:.2f} s in all",
        taken(session.leader.figures()),
        session.choices.line(),
    ]))  # fmt: skip


def _nothing(_session: Session, _: str) -> None:
    """Do nothing: what comes last has nothing to do."""


def _turns(count: int) -> str:
    return _count(count, "turn")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _tuples(settings: dict) -> dict:
    """Return settings as they are used, from lists as JSON has them."""
    return {name: _tuple(value) for name, value in settings.items()}


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


COMMANDS = (
    Command("/help", "", "list these commands", _help),
    Command("/clear", "", "forget all turns; what the model is told before stays", _clear),
    Command("/undo", "", "take the last turn back", _undo),
    Command("/retry", "", "answer the last question anew, by another seed", _retry),
    Command("/save", "[FILE] [--kv]",
            "save the conversation; --kv: and what is computed of it",
            _save),
    Command("/load", "FILE", "go on with a saved conversation", load),
    Command("/system", "[TEXT]",
            f"set the system message, for all turns; {NOTHING}: none", _system),
    Command("/set", "[NAME VALUE]",
            "set how answers are made: /set top_k 40; alone: list all", _set),
    Command("/stats", "", "tell how much was computed, and how fast", _stats),
    Command("/exit", "", "leave; so do /quit and /bye", _nothing, last=True,
            also=("/quit", "/bye")),
)  # fmt: skip
