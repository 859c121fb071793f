"""What is in this machine's cache of the Hugging Face hub, as all its programs share it.

A model lies in `models--ORG--NAME`: `refs/REVISION` names a commit, `snapshots/COMMIT` has that
commit's files, as links to `blobs` (https://huggingface.co/docs/hub/local-cache). It is read here
without the hub's library, so that a model that is there costs neither time nor memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tpimpi.checkpoint.files import weight_files
from tpimpi.errors import UserError
from tpimpi.model.directory import exists

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/[\w.-]*\w)*", re.ASCII)  # a branch, a tag, refs/pr/1, a commit
COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "ON", "YES", "TRUE")  # what the hub's library takes for it
_FILES = (".gguf", ".ggml", ".safetensors", ".json")  # whose paths are no models' names


@dataclass(frozen=True)
class HubId:
    """A model on the hub, `org/name`, and which revision of it."""

    repo: str
    revision: str = "main"

    @classmethod
    def of(cls, given: str) -> HubId | None:
        """Read `org/name` or `org/name@revision`; None for what is nothing like it."""
        repo, at, revision = given.partition("@")
        if not _ID.fullmatch(repo) or repo.lower().endswith(_FILES) or {"--", ".."} & _pairs(repo):
            return None
        if not at:
            return cls(repo)
        fits = _REVISION.fullmatch(revision) and ".." not in revision
        return cls(repo, revision) if fits else None

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def folder(self) -> Path:
        """Where it lies in the cache, or would lie."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}"

    @property
    def reference(self) -> Path:
        """The file that names the commit that its revision was when it was fetched."""
        return self.folder / "refs" / self.revision

    def snapshot(self) -> Path | None:
        """Return the directory of its revision in the cache; None where there is none."""
        commit = self.revision
        if not COMMIT.fullmatch(commit):
            try:
                commit = self.reference.read_text().strip()
            except (OSError, UnicodeDecodeError):
                return None
            if not COMMIT.fullmatch(commit):
                return None
        directory = self.folder / "snapshots" / commit
        return directory if directory.is_dir() else None


def _pairs(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(len(text))}


def hub_cache() -> Path:
    """Return the folder of the hub's cache, where the hub's library has it. Raises UserError."""
    environment = os.environ
    base = environment.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = environment.get("HF_HOME", os.path.join(base, "huggingface"))
    folder = environment.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    folder = environment.get("HF_HUB_CACHE", folder)
    folder = os.path.expandvars(os.path.expanduser(folder))
    if folder.startswith("~"):
        raise UserError("there is no home folder for the hub's cache; set HF_HOME to a folder")
    return Path(folder)


def offline() -> str | None:
    """Return the variable that forbids to ask the hub, None where none does."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        value = os.environ.get(name)
        if value:  # the first that says something counts
            return name if value.upper() in _TRUE else None
    return None


def lack(directory: Path) -> str | None:
    """Return in words what a directory lacks of a model that can be run; None if nothing."""
    try:
        if not exists(directory / "config.json"):
            return f"{directory} has no config.json"
        if not any(exists(directory / f"tokenizer.{kind}") for kind in ("json", "model")):
            return f"{directory} has no tokenizer"
        weight_files(directory)
    except UserError as error:
        return str(error)
    return None
