"""What must be settled before MPI and numba load: waiting, the sums' algorithm, caches.

Nothing that the user has set in the environment is changed, but that a NUMBA_CACHE_DIR gets a
folder for these kernels in it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import warnings
from pathlib import Path

from tpimpi import cgroups, numba_settings, slurm
from tpimpi.errors import MachineError

# mpirun's own before SLURM's: under mpirun the tasks of a step are its daemons.
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_WORLD_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")

# Both MPIs choose another algorithm, and so another order of addition, for another message size.
# Recursive doubling for all makes a token's sums the same alone and in a prompt of many.
_SAME_SUMS = {
    "MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM": "recursive_doubling",
    "MPIR_CVAR_DEVICE_COLLECTIVES": "none",
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
    "OMPI_MCA_coll_tuned_allreduce_algorithm": "3",
    "OMPI_MCA_coll": "^han",
}

# Threads that spin between kernels take the cores from readers, and from other ranks and programs:
# on a machine shared with others a token took up to ten times as long. With a core for each thread
# they look on for some hundred microseconds, as to be woken takes longer than most gaps last.
_WAITING = {"OMP_WAIT_POLICY": "passive"}
_LINGERING = {"GOMP_SPINCOUNT": "5000"}

# Ranks that spin while they wait take the core from the rank they wait for.
_YIELDING = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "MPIR_CVAR_POSIX_POLL_FREQUENCY": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "16",
}

_SHARED_MEMORY = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")

_PR_SET_TIMERSLACK, _SLACK = 29, 1000  # see prctl(2); nanoseconds


def _first_number(names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default


def allowed_cores() -> set[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(allowed_cores())


def launched_rank() -> int:
    """Return this process's rank according to its launcher, without MPI."""
    return _first_number(_RANKS, 0)


def launched_local_rank() -> int:
    """Return this process's number on its node according to its launcher, without MPI."""
    return _first_number(_LOCAL_RANKS, 0)


def launched_size() -> int:
    """Return how many ranks the launcher says it started, without MPI."""
    return _first_number(_WORLD_SIZES, 1)


def wake_punctually() -> None:
    """Let short sleeps end in time: Linux lets each last 50 microseconds longer, to save power.

    Ranks that share a core sleep for moments in each of some hundred sums a token.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK, 0, 0, 0)


def prepare(threads: int | None) -> int:
    """Set the environment for MPI and numba; return the number of threads of this rank.

    None stands for the cores of the node / ranks on it, of which a container may have a part, or
    what SLURM was asked for a task. Raises UserError, and MachineError where SLURM contradicts
    itself.
    """
    asked = threads is not None
    for name, value in _SAME_SUMS.items():  # whatever is refused: MPI may be initialized for that
        os.environ.setdefault(name, value)
    local = _first_number(_LOCAL_SIZES, 0) or slurm.local_tasks(os.environ)
    allowed = available_cores()
    cores = slurm.cores_of_node(os.environ) or allowed
    quota = cgroups.cpu_quota()
    if quota is not None:  # more threads would be stopped for most of each period
        cores = min(cores, max(1, int(quota)))
    share = min(slurm.cores_of_task(os.environ) or cores, max(1, cores // local), allowed)
    threads = numba_settings.settle(threads or share, asked, allowed)
    settings = dict(_WAITING)
    if local * threads <= cores:
        settings |= _LINGERING
    else:
        settings |= _YIELDING
        wake_punctually()
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own threads would only spin
    return threads


def forget_shared_memory(process: int | str = "self") -> None:
    """Remove the names of a process's MPI shared memory, once all ranks of the node have opened it.

    MPI does so when it ends; some MiB would stay behind where a rank is killed.
    """
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:  # not Linux, or it has ended
        return
    for name in {line.rpartition(" ")[2] for line in lines}:
        if name.startswith(_SHARED_MEMORY):
            with contextlib.suppress(FileNotFoundError):  # another rank was faster
                os.unlink(name)


def _finalize() -> None:
    """End MPI with the process, as mpi4py does where it has initialized MPI itself."""
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()


def _alone(expected: int, library: str) -> str:
    """Say why each of the processes that were started sees itself alone, and what helps."""
    mpirun = f"the mpirun of the same environment ({Path(sys.executable).parent}/mpirun)"
    if slurm.started(os.environ):
        return (
            f"srun started {expected} processes, but each sees itself alone: mpi4py's MPI "
            f"({library}) needs `srun {slurm.flag(library)}`, or {mpirun} inside sbatch"
        )
    return (
        f"the launcher started {expected} processes, but each sees itself alone: mpirun is of "
        f"another MPI than mpi4py's ({library}); use {mpirun}"
    )


def world():
    """Initialize MPI and return COMM_WORLD, or refuse a launcher of another MPI.

    Such a launcher starts N processes that each believe to be alone.
    """
    import mpi4py

    # The library is asked who it is first: MPICH ends a process of Open MPI's mpirun at once.
    mpi4py.rc.initialize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # as mpi4py puts it where there is no library
        named = os.environ.get("MPI4PY_LIBMPI")
        raise MachineError(
            f"mpi4py can't load an MPI library ({' '.join(str(error).split())}); "
            + ("correct or unset MPI4PY_LIBMPI" if named else "install tpimpi[mpich], or name the "
               "file of the site's MPI in MPI4PY_LIBMPI")
        ) from error  # fmt: skip

    version = MPI.Get_library_version()
    library = " ".join(version.split("\n")[0].split(",")[0].strip("\0").split())
    if not MPI.Is_initialized():
        if "OMPI_COMM_WORLD_SIZE" in os.environ and library.startswith("MPICH"):
            raise MachineError(
                f"this is Open MPI's mpirun, but mpi4py's MPI is another ({library}); use the "
                f"mpirun of the same environment ({Path(sys.executable).parent}/mpirun)"
            )
        if slurm.speaks_otherwise(os.environ, version):
            raise MachineError(
                f"srun --mpi=pmix starts Open MPI, but mpi4py's MPI is another ({library}); use "
                f"`srun {slurm.flag(library)}`, or mpirun inside sbatch"
            )
        if slurm.must_avoid_ucx(os.environ, version):
            os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
        with warnings.catch_warnings():  # of mpi4py, of what is told below in a sentence
            warnings.filterwarnings("ignore", "suspicious MPI execution environment")
            MPI.Init_thread(MPI.THREAD_MULTIPLE)  # a thread beats, see comm.heartbeat
        atexit.register(_finalize)
    size, expected = MPI.COMM_WORLD.size, launched_size()
    if size == 1 and expected > 1:
        raise MachineError(_alone(expected, library))
    return MPI.COMM_WORLD
