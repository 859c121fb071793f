"""The entry point: from the command line to an exit code, with every rank going down together.

Exit codes: 0, 1 (the machine's failure), 2 (the user's mistake), 130 (Ctrl-C), 143 (SIGTERM).
Under a launcher a guard stands by each rank from the first moment, see `guard`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SPOKEN = 2.0  # seconds that a silent rank leaves to the one that says why all end


def main() -> None:
    """Run `tpimpi` on this rank and exit."""
    _on_signals(_leave_at_once)  # imports take a second, in which nothing is held
    _open_what_is_closed()
    from tpimpi.guard import process

    process.stand_by()
    code = _main()
    _on_signals(signal.SIG_IGN if _was_asked_to_end() else _leave_at_once)
    if _unwritable() and code == 0:
        code = 1
    sys.exit(code)


def _was_asked_to_end() -> bool:
    """Tell whether this is the end that a signal has asked for, of which a copy may still come."""
    from tpimpi import status

    return status.current.grace > 0


def _on_signals(handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _leave_at_once(number: int, _=None) -> None:
    os._exit(128 + number)


def _interrupt(number: int, _) -> None:
    """Let everything be put down that is held; at a second signal leave that."""
    from tpimpi import status

    # With a guard the launcher's signal comes twice.
    _on_signals(signal.SIG_IGN if status.current.guarded else _leave_at_once)
    raise KeyboardInterrupt(number)


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
    from tpimpi import launch, status
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
        status.current.timeout = invocation.timeout
        status.current.stage = status.MEETING
        world = launch.world()
    except SystemExit as leaving:  # --help, --version
        return leaving.code or 0
    except (UserError, MachineError) as error:
        if not speaks:
            time.sleep(SPOKEN)  # the first one's end is all ranks' end: not before it is said
        return _fail(str(error), _code(error), speaks)
    return _run(invocation, threads, world)


def _code(error: BaseException) -> int:
    from tpimpi.errors import UserError

    return 2 if isinstance(error, UserError) else 1


def _fail(sentence: str, code: int, speaks: bool = True) -> int:
    from tpimpi import status
    from tpimpi.console import say

    own = status.current
    told, own.said = own.said, True  # by the guard, which ends this rank
    if not _unwritable() and speaks and not told:
        say(sentence)
    return code


def _run(invocation, threads: int, world) -> int:
    """Run the command on all ranks. Returns the exit code, or takes all ranks down."""
    from tpimpi import launch
    from tpimpi.comm.greeting import greet
    from tpimpi.comm.group import Group
    from tpimpi.comm.heartbeat import Heartbeat
    from tpimpi.comm.versions import agree_on_code
    from tpimpi.errors import MachineError, UserError, describe

    try:
        greet(world)
    except MachineError as error:
        _fail(str(error), 1, world.rank == 0)
        if world.rank != 0:
            time.sleep(SPOKEN)
        return _take_down(world, 1)
    heartbeat, group = Heartbeat(world), Group(world)
    try:
        _on_signals(_interrupt)
        launch.forget_shared_memory()
        if not invocation.examines:
            agree_on_code(group)
        invocation.run(invocation.options, group, threads)
        sys.stdout.flush()
        group.close()
        heartbeat.stop()
        return 0
    except (UserError, MachineError) as error:
        if getattr(error, "agreed", False) or group.size == 1:  # every rank is here
            code = _fail(str(error), _code(error), group.rank == 0)
            heartbeat.stop()
            return code
        return _abort(world, str(error), _code(error))
    except KeyboardInterrupt as interrupt:
        return _interrupted(*interrupt.args)
    except BrokenPipeError:
        return _abort(world, None, 1)
    except (OSError, MemoryError) as error:
        return _abort(world, describe(error), 1)
    except Exception as error:
        import traceback

        traceback.print_exc()  # a defect of the program, not the user's: show where
        return _abort(world, f"internal error: {describe(error)}", 1)


def _interrupted(number: int = signal.SIGINT) -> int:
    """End this rank; the launcher tells the others of the signal, or ends them after this."""
    import threading

    from tpimpi import status
    from tpimpi.console import say

    own = status.current
    if own.guarded:
        os.kill(os.getppid(), number)  # the guard ends all at one time, or MPI would complain
        threading.Event().wait()
    said = own.ended_line(number)
    if said:
        say(said)
    os._exit(128 + number)


def _abort(world, sentence: str | None, code: int) -> int:
    """Take all ranks down: those that wait in a collective would wait for ever."""
    from tpimpi import status

    where = f"rank {world.rank} on {status.current.own.host}: " if world.size > 1 else ""
    _fail(f"{where}{sentence}", code, sentence is not None)
    return _take_down(world, code) if world.size > 1 else code


def _take_down(world, code: int) -> int:
    from tpimpi import status

    status.current.alone = True
    world.Abort(code)
    return code
