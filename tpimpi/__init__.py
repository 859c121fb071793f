"""Large language models in full precision on weak machines together, over MPI.

    import tpimpi

    with tpimpi.load("path/of/a/model") as llm:
        for piece in llm.stream("how are you?", max_new_tokens=50):
            print(piece, end="", flush=True)

Run it alone or under mpirun; see `load` and docs/api.md.
"""

from __future__ import annotations

from tpimpi.errors import MachineError, UserError

__version__ = "0.1.0"
__all__ = ["MachineError", "UserError", "load"]


def __getattr__(name: str):
    # MPI and numba load with it, and the environment must be settled before: not on import.
    if name == "load":
        from tpimpi.engine.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
