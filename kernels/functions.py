"""Vector code that is compiled once, as a C function, and called by address from other kernels.

numba would compile it again with each kernel that it is part of, and so with every variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tpimpi.kernels.emit import I64, Outlined
from tpimpi.kernels.variants import address

_COUNT = 11  # a choice, and ten numbers that mean what the chosen code says
_SIGNATURE = types.void(*[types.intp] * _COUNT)
_addresses: dict[str, int] = {}


def _function(choice, a, b, c, d, e, f, g, h, i, j):
    call(choice, a, b, c, d, e, f, g, h, i, j)  # noqa: F821 - see function_address


def function_address(name: str, choices: Mapping[int, Outlined]) -> int:
    """Return the address of a function that runs the code of a choice; `call_function` calls it."""
    found = _addresses.get(name)
    if not found:

        @intrinsic
        def call(context, choice, a, b, c, d, e, f, g, h, i, j):
            return _SIGNATURE, lambda context, builder, sig, args: _emit(context, builder, args)

        def _emit(context, builder, args):
            after, wrong = (builder.append_basic_block(name) for name in ("after", "wrong"))
            switch = builder.switch(args[0], wrong)
            for choice, code in choices.items():
                block = builder.append_basic_block("choice")
                switch.add_case(ir.Constant(I64, choice), block)
                builder.position_at_end(block)
                builder.call(code(builder), args[1 : 1 + code.arguments])
                builder.branch(after)
            builder.position_at_end(wrong)
            trap = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, trap, "llvm.trap"), [])
            builder.unreachable()
            builder.position_at_end(after)
            return context.get_dummy_value()

        body = FunctionType(_function.__code__, _function.__globals__ | {"call": call}, "")
        found = _addresses[name] = address(body, name, _SIGNATURE)
    return found


@intrinsic
def call_function(context, function, choice, a, b, c, d, e, f, g, h, i, j):
    """Call the function at an address."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [I64] * _COUNT)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * (1 + _COUNT)), codegen
