"""The JSON object of one call, read as it comes: its name, and the text of its arguments."""

from __future__ import annotations

import json

_BETWEEN = " \t\n\r,:"


class ObjectReader:
    """Read one object from its opening brace on; `ended` once its closing one has come.

    The arguments are the text of the value under `key`, as it stands there.
    """

    def __init__(self, key: str):
        self._wanted, self._key, self.ended = key, "", False
        self._scan: _Value | None = None  # of the key or value that is being read
        self._begun = self._is_key = self._named = False
        self._arguments = ""

    def push(self, text: str) -> tuple[str | None, str, str]:
        """Take more text; return the name when it is complete, new arguments, and what is behind.

        Arguments that came before the name are told with it.
        """
        name, rest = None, ""
        for at, letter in enumerate(text):
            if self._scan is not None:
                if self._scan.takes(letter):
                    self._arguments += letter if self._is_wanted else ""
                    name = self._done() or name
                    continue
                name = self._close() or name  # a number or a word ends where it goes on otherwise
            if letter == "}" and self._begun:
                self.ended, rest = True, text[at + 1 :]
                break
            if not self._begun:
                self._begun = letter == "{"
            elif letter not in _BETWEEN:
                self._is_key, self._scan = not self._is_key, _Value()
                self._scan.takes(letter)
                self._arguments += letter if self._is_wanted else ""
        ready, self._arguments = (self._arguments, "") if self._named else ("", self._arguments)
        return name, ready, rest

    @property
    def _is_wanted(self) -> bool:
        return not self._is_key and self._key == self._wanted

    def _done(self) -> str | None:
        """Go on behind a key or value that has its last letter; return the name if it was that."""
        return self._close() if self._scan.ended else None

    def _close(self) -> str | None:
        text, self._scan = self._scan.text, None
        if self._is_key:
            self._key = _text_of(text)
        elif self._key == "name" and not self._named:
            self._named = True
            return _text_of(text)
        return None


class _Value:
    """The letters of one value, and whether the last has come."""

    def __init__(self):
        self.text, self.ended = "", False
        self._depth, self._in_text, self._escaped = 0, False, False

    def takes(self, letter: str) -> bool:
        """Take a letter; False where it is behind a number or a word."""
        if not self._in_text and not self._depth and self.text and letter in " \t\n\r,}]":
            return False
        self.text += letter
        if self._in_text:
            self._in_text = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
            self.ended = not self._in_text and not self._depth
        elif letter == '"':
            self._in_text = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.ended = not self._depth
        return True


def _text_of(value: str) -> str:
    """Return what a JSON string says, any other value as it stands."""
    try:
        said = json.loads(value, strict=False)
    except ValueError:
        return value
    return said if isinstance(said, str) else value
