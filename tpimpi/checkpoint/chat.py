"""Whether a directory is of a chat model, and the template that it writes conversations by."""

from __future__ import annotations

from pathlib import Path

from tpimpi.checkpoint.tokenizer_settings import read_settings
from tpimpi.model.directory import exists, read_text


def chat_template_of(directory: str | Path) -> str | None:
    """Return the text of a directory's chat template, None where it has none. Raises UserError.

    A file goes before a setting, and of several the one named default before the others.
    """
    directory = Path(directory)
    others = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for path in (directory / "chat_template.jinja", *others):
        if exists(path):
            return read_text(path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_settings(directory, name).get("chat_template")
        if isinstance(template, list):  # of named ones, as older versions of Transformers wrote
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default", next(iter(named.values()), None))
        if isinstance(template, str) and template:
            return template
    return None
