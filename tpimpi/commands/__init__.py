"""The subcommands: one file each, with its flags and what it does.

A command is a module with SUMMARY (a line for --help), `add_flags(parser)`, `options(args)`, which
returns a frozen dataclass or raises UserError, and `run(options, group, threads)`, collective. A
module must load without MPI and numba: they come after the command line is known, see `launch`.
One with EXAMINES also runs where ranks have different code.
"""

COMMANDS = (
    "generate",
    "chat",
    "serve",
    "convert",
    "verify",
    "cache",
    "info",
    "plan",
    "perplexity",
    "bench",
    "doctor",
)
