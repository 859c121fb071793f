"""Who is compared: the programs, their files, the threads they get, what must be said of them."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS
from tpimpi.model.tensors import Kind, tensors

WORKER = Path(__file__).with_name("worker.py")
PACKAGES = ("llama.cpp", "transformers", "accelerate")
# Accelerate keeps this share resident; the rest is for Python, PyTorch and a layer in float32.
OFFLOAD_SHARE = 0.33


@dataclass
class Program:
    """One row of the comparison."""

    label: str
    kind: str  # of the worker
    package: str  # by which a user names it
    model: str
    threads: int  # of each rank
    ranks: int = 1
    flags: dict | list = field(default_factory=dict)
    weight_bytes: int = 0  # that a token needs; what pads a shard's panels is no work
    exact: bool = True  # float32 all the way, so that its ids must be ours
    note: str = ""
    files: list[Path] = field(default_factory=list)  # what it reads, apart from memory

    def command(self) -> list[str]:
        """Return the command line of its worker, without the settings."""
        return [*(mpirun(self.ranks) if self.ranks > 1 else []), sys.executable, str(WORKER)]


def mpirun(ranks: int) -> list[str]:
    """Return the launcher of this environment for N ranks, more than cores if need be."""
    beside = Path(sys.executable).with_name("mpirun")
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    if not path:
        raise UserError("there is no mpirun; install an MPI: pip install -e '.[mpich]'")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    more = []
    if "Open MPI" in said:
        more = ["--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    return [path, *more, "-np", str(ranks)]


def stored_encoding(checkpoint: Checkpoint) -> str:
    """Return how the checkpoint's matrices are stored; raise UserError if not all are alike."""
    found = {t.encoding for t in checkpoint.tensors.values() if len(t.shape) == 2}
    if len(found) > 1:
        raise UserError(f"the checkpoint mixes {', '.join(sorted(found))}; one kind is compared")
    return found.pop()


def numbers_a_token(config: ModelConfig) -> int:
    """Return how many weights a decoded token needs: all matrices, of the embedding one row."""
    return sum(math.prod(t.shape) for t in tensors(config) if t.kind is Kind.MATRIX)


def _llama_cpp(gguf: dict[str, Path], threads: int, numbers: int) -> list[Program]:
    rows = []
    for encoding, path in gguf.items():
        full = encoding == "f32"
        rows.append(Program(
            f"llama.cpp {encoding.upper()}", "llama.cpp", "llama.cpp", str(path), threads,
            flags={"full_precision": full}, exact=full, files=[path],
            weight_bytes=ENCODINGS[encoding].nbytes(numbers),
            note="" if full else f"llama.cpp {encoding.upper()} rounds activations to {encoding} "
            "and attention to f16: not equal precision",
        ))  # fmt: skip
    return rows


def in_memory(
    model: Path, gguf: dict[str, Path], threads: int, ranks: list[int], numbers: int, itemsize: int
) -> list[Program]:
    """Return the programs that hold all weights in memory, ours first."""
    rows = [
        Program(
            f"tpimpi np {n} x {max(1, threads // n)}", "tpimpi", "tpimpi", str(model),
            max(1, threads // n), n, ["--disable-memory-schedule"], numbers * itemsize,
        )
        for n in ranks
    ]  # fmt: skip
    rows += _llama_cpp(gguf, threads, numbers)
    rows.append(Program("Transformers f32", "transformers", "transformers", str(model), threads,
                        weight_bytes=numbers * 4))  # fmt: skip
    return rows


def capped(
    model: Path, gguf: dict[str, Path], shards: list[Path], threads: int, cap: int, folder: Path
) -> list[Program]:
    """Return the programs that can run with less memory than the weights take, ours first."""
    rows = [Program(
        "tpimpi np 1, budget max", "tpimpi", "tpimpi", str(model), threads,
        flags=["--memory-budget", "max"], files=shards,
    )]  # fmt: skip
    stored = list(gguf)[-1:]
    for row in _llama_cpp({name: gguf[name] for name in stored}, threads, 0):
        row.label += ", mapped"
        rows.append(row)
    keep = int(cap * OFFLOAD_SHARE)
    rows.append(Program(
        f"Accelerate f32, disk, {keep / 1e6:.0f} MB", "transformers", "accelerate", str(model),
        threads, flags={"memory": keep, "folder": str(folder)},
        files=sorted(model.glob("*.safetensors")),
    ))  # fmt: skip
    return rows
