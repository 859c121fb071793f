"""The hostfiles, as the launchers themselves read them, and the commands that their page shows."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "hostfiles"
PAGE = (FOLDER / "README.md").read_text()
NAMES = sorted(path.stem for path in FOLDER.glob("*.mpich"))
LINES = {".mpich": re.compile(r"(\S+):(\d+)"), ".openmpi": re.compile(r"(\S+) slots=(\d+)")}

# In place of ssh: its own host's name is what a command finds in HOST.
AGENT = """\
#!/bin/sh
while case $1 in -*) true;; *) false;; esac; do shift; done
HOST=$1; export HOST; shift
exec sh -c "$*"
"""


def read(path):
    """Return a file's comment and its hosts, each as many times as it has ranks."""
    first, *lines = path.read_text().splitlines()
    found = [LINES[path.suffix].fullmatch(line).groups() for line in lines]
    return first.removeprefix("# "), [host for host, ranks in found for _ in range(int(ranks))]


def commands(suffix):
    """Return the page's commands for files of one kind: by the file's name, as words."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    lines = [li for li in blocks.splitlines() if re.search(rf"hostfiles/\S+{suffix} ", li)]
    words = [shlex.split(line) for line in lines]
    return {Path(next(w for w in line if w.endswith(suffix))).stem: line for line in words}


@pytest.mark.parametrize("name", NAMES)
def test_both_dialects_and_the_page_say_the_same(name):
    comment, hosts = read(FOLDER / f"{name}.mpich")
    assert read(FOLDER / f"{name}.openmpi") == (comment, hosts)
    assert f"| `{name}` | {len(hosts)} | {comment} |\n" in PAGE
    assert PAGE.count(comment) == 1
    for suffix in LINES:
        words = commands(suffix)[name]
        assert words[words.index("-np") + 1] == str(len(hosts))
        assert words[-2].endswith("/bin/tpimpi") and words[-1] == "..."


def test_the_page_names_all_files_and_no_other():
    assert {path.name for path in FOLDER.iterdir()} == {"README.md"} | {
        name + suffix for name in NAMES for suffix in LINES
    }
    for suffix in LINES:
        assert sorted(commands(suffix)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_launcher_reads_it(mpirun, tmp_path, name):
    launcher = [mpirun[0], "--version"]
    version = subprocess.run(launcher, capture_output=True, text=True, check=True).stdout
    if "Open MPI" in version:
        found = mapped_by_open_mpi(mpirun[0], commands(".openmpi")[name][1:-2])
    else:
        found = started_by_mpich(mpirun[0], commands(".mpich")[name][1:-2], tmp_path)
    assert found == read(FOLDER / f"{name}.mpich")[1]


def started_by_mpich(launcher, flags, folder):
    """Return each rank's host: `ssh` is a program that runs the command here."""
    agent = folder / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    command = [launcher, "-launcher", "ssh", "-launcher-exec", str(agent), *flags]
    said = output([*command, "sh", "-c", "echo $PMI_RANK ${HOST:-localhost}"])
    ranks = dict(line.split() for line in said.splitlines())
    return [ranks[str(rank)] for rank in range(len(ranks))]


def mapped_by_open_mpi(launcher, flags):
    """Return each rank's host by the map that the launcher makes before it starts anything."""
    options = ["--display", "map", "--runtime-options", "donotlaunch", "--allow-run-as-root"]
    said = output([launcher, *options, *flags, "hostname"])
    assert "Oversubscribed: TRUE" not in said
    ranks = {}
    for part in said.split("Data for node: ")[1:]:
        for rank in re.findall(r"Data for proc: \[\S+,(\d+)\]", part):
            ranks[int(rank)] = part.split()[0]
    here = subprocess.check_output(["hostname"], text=True).strip()
    return ["localhost" if ranks[r] == here else ranks[r] for r in sorted(ranks)]


def output(command):
    process = subprocess.run(
        command, cwd=FOLDER.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout
