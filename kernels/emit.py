"""What kernels written in LLVM IR share: types, what the target has, fma, loops, prefetches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir
from numba.core import cgutils
from numba.core.registry import cpu_target

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
LANES = 16  # of our vectors; LLVM splits them into whatever the target has
VECTOR = ir.VectorType(F32, LANES)

# numba documents no way to ask what it compiles for; its caches have this tuple in their keys.
# Tried with numba 0.68.
TARGET = cpu_target.target_context.codegen().magic_tuple()  # triple, CPU, its features
_TRIPLE, _, _FEATURES = TARGET
HAS_AVX, HAS_AVX512 = "+avx" in _FEATURES, "+avx512f" in _FEATURES
IS_ARM = _TRIPLE.startswith(("aarch64", "arm64"))
# Without these LLVM calls a library function for half -> float that is not there.
HAS_HALF = "+f16c" in _FEATURES or IS_ARM


def splat(kind: ir.Type, value) -> ir.Constant:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def int64(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def pointer(builder, address):
    """Emit an address as a pointer."""
    return builder.inttoptr(address, ir.PointerType())


def joined(builder, a, b):
    """Emit one vector of two."""
    order = ir.Constant(ir.VectorType(I32, 2 * a.type.count), list(range(2 * a.type.count)))
    return builder.shuffle_vector(a, b, order)


def broadcast(builder, address):
    """Emit a vector with the float32 that lies there in all lanes."""
    value = builder.load(pointer(builder, address), typ=F32)
    value.align = 4
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undefined, splat(ir.VectorType(I32, LANES), 0))


def reduced(builder, vector, add):
    """Emit a vector's lanes reduced to one: the first half with the second, until one is left."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        low, high = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(I32, half), list(range(at, at + half)))
            )
            for at in (0, half)
        )
        vector = add(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def fma(builder, a, b, c):
    # Fused where the target can, else a product and a sum: never a call of a library.
    kind = a.type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{suffix}"
    )
    return builder.call(function, [a, b, c])


def emit_loop(builder, start, stop, step, accumulators, body):
    """Emit `for k in range(start, stop, step)` with the accumulators as loop variables."""
    before, head = builder.block, builder.append_basic_block("head")
    inside, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(start, before)
    phis = [[builder.phi(value.type) for value in row] for row in accumulators]
    for row, values in zip(phis, accumulators, strict=True):
        for phi, value in zip(row, values, strict=True):
            phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", k, stop), inside, after)
    builder.position_at_end(inside)
    results = body(k, phis)
    k.add_incoming(builder.add(k, ir.Constant(I64, step)), builder.block)
    for row, values in zip(phis, results, strict=True):
        for phi, value in zip(row, values, strict=True):
            phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def emit_prefetch(builder, pointer, locality: int):
    """Ask for a cache line: locality 3 means the first cache, 2 the second."""
    kinds = [ir.PointerType(), I32, I32, I32]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0"
    )
    hints = [ir.Constant(I32, hint) for hint in (0, locality, 1)]  # read, keep, data
    builder.call(function, [pointer, *hints])


@dataclass(frozen=True)
class Outlined:
    """A function of 64-bit integers: called with a builder it emits itself once in a module.

    Kept out of its callers, so that its loops are compiled alone, and once.
    """

    name: str
    arguments: int
    emit: Callable  # gets a builder and the arguments

    def __call__(self, builder) -> ir.Function:
        found = builder.module.globals.get(self.name)
        if found is None:
            kind = ir.FunctionType(ir.VoidType(), [I64] * self.arguments)
            found = ir.Function(builder.module, kind, self.name)
            found.linkage = "internal"
            found.attributes.add("noinline")
            body = ir.IRBuilder(found.append_basic_block("entry"))
            self.emit(body, *found.args)
            body.ret_void()
        return found
