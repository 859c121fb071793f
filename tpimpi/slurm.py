"""What SLURM tells a process: the tasks on its node, its cores, how srun must start an MPI.

Pure functions of the environment. A process of a batch script that `srun` has not started sees the
job's numbers (SLURM_NTASKS ...) but is alone, so only a step's own (SLURM_STEP_...) are believed.
Names and spellings: the manual pages srun(1) and sbatch(1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tpimpi.errors import MachineError

_TASKS = "SLURM_STEP_TASKS_PER_NODE"
_GROUP = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?")
_SHOWN = 60  # characters of a variable in a sentence
_DIGITS = re.compile("[0-9]{1,9}")

# Set by mpirun, whose daemons or ranks are the tasks of a step, too.
_BY_MPIRUN = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")


def tasks_of_nodes(text: str) -> list[int]:
    """Return the tasks of each node from SLURM's short form: `2(x3),1` is [2, 2, 2, 1].

    Raises ValueError for other text.
    """
    groups = [_GROUP.fullmatch(group) for group in text.split(",")]
    if not all(groups):
        raise ValueError(f"{text!r} is not a list of tasks like 2(x3),1")
    return [
        int(tasks) for tasks, nodes in (g.groups("1") for g in groups) for _ in range(int(nodes))
    ]


def local_tasks(environment: Mapping[str, str]) -> int:
    """Return how many tasks this process's step has on its node; 1 where it is in no step.

    Raises MachineError where the variables contradict each other.
    """
    text = environment.get(_TASKS)
    if text is None:
        return 1
    node = environment.get("SLURM_NODEID", "0")
    try:
        if not _DIGITS.fullmatch(node):
            raise ValueError("no number")
        return max(1, tasks_of_nodes(text)[int(node)])
    except (ValueError, IndexError) as error:
        raise MachineError(
            f"{_TASKS}={text[:_SHOWN]} and SLURM_NODEID={node[:_SHOWN]} don't tell how many tasks "
            "this node has; unset both outside of srun"
        ) from error


def cores_of_node(environment: Mapping[str, str]) -> int | None:
    """Return how many cores of its node the job or step may use; None where SLURM doesn't say.

    A task may be bound to some of them, and where nothing binds it sees those of others, too.
    """
    return _number(environment, "SLURM_CPUS_ON_NODE")


def cores_of_task(environment: Mapping[str, str]) -> int | None:
    """Return how many cores were asked for each task; None where they were not."""
    return _number(environment, "SLURM_CPUS_PER_TASK")


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) or None if _DIGITS.fullmatch(text) else None


def started(environment: Mapping[str, str]) -> bool:
    """Tell whether srun itself, not an mpirun, started this process."""
    return "SLURM_STEP_NUM_TASKS" in environment and not any(n in environment for n in _BY_MPIRUN)


def flag(library: str) -> str:
    """Return how srun must start ranks of this MPI; `library` is what it calls itself."""
    return "--mpi=pmix" if library.startswith("Open MPI") else "--mpi=pmi2"


def speaks_otherwise(environment: Mapping[str, str], version: str) -> bool:
    """Tell whether srun offers this MPI only PMIx, which it can't speak and would die of.

    `version`: all that the library tells of itself. MPICH speaks PMIx where it was built with it.
    """
    offered = "PMIX_NAMESPACE" in environment and "PMI_RANK" not in environment
    return offered and started(environment) and (
        version.startswith("MPICH") and "pmix" not in version
    )  # fmt: skip


def must_avoid_ucx(environment: Mapping[str, str], version: str) -> bool:
    """Tell whether this MPICH, started by srun on several nodes, must take OFI instead of UCX.

    Its UCX part publishes 4 KiB of whatever lies behind a rank's address in memory, in lines that
    may be longer than the 1024 bytes that SLURM's PMI-2 server can read: then the start hangs.
    hydra, the `mpirun` of MPICH, reads them.
    """
    device = next((line for line in version.splitlines() if line.startswith("MPICH Device")), "")
    return (
        started(environment)
        and "PMI_FD" in environment
        and environment.get("SLURM_STEP_NUM_NODES", "1") != "1"
        and "ucx" in device
        and "ofi" in device
    )
