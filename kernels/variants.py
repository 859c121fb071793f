"""Compile one body as several functions, each with one signature.

numba's cache mixes the signatures of one function up when processes race for it, so every variant
gets a name, and so a cache file, of its own. It is compiled when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

from numba import njit, types

_compiled: dict[tuple, Callable] = {}


def variant(body: Callable, name: str, arguments: tuple, parallel: bool = False) -> Callable:
    """Return `body` compiled for these argument types, from numba's cache where it is there."""
    key = (body, name, parallel)
    kernel = _compiled.get(key)
    if kernel is None:
        full = f"{name}{body.__name__}"
        function = FunctionType(body.__code__, body.__globals__, full)
        function.__qualname__ = full
        compiler = njit(types.void(*arguments), nogil=True, cache=True, parallel=parallel)
        kernel = _compiled[key] = compiler(function)
    return kernel
