#!/usr/bin/env python3
"""Make a random checkpoint of a named shape: a Hugging Face directory to try and to measure with.

The numbers are noise, so the text will be too; sizes, speed and memory are those of the real model.
Memory stays small: tensors are written piece by piece.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np

from tpimpi.errors import describe
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ENCODINGS, Encoding
from tpimpi.model.shapes import SHAPES, config_of
from tpimpi.model.tensors import Kind, expected_shapes
from tpimpi.model.tensors import tensors as table
from tpimpi.progress import Progress
from tpimpi.units import size

PIECE = 1 << 22  # numbers made at a time


def positive(text: str) -> int:
    """Return a command line's number, at least 1."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def write_tensor(
    file, shape: tuple, norm: bool, scale: float, encoding: Encoding, random, bar
) -> None:
    """Write one tensor: normal numbers, around 1 for a norm."""
    left = math.prod(shape)
    while left:
        count = min(PIECE, left)
        values = random.standard_normal(count, dtype=np.float32) * np.float32(scale)
        if norm:
            values += np.float32(1)
        data = encoding.narrow(values)
        file.write(data.tobytes())
        left -= count
        bar.update(data.nbytes)


def split(shapes: dict, itemsize: int, most: int) -> list[dict]:
    """Distribute tensors over files of at most `most` bytes."""
    files, size = [{}], 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * itemsize
        if files[-1] and size + nbytes > most:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += nbytes
    return files


def refuse_leftovers(output: Path, names: set[str]) -> None:
    """Exit if weights of another cut lie there: a reader would take those."""
    other = [p.name for p in output.glob("model*.safetensors*") if p.name not in names]
    if other:
        sys.exit(f"{output} has other weights ({sorted(other)[0]}); choose an empty directory")


def write_weights(output: Path, config: dict, dtype: str, seed: int, most: int) -> None:
    """Write *.safetensors, and the index if there are several."""
    encoding = ENCODINGS[dtype]
    itemsize = encoding.nbytes(1)
    model = ModelConfig.from_directory(output)
    shapes = expected_shapes(model)
    norms = {tensor.source for tensor in table(model) if tensor.kind is Kind.NORM}
    files = split(shapes, itemsize, most)
    names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ["model.safetensors"]
    refuse_leftovers(
        output, {*names, "model.safetensors.index.json"} if len(files) > 1 else {*names}
    )
    random = np.random.default_rng(seed)
    scale = 1 / math.sqrt(config["hidden_size"])
    total = sum(math.prod(shape) for shape in shapes.values()) * itemsize
    weight_map = {}
    with Progress("writing random weights", total) as bar:
        for name, tensors in zip(names, files, strict=True):
            header, at = {"__metadata__": {"format": "pt"}}, 0
            for tensor, shape in tensors.items():
                end = at + math.prod(shape) * itemsize
                header[tensor] = {
                    "dtype": encoding.safetensors_name,
                    "shape": shape,
                    "data_offsets": [at, end],
                }
                weight_map[tensor], at = name, end
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with (output / name).open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor, shape in tensors.items():
                    write_tensor(file, shape, tensor in norms, scale, encoding, random, bar)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (output / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=ENCODINGS, default="bf16", help="(default: bf16)")
    parser.add_argument("--layers", type=positive, help="fewer or more layers than the shape has")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--max-file-size", type=positive, default=5 << 30, metavar="BYTES", help="(default: 5 GiB)"
    )
    demo = Path(__file__).resolve().parent.parent / "tpimpi" / "demo"
    parser.add_argument(
        "--tokenizer", type=Path, default=demo, help="its files are copied (default: the demo's)"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    config = config_of(args.shape, args.layers, args.dtype)
    (args.output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        if (args.tokenizer / name).exists():
            shutil.copy(args.tokenizer / name, args.output / name)
    try:
        write_weights(args.output, config, args.dtype, args.seed, args.max_file_size)
    except OSError as error:
        sys.exit(f"{args.output} can't be written: {describe(error)}; free some space")
    written = sum(path.stat().st_size for path in args.output.glob("*.safetensors"))
    print(
        f"{args.output}: {size(written)} of random weights; most of their ids are none of the "
        "tokenizer's, so generate shows little text"
    )


if __name__ == "__main__":
    main()
