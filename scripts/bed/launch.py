"""mpirun over all devices: which one, with which words, in which environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bed.quantities import BedError
from bed.state import State
from bed.topology import Node

ROOT = Path(__file__).resolve().parents[2]
_AGENT = Path(__file__).resolve().with_name("agent")
# What a launcher must carry to the other devices, as theirs would not know it.
_CARRIED = ("TPIMPI_", "NUMBA_", "OMP_", "OPENBLAS_", "HF_", "PYTHON", "MPI4PY_")

# A rank that waits must not take the core of the rank that it waits for: on real devices each has
# its own. No shared memory between ranks, as between machines.
_MPICH = {
    "UCX_TLS": "tcp,self",
    "UCX_NET_DEVICES": "eth0",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "16",
}
_OPENMPI = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def places(mpi: str | None) -> list[Path]:
    """Return the folders where mpirun may lie, the likeliest first."""
    environments = [ROOT / ".venv", ROOT / f".venv-{mpi}"] if mpi else [ROOT / ".venv"]
    if os.environ.get("TPIMPI_VENV"):
        environments.insert(0, Path(os.environ["TPIMPI_VENV"]))
    found = shutil.which("mpirun")
    return [e / "bin" for e in environments] + ([Path(found).parent] if found else [])


def find(mpi: str | None) -> tuple[Path, str]:
    """Return (mpirun, "mpich" or "openmpi"). Raises BedError where there is none of that kind."""
    looked = []
    for folder in places(mpi):
        mpirun = folder / "mpirun"
        if not os.access(mpirun, os.X_OK):
            continue
        told = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False)
        kind = "openmpi" if "Open MPI" in told.stdout else "mpich"
        if mpi in (None, kind):
            return mpirun, kind
        looked.append(f"{mpirun} is {kind}")
    raise BedError(
        f"there is no mpirun{f' of {mpi}' if mpi else ''} ({'; '.join(looked) or 'none found'}); "
        "set TPIMPI_VENV to an environment that has one"
    )


def command(
    state: State, nodes: list[Node], ranks: int, mpirun: Path, kind: str, subnet: str
) -> tuple[list[str], dict[str, str]]:
    """Return mpirun's command line, to which the program is added, and its environment."""
    hosts = state.folder / f"hosts.{kind}"
    slots, extra = divmod(ranks, len(nodes))
    line = "{} slots={}" if kind == "openmpi" else "{}:{}"
    used = [
        line.format(node.address, slots + (place < extra))
        for place, node in enumerate(nodes[:ranks])
    ]
    hosts.write_text("\n".join([*used, ""]))
    pinned = pins(kind, len(nodes))
    if kind == "mpich":
        words = [str(mpirun), "-launcher", "ssh", "-launcher-exec", str(_AGENT), "-f", str(hosts)]
    else:
        words = [
            str(mpirun), "--hostfile", str(hosts), "--bind-to", "none",
            "--prtemca", "plm_ssh_agent", str(_AGENT), "--prtemca", "prte_if_include", subnet,
        ]  # fmt: skip
        carried = {n for n in {**os.environ, **pinned} if n.startswith(_CARRIED)}
        words += [word for name in sorted(carried) for word in ("-x", name)]
    pinned["PATH"] = f"{mpirun.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return [*words, "-np", str(ranks)], pinned


def pins(kind: str, devices: int) -> dict[str, str]:
    """Return what is set for an MPI program, where the caller has not set it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    wanted = {
        **(_MPICH if kind == "mpich" else _OPENMPI),
        # Each device sees all cores, but has its share of them.
        "NUMBA_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // devices)),
        # Compiled code is the same on all devices, and takes a minute to make.
        "NUMBA_CACHE_DIR": f"{cache}/tpimpi/numba",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}
