"""What kernels written in LLVM IR share: types, what the target has, fma, loops, prefetches."""

from __future__ import annotations

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


def outlined(name: str, arguments: int, emit):
    """Return a function that gets or emits another, of 64-bit integers, in a builder's module.

    Kept out of its callers: they call it in several places, its loops are compiled once.
    """

    def get(builder):
        found = builder.module.globals.get(name)
        if found is None:
            kind = ir.FunctionType(ir.VoidType(), [I64] * arguments)
            found = ir.Function(builder.module, kind, name)
            found.linkage = "internal"
            found.attributes.add("noinline")
            body = ir.IRBuilder(found.append_basic_block("entry"))
            emit(body, *found.args)
            body.ret_void()
        return found

    return get


def call_one_of(builder, choice, functions, arguments):
    """Emit a call of the outlined function for this value of `choice`, one of their keys."""
    after = builder.append_basic_block("after")
    wrong = builder.append_basic_block("wrong")
    switch = builder.switch(choice, wrong)
    for key, function in functions.items():
        block = builder.append_basic_block(f"case_{key}")
        switch.add_case(ir.Constant(choice.type, key), block)
        builder.position_at_end(block)
        builder.call(function(builder), arguments)
        builder.branch(after)
    builder.position_at_end(wrong)
    builder.unreachable()
    builder.position_at_end(after)
