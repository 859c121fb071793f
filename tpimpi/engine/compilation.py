"""Compile kernels into numba's cache, and measure which tiles are fast on this machine.

Child processes do it, on all cores, each kernel in one of them. The compiler needs more memory than
many models' plans have, and what it took once stays in a process's peak: so processes compile that
then end. Each finds out which kernels there are by calling them, and compiles those that its parent
names, one line at a time. When all are compiled one of them measures, while nothing else runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import selectors
import signal
import sys
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

import tpimpi
import tpimpi.kernels
from tpimpi.child import Child
from tpimpi.console import say
from tpimpi.errors import MachineError
from tpimpi.launch import allowed_cores
from tpimpi.memory.process import free_memory
from tpimpi.numba_settings import cache_is_temporary
from tpimpi.progress import Progress
from tpimpi.units import MIB, size

CHILD_BYTES = 400 * MIB  # that a compiling process takes at most
LONG = ("attention", "tiles", "matmul")  # what the compiler is busy with longest, first
MOST_CHILDREN = 8  # there are hardly more kernels
LOOK_SECONDS = 0.2
MEASURE = "measure "  # before a mode and an encoding: a job beside the kernels' names

# The launcher's variables would make a child believe to be a rank.
_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_", "SLURM_")

# With -c Python puts the current folder first on its path: a folder `tpimpi` there is another's.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from tpimpi.engine.compilation import serve
serve({files!r}, {cores!r}, {pairs!r})
"""


def compile_missing(
    encodings: Iterable[str], modes: Iterable[int], cores: Collection[int], speaks: bool
) -> None:
    """Compile what is not yet in numba's cache for these encodings, with 1 thread, with 2, or both.

    Other programs may do the same at the same time: what they write is equal. Raises MachineError,
    and OSError where the cache can't be written.
    """
    Path(os.environ["NUMBA_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)  # sooner than afterwards
    pairs = [(mode, encoding) for mode in sorted(modes) for encoding in sorted(encodings)]
    missing = [pair for pair in pairs if not _stamp(*pair).exists()]
    if missing:
        if speaks and cache_is_temporary():
            say(
                f"the cache can't be written, so compiled kernels are kept in "
                f"{os.environ['NUMBA_CACHE_DIR']}; set XDG_CACHE_HOME to a folder that can"
            )
        for pair, measured in _compile(missing, cores, speaks).items():
            stamp = _stamp(*pair)
            partial = stamp.with_name(f"{stamp.name}.{os.getpid()}")
            partial.write_text(json.dumps(measured))
            partial.replace(stamp)


def use_tilings(encodings: Iterable[str], threads: int) -> None:
    """Let products use the tiles that were measured when the kernels were compiled."""
    from tpimpi.kernels import tiling, tuning

    for encoding in encodings:
        try:
            measured = tuning.from_json(json.loads(_stamp(min(threads, 2), encoding).read_text()))
        except (OSError, ValueError, RecursionError):
            continue  # damaged: a guess will do
        tiling.use({(encoding, threads > 1): measured})


def _stamp(mode: int, encoding: str) -> Path:
    """Return the file that tells that numba's cache has this mode's kernels for this CPU.

    It holds the tiles that were measured.
    """
    from tpimpi.kernels.emit import TARGET

    cpu = hashlib.sha256(repr((TARGET, _files())).encode()).hexdigest()[:16]
    name = f"{'serial' if mode == 1 else 'threads'}-{encoding}-{cpu}.compiled"
    return Path(os.environ["NUMBA_CACHE_DIR"]) / name


def _files() -> list[str]:
    """Return where the program and its kernels lie: numba keeps a cache for each such place."""
    return [tpimpi.__file__, *tpimpi.kernels.__path__]


def _compile(pairs: list[tuple[int, str]], cores: Collection[int], speaks: bool) -> dict:
    """Compile what these modes and encodings need; return the tiles measured for each."""
    free = free_memory()
    free_bytes = free.node if free.cgroup is None else min(free.node, free.cgroup)
    count = max(1, min(MOST_CHILDREN, len(cores), free_bytes // CHILD_BYTES))
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_Compiler(pairs, cores)) for _ in range(count)]
        _hand_out(children, speaks)
        return _measure(children[0], pairs, speaks)


def _hand_out(children: list[_Compiler], speaks: bool) -> None:
    """Give each child a job when it has done its last, until all is compiled."""
    kernels = children[0].answer()
    jobs, done = _jobs(kernels), 0
    children[0].give(jobs.pop(0))
    title = "compiling kernels for this CPU, once"
    with (
        selectors.DefaultSelector() as selector,
        Progress(title, len(kernels), "kernels", speaks, even=False) as progress,
    ):
        for child in children:
            selector.register(child.answers, selectors.EVENT_READ, child)
        while done < len(kernels):
            progress.update()
            for key, _ in selector.select(LOOK_SECONDS):
                child: _Compiler = key.data
                finished = min(len(child.answer()), child.left)  # all names come first, none done
                done += finished
                progress.update(finished)
                child.left -= finished
                if child.left == 0 and jobs:
                    child.give(jobs.pop(0))


def _measure(child: _Compiler, pairs: list[tuple[int, str]], speaks: bool) -> dict:
    """Return for each of the pairs the tiles that are fast, while nothing else runs here."""
    found = {}
    title = "measuring which tiles are fast"
    with Progress(title, len(pairs), "kernels", speaks, even=False) as progress:
        for mode, encoding in pairs:
            child.give([f"{MEASURE}{mode} {encoding}"])
            (found[mode, encoding],) = child.answer()
            progress.update(1)
    return found


def _jobs(kernels: Iterable[str]) -> list[list[str]]:
    """Put the variants of a kernel together, as they share functions; the longest come first."""
    jobs: dict[str, list[str]] = {}
    for name in kernels:
        jobs.setdefault(name.removesuffix("_serial").removesuffix("_parallel"), []).append(name)
    order = {name: LONG.index(word) for name in jobs for word in LONG if name.startswith(word)}
    return [jobs[name] for name in sorted(jobs, key=lambda name: order.get(name, len(LONG)))]


class _Compiler(Child):
    """A compiling process. It answers all kernels' names at first, then one that it has done."""

    def __init__(self, pairs: list[tuple[int, str]], cores: Collection[int]):
        program = _PROGRAM.format(path=sys.path, files=_files(), cores=sorted(cores), pairs=pairs)
        super().__init__(
            program, {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
        )
        self.left = 0  # kernels that it still compiles

    def give(self, names: list[str]) -> None:
        """Let it compile these kernels."""
        self.left = len(names)
        self.tell("".join(f"{name}\n" for name in names))

    def in_words(self, code: int, last: str) -> MachineError:
        """Return the error for its sudden end."""
        if code == -signal.SIGKILL:
            last = f"it was killed, as is done where memory is short; it needs {size(CHILD_BYTES)}"
        into = os.environ["NUMBA_CACHE_DIR"]
        return MachineError(f"a process that compiled the kernels into {into} failed: {last}")


def serve(files: list[str], cores: list[int], pairs: list[tuple[int, str]]) -> None:
    """Tell the kernels' names, then compile what is asked for, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and kills this one
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if _files() != files:
        sys.exit(f"this process found other files of the program, {_files()}, than {files}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    names: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(names,), daemon=True).start()
    from tpimpi.engine.warmup import call_kernels
    from tpimpi.kernels import variants
    from tpimpi.kernels.panels import tile_of

    recipes = variants.record()
    for mode, encoding in pairs:
        call_kernels([encoding], mode)
    tile_of("f32")  # what any weights may be widened for
    print(json.dumps(list(recipes)), file=answers, flush=True)
    while True:
        name = names.get()
        answer = name
        if name.startswith(MEASURE):
            answer = _measured(*name.removeprefix(MEASURE).split(), len(cores))
        else:
            recipes[name]()
        print(json.dumps([answer]), file=answers, flush=True)


def _measured(mode: str, encoding: str, cores: int) -> dict[str, list[int]]:
    import numba

    from tpimpi.kernels import tuning, variants

    variants.record_no_more()
    threads = 1 if mode == "1" else max(2, min(cores, numba.config.NUMBA_NUM_THREADS))
    if threads > 1:
        numba.set_num_threads(threads)
    return tuning.to_json(tuning.measure(encoding, threads))


def _listen(names: queue.SimpleQueue[str]) -> None:
    """Pass on what the parent asks for; when it has gone, go, whatever is being compiled."""
    for line in sys.stdin:
        names.put(line.strip())
    os._exit(0)


def main() -> None:
    """Compile all kernels that any run may need, as `scripts/quickstart` does beforehand."""
    from tpimpi import launch
    from tpimpi.model.encoding import ENCODINGS

    launch.prepare(None)
    compile_missing(ENCODINGS, (1, 2), allowed_cores(), True)


if __name__ == "__main__":
    main()
