"""Which folders may be another, empty one on each device: none that programs are started from."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bed import launch, state
from bed.quantities import BedMistake

# Nothing above, at or below these: programs, their libraries, and what the kernel shows.
_SYSTEM = (
    "/proc", "/sys", "/dev", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64",
    "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec",
)  # fmt: skip


def folders(asked: list[str], files: Path) -> list[str]:
    """Return the folders with their links resolved. `files` is where the devices' files lie.

    Raises BedMistake for what is no folder or what would leave a device without programs.
    """
    found = []
    for given in asked:
        folder = Path(os.path.realpath(given))
        if not folder.is_dir():
            raise BedMistake(f"--private {given} is no folder")
        for inside, path in _kept(files):
            if path.is_relative_to(folder) or (inside and folder.is_relative_to(path)):
                raise BedMistake(
                    f"--private {given} would hide {path} from the devices, which they need; "
                    "take a folder of your own"
                )
        found.append(str(folder))
    return found


def _kept(files: Path) -> list[tuple[bool, Path]]:
    """Return what devices need, and whether all that is inside of it as well."""
    environments = [place.parent for place in launch.places(None)]
    environments = [place for place in environments if (place / "pyvenv.cfg").exists()]
    whole = [*_SYSTEM, state.RUN, files, launch.ROOT / "scripts", *environments]
    if sys.prefix != sys.base_prefix:
        whole.append(sys.prefix)
    programs = [shutil.which(name) for name in ("sleep", "setsid", "mpirun")]
    above = [launch.ROOT, sys.base_prefix, sys.executable, *filter(None, programs)]
    paths = [(True, Path(p)) for p in whole] + [(False, Path(p)) for p in above]
    resolved = [(inside, Path(os.path.realpath(path))) for inside, path in paths]
    return paths + resolved
