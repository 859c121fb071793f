"""A conversation with a model that says what it is told to: what is typed, and what is shown."""

from tpimpi.chat import commands
from tpimpi.chat.choices import Choices
from tpimpi.chat.conversation import Conversation
from tpimpi.chat.interrupts import Interrupts
from tpimpi.chat.session import Known, Session
from tpimpi.checkpoint.template import ChatTemplate
from tpimpi.engine.figures import RankFigures
from tpimpi.engine.generation import Completion
from tpimpi.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


class Text:
    """A text whose pieces are known; a piece that can be called is called in place of being one."""

    def __init__(self, ids, pieces, settings, cached):
        self._ids, self._pieces, self._settings, self._cached = ids, pieces, settings, cached
        self._made, self._cancelled, self.closed = [], False, False

    def __iter__(self):
        for piece in self._pieces:
            if self._cancelled:
                return
            if callable(piece):
                piece()
            elif len("".join(self._made)) + len(piece) > self._settings.max_new_tokens:
                return
            else:
                self._made.append(piece)
                yield piece

    def cancel(self):
        self._cancelled = True

    def close(self):
        self.closed = True

    @property
    def completion(self):
        text = "".join(self._made)
        whole = text == "".join(piece for piece in self._pieces if not callable(piece))
        reason = "cancelled" if self._cancelled else "stop" if whole else "length"
        return Completion(self._ids, [*text.encode()], text, reason, 0.5, 1.5, self._cached)


class Leader:
    def __init__(self):
        self.answers, self.asked, self.texts, self.kept = [], [], [], {}

    def stream(self, ids, settings):
        self.asked.append(("".join(map(chr, ids)), settings))
        answer = self.answers.pop(0) if self.answers else ["yes"]
        if isinstance(answer, Exception):
            raise answer
        self.texts.append(Text(ids, answer, settings, len(ids) // 2))
        return self.texts[-1]

    def figures(self):
        names = RankFigures.__dataclass_fields__
        return [RankFigures(**dict.fromkeys(names, 1) | {"host": "h", "rank": 0})]

    def keep(self, ids, folder):
        if not self.texts:
            return 0
        self.kept[folder] = ids[:-1]
        return len(ids) - 1

    def recall(self, ids, folder):
        if self.kept.get(folder) != ids:
            raise UserError(f"{folder} does not fit; all of it is computed again")


class Screen:
    """What is shown, in order: (kind, text)."""

    def __init__(self):
        self.shown = []

    def write(self, text, thinking=False):
        self.shown.append(("thinking" if thinking else "answer", text))

    def note(self, text):
        self.shown.append(("note", text))

    def end_line(self):
        self.shown.append(("end", ""))

    def gap(self):
        self.shown.append(("gap", ""))

    def of(self, kind):
        return "".join(text for what, text in self.shown if what == kind)


class Typed:
    """Lines as they are typed; an exception is raised."""

    keys = ("Enter sends.",)

    def __init__(self, *lines):
        self._lines = list(lines)

    def read(self):
        line = self._lines.pop(0) if self._lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


class Talk:
    def __init__(self, folder, context=100, drop_oldest=False, template=TEMPLATE, **said):
        (folder / "chat_template.jinja").write_text(template)
        self.leader, self.screen, self.interrupts = Leader(), Screen(), Interrupts()
        self.conversation = Conversation(
            ChatTemplate(folder), lambda text: [*map(ord, text)], lambda i: chr(i).encode()
        )  # fmt: skip
        self.session = Session(
            self.leader, self.conversation, Choices(said, {}, 7),
            Known("demo", "abc", "its own form", context, "all of it in memory", drop_oldest),
            self.screen, self.interrupts,
        )  # fmt: skip

    def type(self, *lines):
        """Type lines; return what is noted."""
        self.screen.shown.clear()
        self.session.run(Typed(*lines), commands.do)
        return self.screen.of("note")

    @property
    def turns(self):
        return [(turn.question, turn.answer) for turn in self.conversation.turns]

    @property
    def prompts(self):
        return [prompt for prompt, _ in self.leader.asked]
