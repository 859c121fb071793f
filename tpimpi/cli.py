"""The entry point: from the command line to an exit code, with every rank going down together.

Exit codes: 0, 1 (the machine's failure), 2 (the user's mistake), 130 (Ctrl-C).
"""

from __future__ import annotations

import os
import sys
import traceback

from tpimpi import launch
from tpimpi.commands.command_line import Invocation, parse
from tpimpi.errors import MachineError, UserError, describe

INTERRUPTED = 130


def main() -> None:
    """Run `tpimpi` on this rank and exit."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # whatever the locale says
    try:
        if launch.launched_rank() != 0 and {"-h", "--help", "--version"} & set(sys.argv[1:]):
            sys.exit(0)  # rank 0 tells it
        invocation = parse(sys.argv[1:])
        threads = launch.prepare(invocation.threads)
        world = launch.world()
    except (UserError, MachineError) as error:
        _leave(error, launch.launched_rank() == 0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    _run(invocation, threads, world)


def _code(error: BaseException) -> int:
    return 2 if isinstance(error, UserError) else 1


def _say(text: str) -> None:
    print(f"tpimpi: {text}", file=sys.stderr, flush=True)


def _leave(error: BaseException, speaks: bool) -> None:
    if speaks:
        _say(str(error))
    sys.exit(_code(error))


def _run(invocation: Invocation, threads: int, world) -> None:
    from tpimpi.comm.group import Group

    group = Group(world)
    try:
        invocation.run(invocation.options, group, threads)
        group.close()
    except (UserError, MachineError) as error:
        if getattr(error, "agreed", False) or group.size == 1:
            _leave(error, group.rank == 0)  # every rank is here
        _abort(world, group, str(error), _code(error))
    except KeyboardInterrupt:
        sys.stdout.flush()
        if group.size == 1:
            os._exit(INTERRUPTED)
        world.Abort(INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has left: nothing to say, nobody to hear it
        if group.size == 1:
            os._exit(1)
        world.Abort(1)
    except (OSError, MemoryError) as error:
        _abort(world, group, describe(error), 1)
    except Exception as error:
        traceback.print_exc()  # a defect of the program, not the user's: show where
        _abort(world, group, f"internal error: {describe(error)}", 1)


def _abort(world, group, sentence: str, code: int) -> None:
    """Take all ranks down: those that wait in a collective would wait for ever."""
    sys.stdout.flush()
    where = f"rank {group.rank} on {group.host}: " if group.size > 1 else ""
    _say(where + sentence)
    if group.size == 1:
        sys.exit(code)
    world.Abort(code)
