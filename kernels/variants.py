"""Compile one body as several functions, each with one signature.

numba's cache mixes the signatures of one function up when processes race for it, so every variant
gets a name, and so a cache file, of its own. It is compiled when it is first asked for, never on
import: the compiler's memory is for processes that then end, see `tpimpi.engine.compilation`.

numba documents no way to cache a function under another name. That a copy of a function is cached
by its own `__qualname__` was tried with numba 0.68.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from types import FunctionType
from typing import Any

from numba import cfunc, njit, types

# For what only kernels call: without the wrappers by which Python would call it.
inner = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
MANY = 32  # tokens from which a second thread pays for work of about a microsecond a token

_compiled: dict[tuple, Callable] = {}
_functions: dict[str, Any] = {}  # as long as they are here, their addresses hold
_recipes: dict[str, Callable[[], Callable]] | None = None  # of those asked for, while recording


def variant(body: Callable, name: str, arguments: tuple, parallel: bool = False) -> Callable:
    """Return `body` compiled for these argument types, from numba's cache where it is there."""
    key = (body, name, parallel)
    kernel = _compiled.get(key)
    if kernel is None:
        full = f"{name}{body.__name__}"
        compiling = partial(_compile, body, full, arguments, parallel)
        if _recipes is not None:
            _recipes[full] = compiling
            return _nothing
        kernel = _compiled[key] = compiling()
    return kernel


def _compile(body: Callable, full: str, arguments: tuple, parallel: bool) -> Callable:
    function = FunctionType(body.__code__, body.__globals__, full)
    function.__qualname__ = full
    compiler = njit(types.void(*arguments), nogil=True, cache=True, parallel=parallel)
    return compiler(function)


def _nothing(*_) -> None:
    pass


def address(body: Callable, name: str, signature: Any) -> int:
    """Return the address of `body` compiled as a C function, which kernels are given to call."""
    function = _functions.get(name)
    if function is None:
        compiling = partial(_compile_function, body, name, signature)
        if _recipes is not None:
            _recipes[name] = compiling
            return 0
        function = _functions[name] = compiling()
    return function.address


def _compile_function(body: Callable, name: str, signature: Any) -> Any:
    function = FunctionType(body.__code__, body.__globals__, name)
    function.__qualname__ = name
    return cfunc(signature, cache=True)(function)


def record() -> dict[str, Callable[[], Callable]]:
    """Let every kernel do nothing from now on, and return what would compile those asked for.

    For a process that only compiles: names with their recipes appear as kernels are called.
    """
    global _recipes
    _recipes = {}
    return _recipes


def record_no_more() -> None:
    """Let kernels be compiled and called again."""
    global _recipes
    _recipes = None


class Kernel:
    """The serial and the parallel variant of a kernel; the parallel one also takes `threads`.

    After the first use each is a plain attribute: a call of a small problem is mostly Python.
    """

    def __init__(self, name: str, serial: Callable, parallel: Callable, *arguments: types.Type):
        self._name, self._arguments, self._bodies = name, arguments, (serial, parallel)

    @cached_property
    def serial(self) -> Callable:
        return variant(self._bodies[0], self._name, self._arguments)

    @cached_property
    def parallel(self) -> Callable:
        arguments = (*self._arguments, types.intp)
        return variant(self._bodies[1], self._name, arguments, parallel=True)
