"""What the environment tells numba: threads, the folder of its cache; refuse what it chokes on.

All of it must be settled before numba loads. Each kind of machine gets a folder of its own: two
that share a home would write one's code under the other's name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from tpimpi.errors import UserError
from tpimpi.paths import cache_directory

MOST_THREADS = 1024  # of one rank
_OURS = ("NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR", "NUMBA_THREADING_LAYER")

# Of /proc/cpuinfo, what the compiler's choices depend on, on x86 and ARM.
_CPU = re.compile(
    r"(vendor_id|cpu family|model|stepping|flags|Features|CPU implementer|CPU part|isa)\s*:"
)


def settle(threads: int, asked: bool, cores: int) -> int:
    """Set what numba reads, where the user has not; return the threads that it may start.

    `asked`: whether the user named their number. Raises UserError.
    """
    threads = _allowed_threads(threads, asked)
    os.environ.setdefault("NUMBA_NUM_THREADS", str(max(threads, cores)))
    os.environ.setdefault("NUMBA_THREADING_LAYER", "omp" if sys.platform == "linux" else "default")
    os.environ["NUMBA_CACHE_DIR"] = str(cache_folder())
    others = [n for n in sorted(os.environ) if n.startswith("NUMBA_") and n not in _OURS]
    if others:
        _try(others)
    return threads


def _allowed_threads(threads: int, asked: bool) -> int:
    if threads > MOST_THREADS:
        raise UserError(f"--threads {threads} is beyond what is possible, {MOST_THREADS}")
    given = os.environ.get("NUMBA_NUM_THREADS")
    if given is None:
        return threads
    if not given.isascii() or not given.isdigit() or int(given) == 0:
        raise UserError(f"NUMBA_NUM_THREADS={given} is not a number of threads; unset it")
    if asked and threads > int(given):
        raise UserError(
            f"--threads {threads} is more than NUMBA_NUM_THREADS={given} allows; unset that"
        )
    return min(threads, int(given))


def cache_folder() -> Path:
    """Return the folder of numba's cache, in the user's or in one that only they may write to."""
    digest, given = _digest(), os.environ.get("NUMBA_CACHE_DIR")
    if given:
        folder = Path(given).absolute()
        if not _can_be_written(folder):
            raise UserError(f"NUMBA_CACHE_DIR={given} can't be written; unset it or name another")
        return folder if folder.name == digest else folder / digest  # settled before, or not
    try:
        folder = cache_directory() / "numba"
    except UserError:  # no home
        folder = None
    if folder is None or not _can_be_written(folder):
        folder = temporary_cache()
    return folder / digest


def _can_be_written(folder: Path) -> bool:
    """Tell whether files can be made in a folder that is there, or could be."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return False


def temporary_cache() -> Path:
    """Return a folder for compiled kernels where the user's cache can't be written.

    Code is loaded from it: another user must not have made it.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"tpimpi-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        state = None
    if not state or not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or (
        state.st_mode & 0o022
    ):  # fmt: skip
        raise UserError(
            "neither the cache nor a temporary folder of yours can be written, which compiled "
            "kernels are kept in; set XDG_CACHE_HOME to a folder that can"
        )
    return folder / "numba"


def cache_is_temporary() -> bool:
    """Tell whether numba's cache lies in the temporary folder."""
    temporary = Path(tempfile.gettempdir()) / f"tpimpi-{os.getuid()}" / "numba"
    return Path(os.environ["NUMBA_CACHE_DIR"]).parent == temporary


def _digest() -> str:
    # numba's cache doesn't see edits in another file, so its folder is named after all of them.
    digest = hashlib.sha256(sys.version.encode())
    for package in ("numba", "llvmlite"):  # found, not imported: the environment comes first
        origin = importlib.util.find_spec(package).origin
        digest.update(Path(origin).with_name("_version.py").read_bytes())
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        digest.update(os.environ.get(name, "").encode())
    digest.update(_processor().encode())
    import tpimpi.kernels

    for folder in tpimpi.kernels.__path__:
        for source in sorted(Path(folder).glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return what tells this machine's kind of processor from others."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in first.splitlines() if _CPU.match(line))


def _try(names: list[str]) -> None:
    """Load numba with variables that the user has set, to refuse those that it can't read."""
    features = os.environ.get("NUMBA_CPU_FEATURES", "")
    if not all(re.fullmatch(r"[+-]\S+", feature) for feature in features.split(",") if features):
        raise UserError(  # the compiler would end the process
            f"NUMBA_CPU_FEATURES={features} must be features with + or - before each; unset it"
        )
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise UserError("NUMBA_DISABLE_JIT is set, but the kernels must be compiled; unset it")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Environment variable")
            import numba  # noqa: F401
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"numba doesn't load with {', '.join(names)} set: {said}") from None
