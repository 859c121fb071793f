"""The folder of the devices' files: made, marked as a bed's, and removed only where it is."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from bed.quantities import BedError, BedMistake

MARKER = ".made-by-testbed"
_HIDDEN = ("/proc", "/sys", "/dev")


def ours(folder: Path) -> bool:
    """Tell whether a bed has made a folder."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def require_free(folder: Path) -> None:
    """Raise BedMistake where something lies there that no bed has made, or devices see no disk."""
    for hidden in _HIDDEN:
        if folder.is_relative_to(hidden):
            raise BedMistake(
                f"--folder {folder.parent}: {hidden} is another one on each device; "
                "name a folder on a disk"
            )
    if os.path.lexists(folder) and not ours(folder):
        raise BedMistake(
            f"{folder} exists and no test bed has made it, so it is not touched; take another "
            "--name for the bed, or another --folder for the devices' files"
        )


def claim(folder: Path) -> None:
    """Make the folder, in place of what a bed has left there that no longer is."""
    require_free(folder)
    remove(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BedError(
            f"{folder} can't be made for the devices' files ({error.strerror}); "
            "name a folder on a disk with --folder"
        ) from None
    (folder / MARKER).write_text("`testbed down` removes this folder and all that is in it.\n")


def remove(folder: Path) -> None:
    """Remove the folder where a bed has made it, whole or in part."""
    if ours(folder):
        # The mark goes last: whoever is stopped meanwhile leaves a folder that is still a bed's.
        for path in folder.iterdir():
            if path.name != MARKER:
                clear(path)
        (folder / MARKER).unlink()
    with contextlib.suppress(OSError):  # another's is not empty, or not there
        folder.rmdir()


def clear(path: Path) -> None:
    """Remove a file or a folder, also while a process that is being ended writes to it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for _ in range(5):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    shutil.rmtree(path)
