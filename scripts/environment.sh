# Sourced by quickstart and test: one virtual environment with tpimpi and its MPI in it.
# `prepare EXTRAS` makes it in .venv (or $TPIMPI_VENV) and sets $venv; it is quick when nothing changed.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${TPIMPI_VENV:-$root/.venv}"

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
    local extras="$1" python stamp
    stamp="$venv/.tpimpi-$extras"
    if [ -f "$stamp" ] && cmp -s "$root/setup.cfg" "$stamp"; then
        return
    fi
    python="$(find_python)"
    if [ ! -x "$venv/bin/python" ]; then
        echo "Making a virtual environment in $venv ..."
        if ! "$python" -m venv "$venv"; then
            rm -rf "$venv"
            echo "$python can't make virtual environments; install its venv package" \
                "(Debian and Ubuntu: apt install python3-venv)." >&2
            return 1
        fi
    fi
    echo "Installing tpimpi[$extras] (some minutes the first time) ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[$extras]"
    cp "$root/setup.cfg" "$stamp"
}

# All that any run may need, so that none has to wait; it is quick when all is there.
compile_kernels() {
    # Python puts the current folder first on its path: one where no other `tpimpi` can lie.
    (cd "$root" && "$venv/bin/python" -m tpimpi.engine.compilation)
}
