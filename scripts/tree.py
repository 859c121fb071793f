#!/usr/bin/env python3
"""Write the README's tree anew from the first lines of the modules' docstrings.

python scripts/tree.py            # rewrites README.md
python scripts/tree.py --check    # exits 1 if that would change it
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree: python scripts/tree.py -->\n```\n", "```\n"
# From the ground up, as imports run; what stands beside the wings comes first.
OTHERS = """\
scripts/             quickstart, test; random checkpoints, the demo model, other programs; slurm/
hostfiles/           examples for MPICH and Open MPI
tests/               flat, named after the wings; the same files run at any number of ranks
docs/                pages and pictures
CMakeLists.txt       finds Python and its mpirun, registers the tests
setup.cfg            metadata, dependencies, extras, the order of the wings
"""


def purpose(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    if not lines:
        sys.exit(f"{path.relative_to(ROOT)} has no docstring, so the tree can't tell its purpose")
    return lines[0].removesuffix(".")


def line(depth: int, name: str, text: str) -> str:
    """Return one line of the tree."""
    return f"{'  ' * depth + name:20s} {text}\n"


def modules(folder: Path, depth: int) -> str:
    """Return a line for each module of a folder that says something."""
    return "".join(
        line(depth, path.name, purpose(path))
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    )


def layers() -> list[str]:
    """Return the package's modules and wings, from the ground up, as the lint test knows them."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    names = settings["importlinter:contract:wings"]["layers"].split()
    return [name for name in reversed(names) if not name.startswith("(")]


def tree() -> str:
    """Return the whole tree."""
    package, kernels = ROOT / "tpimpi", ROOT / "kernels"
    text = line(0, "kernels/", purpose(kernels / "__init__.py")) + modules(kernels, 1)
    text += line(0, "tpimpi/", "the package; a module imports from those above it only")
    for name in layers():
        module, wing = package / f"{name}.py", package / name
        if module.exists():
            text += line(1, module.name, purpose(module))
        else:
            text += line(1, f"{name}/", purpose(wing / "__init__.py")) + modules(wing, 2)
    text += line(1, "demo/", "the demo model")
    return text + OTHERS


def main() -> None:
    """Rewrite or check the README."""
    readme = ROOT / "README.md"
    old = readme.read_text()
    found = re.search(re.escape(BEGIN) + r".*?\n" + re.escape(END), old, re.DOTALL)
    if not found:
        sys.exit("README.md has no tree")
    new = old[: found.start()] + BEGIN + tree() + END + old[found.end() :]
    if "--check" not in sys.argv:
        readme.write_text(new)
    elif new != old:
        sys.exit("README.md's tree is not that of the modules; run `python scripts/tree.py`")


if __name__ == "__main__":
    main()
