"""Make what is measured: random weights, GGUF files of the same, our shards; each once."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from peers.gguf_file import write_gguf
from peers.lineup import mpirun
from tpimpi.errors import MachineError

SCRIPTS = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    """Tell the user how far it is."""
    print(text, file=sys.stderr, flush=True)


def missing(package: str) -> str:
    """Return the sentence for a package that isn't there."""
    name = {"llama_cpp": "llama-cpp-python"}.get(package, package)
    return f"{name} is missing; get it with the peers extra: pip install -e '.[mpich,peers]'"


def make_model(args, work: Path) -> Path:
    """Return the model directory, made if it is a shape."""
    if args.model:
        return args.model
    model = work / f"random-{args.shape}-bf16"
    if not model.exists():
        partial = model.with_suffix(".partial")
        command = [sys.executable, str(SCRIPTS / "make_checkpoint.py")]
        subprocess.run([*command, "--shape", args.shape, "--output", str(partial)], check=True)
        partial.rename(model)
    return model


def make_gguf(args, checkpoint, config, stored: str, folder: Path) -> dict[str, Path]:
    """Return llama.cpp's files, by encoding; none if it is not asked for or can't be made."""
    if "llama.cpp" not in args.programs:
        return {}
    absent = [name for name in ("llama_cpp", "gguf") if not find_spec(name)]
    if absent:
        say(missing(absent[0]))
        return {}
    paths = {name: folder / f"{name}.gguf" for name in dict.fromkeys(("f32", stored))}
    for encoding, path in paths.items():
        if not path.exists():
            say(f"writing {path}")
            folder.mkdir(parents=True, exist_ok=True)
            write_gguf(checkpoint, config, path, encoding if encoding == "f32" else None)
    return paths


def convert(model: Path, ranks: list[int]) -> None:
    """Cut our shards, so that no measurement does."""
    for count in ranks:
        command = [*mpirun(count), sys.executable, "-m", "tpimpi", "convert", "--model", str(model)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise MachineError(f"`tpimpi convert` failed with {count} ranks, see above")
