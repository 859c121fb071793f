"""Where things lie: the user's cache, and what is free on the disk of a path."""

from __future__ import annotations

import os
from pathlib import Path

from tpimpi.errors import UserError


def cache_directory() -> Path:
    """Return the user's cache directory of tpimpi. Raises UserError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise UserError("there is no home folder for the cache; set XDG_CACHE_HOME to a folder")
    return Path(base) / "tpimpi"


def there(path: Path) -> Path:
    """Return a path, or the nearest one above it that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def free_disk(path: Path) -> int:
    """Return the bytes free where `path` lies or would lie."""
    disk = os.statvfs(there(path))
    return disk.f_bavail * disk.f_frsize


def state_directory() -> Path:
    """Return the user's directory of what tpimpi remembers. Raises UserError where no home is."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if base.startswith("~"):
        raise UserError("there is no home folder; set XDG_STATE_HOME to a folder")
    return Path(base) / "tpimpi"
