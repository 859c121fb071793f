"""The entry point: from the command line to an exit code, with every rank going down together.

Exit codes: 0, 1 (the machine's failure), 2 (the user's mistake), 130 (Ctrl-C).
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Run `tpimpi` on this rank and exit."""
    signal.signal(signal.SIGINT, _leave_at_once)  # imports take a second, in which nothing is held
    _open_what_is_closed()
    code = _main()
    signal.signal(signal.SIGINT, _leave_at_once)
    if _unwritable() and code == 0:
        code = 1
    sys.exit(code)


def _leave_at_once(*_) -> None:
    os._exit(INTERRUPTED)


def _open_what_is_closed() -> None:
    """Let standard streams that the caller has closed lead nowhere.

    Else the next file to be opened, such as a shard, would get what is written to them.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # whatever the locale says


def _unwritable() -> bool:
    """Tell whether standard output can't take what is still to be written; then throw that away.

    Python would try once more at the end, and complain.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # else nobody is there to hear it
            print(f"tpimpi: standard output can't be written: {error.strerror}", file=sys.stderr)
        return True
    return False


def _main() -> int:
    from tpimpi import launch
    from tpimpi.commands.command_line import parse
    from tpimpi.errors import MachineError, UserError

    rank = launch.launched_rank()
    if rank != 0 and {"-h", "--help", "--version"} & set(sys.argv[1:]):
        return 0  # rank 0 tells it
    speaks = rank == 0
    try:
        invocation = parse(sys.argv[1:])
        speaks = speaks or launch.launched_local_rank() == 0  # each machine has its own reasons
        threads = launch.prepare(invocation.threads)
        world = launch.world()
    except SystemExit as leaving:  # --help, --version
        return leaving.code or 0
    except (UserError, MachineError) as error:
        return _fail(str(error), _code(error), speaks)
    return _run(invocation, threads, world)


def _code(error: BaseException) -> int:
    from tpimpi.errors import UserError

    return 2 if isinstance(error, UserError) else 1


def _fail(sentence: str, code: int, speaks: bool = True) -> int:
    from tpimpi.console import say

    if not _unwritable() and speaks:
        say(sentence)
    return code


def _run(invocation, threads: int, world) -> int:
    """Run the command on all ranks. Returns the exit code, or takes all ranks down."""
    from tpimpi.comm.group import Group
    from tpimpi.comm.versions import agree_on_code
    from tpimpi.errors import MachineError, UserError, describe

    group = Group(world)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not invocation.examines:
            agree_on_code(group)
        invocation.run(invocation.options, group, threads)
        sys.stdout.flush()
        group.close()
        return 0
    except (UserError, MachineError) as error:
        if getattr(error, "agreed", False) or group.size == 1:
            return _fail(str(error), _code(error), group.rank == 0)  # every rank is here
        return _abort(world, group, str(error), _code(error))
    except KeyboardInterrupt:
        return _abort(world, group, None, INTERRUPTED)
    except BrokenPipeError:
        return _abort(world, group, None, 1)
    except (OSError, MemoryError) as error:
        return _abort(world, group, describe(error), 1)
    except Exception as error:
        import traceback

        traceback.print_exc()  # a defect of the program, not the user's: show where
        return _abort(world, group, f"internal error: {describe(error)}", 1)


def _abort(world, group, sentence: str | None, code: int) -> int:
    """Take all ranks down: those that wait in a collective would wait for ever."""
    where = f"rank {group.rank} on {group.host}: " if group.size > 1 else ""
    _fail(f"{where}{sentence}", code, sentence is not None)
    if group.size == 1:
        if sentence is None:
            os._exit(code)
        return code
    world.Abort(code)
    return code
