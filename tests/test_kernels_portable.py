"""The kernels on other machines: vector code for each from one source, and the same bits.

Choices of a module depend on the machine it is imported on, so each kind gets a process of its own,
which this file is also the program of: `python test_portable.py KIND FOLDER`. numba optimizes
nothing there, so that all vectors are our own, no x86 instruction comes in, and time is saved.
What a kind chooses also runs there: compiled for that kind where this machine is one, else for this
machine. So ARM's order of addition is seen here, too.
"""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tpimpi.model.encoding import ENCODINGS

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
AVX2 = "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt,+movbe"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"


@dataclass(frozen=True)
class Kind:
    """What numba is told of a kind of machine, what is compiled for it."""

    triple: str
    cpu: str
    features: str
    machines: tuple[str, ...] = ()  # to compile for
    fma: str = ""  # a vector FMA in assembly
    encodings: tuple[str, ...] = tuple(ENCODINGS)


KINDS = {
    "haswell": Kind(X86, "haswell", AVX2, ("haswell",), r"vfmadd\w+ps\s.*%ymm"),
    "zen3": Kind(X86, "znver3", AVX2, ("znver3",), r"vfmadd\w+ps\s.*%ymm"),
    "avx512": Kind(X86, "skylake-avx512", AVX512, ("skylake-avx512",), r"vfmadd\w+ps\s.*%zmm"),
    "arm": Kind(ARM, "neoverse-n1", "+neon,+fp-armv8", ("generic", "neoverse-n1"),
                r"fmla\s+v\d+\.4s"),
    "generic": Kind(X86, "generic", "", encodings=("f16",)),
}  # fmt: skip


def outputs(encodings):
    """Return what matmul and attention give for fixed inputs, and their twins' results."""
    from tpimpi.kernels import attention, matmul, reference

    random, results = np.random.default_rng(3), {}
    for encoding in encodings:
        kind = ENCODINGS[encoding]
        raw = kind.narrow(random.standard_normal((37, 603), dtype=np.float32))
        for tokens in (1, 3, 70):
            x = random.standard_normal((tokens, 603), dtype=np.float32)
            out, twin = np.empty((2, tokens, 37), np.float32)
            matmul.matmul(x, [(kind.pack(raw), out)], 1, encoding)
            reference.matmul(x, kind.widen(raw), twin)
            results[f"matmul_{encoding}_{tokens}"] = out, twin
    keys = random.standard_normal((12, 2, 48, 64), dtype=np.float32)
    values = random.standard_normal((12, 2, 64, 48), dtype=np.float32)
    table, index = np.arange(12, dtype=np.int32)[None, ::-1].copy(), np.array([0, 0, 1], np.int32)
    for first, last in ((0, 70), (640, 768), (700, 701)):
        positions = np.arange(first, last, dtype=np.int32)
        q = random.standard_normal((last - first, 3, 48), dtype=np.float32)
        out, twin, slots = np.empty_like(q), np.empty_like(q), np.zeros_like(positions)
        scale, arguments = np.float32(48**-0.5), (q, keys, values, table, positions, slots)
        attention.attention(*arguments, out, index, scale, 1)
        reference.attention(*arguments, twin, index, scale, 1)
        results[f"attention_{first}"] = out, twin
    return results


def _as_kind(kind):
    """Make this process a machine of this kind, as far as the kernels' choices go."""
    from numba.core.registry import cpu_target

    codegen = type(cpu_target.target_context.codegen())
    codegen.magic_tuple = lambda self: (kind.triple, kind.cpu, kind.features)


def _record():
    """Return a dict that gets every kernel that is compiled."""
    from numba import cfunc, njit

    from tpimpi.kernels import variants

    kernels = {}

    def recording(compiler):
        def decorator(signature, cache, **options):
            def compiled(function):
                kernels[function.__qualname__] = compiler(signature, **options)(function)
                return kernels[function.__qualname__]

            return compiled

        return decorator

    variants.njit, variants.cfunc = recording(njit), recording(cfunc)
    return kernels


def _assembly(text, triple, cpu, features):
    """Compile a kernel's IR for another machine than the one that numba names in it."""
    import llvmlite.binding as llvm

    text = re.sub(r"(?m)^target (triple|datalayout) = .*\n", "", text)
    text = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2
    )
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return machine.emit_assembly(module)


def main(name, folder):
    """Compile every serial kernel as on this kind of machine, and run them."""
    import llvmlite.binding as llvm

    kind = KINDS[name]
    _as_kind(kind)
    kernels = _record()
    from tpimpi.engine import warmup

    warmup.call_kernels(kind.encodings, 1)
    for key, (out, _) in outputs(kind.encodings).items():
        np.save(folder / f"{key}.npy", out)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    report = {}
    for kernel, dispatcher in kernels.items():
        text = dispatcher.inspect_llvm()
        text = text if isinstance(text, str) else "".join(text.values())
        report[kernel] = {"x86": text.count("llvm.x86"), "fma": {}, "library": []}
        for cpu in kind.machines:
            features = "" if kind.triple == ARM else kind.features
            assembly = _assembly(text, kind.triple, cpu, features)
            report[kernel]["fma"][cpu] = len(re.findall(kind.fma, assembly))
            report[kernel]["library"] += re.findall(r"\b(?:fmaf?|__\w*h\w*2\w*)\b", assembly)
    print(json.dumps(report))


pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles with x86's numba")


def _features():
    """Return what numba finds this machine to have."""
    from numba.core.registry import cpu_target

    return set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


def _is_one(kind):
    """Tell whether this machine runs what is compiled for that kind."""
    return kind.triple == X86 and set(filter(None, kind.features.split(","))) <= _features()


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """What each kind's process reports, and the folder of its results; they run side by side."""
    started = {}
    for name, kind in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        environment = os.environ | {"NUMBA_OPT": "0"}
        if _is_one(kind):
            environment |= {"NUMBA_CPU_NAME": kind.cpu, "NUMBA_CPU_FEATURES": kind.features}
        command = [sys.executable, __file__, name, str(folder)]
        started[name] = (
            folder,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True),
        )
    found = {}
    for name, (folder, process) in started.items():
        report, _ = process.communicate()
        assert process.returncode == 0, name
        found[name] = json.loads(report), folder
    return found


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.machines])
def test_vector_code_for_other_machines(children, name):
    report, kind = children[name][0], KINDS[name]
    vectors = {f"tiles_{encoding}" for encoding in ENCODINGS} | {"attention_tiles"}
    vectors |= {"rmsnorm_serial"}
    others = {"matmul_serial", "attention_serial", "rope_serial", "silu_gate_serial"}
    assert vectors | others | {"append_kv_serial"} == set(report)
    for kernel, found in report.items():
        assert found["x86"] == 0, kernel
        assert not found["library"], kernel
        for cpu in kind.machines:
            assert kernel not in vectors or found["fma"][cpu] > 0, (kernel, cpu)


@pytest.mark.parametrize("other", [name for name, kind in KINDS.items() if kind.machines])
def test_the_same_bits_as_other_machines_with_fma(children, other):
    """A promise of the program: AVX2, AVX-512 and NEON give the same numbers."""
    if "+fma" not in _features():
        pytest.skip("this machine has no FMA")
    results = outputs(ENCODINGS)
    assert len(results) == 12
    for key, (here, twin) in results.items():
        np.testing.assert_allclose(here, twin, atol=2e-4)
        there = np.load(children[other][1] / f"{key}.npy")
        assert (here.view(np.uint32) == there.view(np.uint32)).all(), key


def test_close_to_the_twins_without_fma(children):
    for key, (_, twin) in outputs(KINDS["generic"].encodings).items():
        there = np.load(children["generic"][1] / f"{key}.npy")
        np.testing.assert_allclose(there, twin, atol=2e-4, err_msg=key)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
