"""What SLURM's variables say of tasks, cores and launchers; each set was seen on a real cluster."""

import os
from unittest import mock

import pytest

from tpimpi import launch, slurm
from tpimpi.errors import MachineError

# `sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=2`: the script itself ...
BATCH = {
    "SLURM_CPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "2", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
# ... and the second of three tasks of `srun --nodes=2 --ntasks=3`, on the first node.
STEP = {
    "SLURM_CPUS_ON_NODE": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "3",
    "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}  # fmt: skip
PMI2 = STEP | {"PMI_FD": "11", "PMI_RANK": "1", "PMI_SIZE": "3"}
PMIX = STEP | {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.1.1"}
# Under mpirun in the batch script the tasks are hydra's daemons; each here has two ranks.
TWO = {"MPI_LOCALNRANKS": "2"}
HYDRA = BATCH | {
    "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1", "PMI_FD": "5", "PMI_RANK": "3",
    "PMI_SIZE": "4", "SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip

MPICH = (
    "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\n"
    "MPICH configure:    --with-device=ch4:ucx,ofi\n"
)
YIELD = "OMPI_MCA_mpi_yield_when_idle"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI"


@pytest.fixture
def told():
    """Return a function that makes some variables the only ones that a launcher has set."""
    started = ("SLURM_", "PMI", "OMPI_", "MPI", "NUMBA_", "OMP_", "GOMP_")

    def tell(variables):
        for name in [n for n in os.environ if n.startswith(started)]:
            del os.environ[name]
        os.environ.update(variables)

    with mock.patch.dict(os.environ):  # what `prepare` sets goes away, too
        yield tell


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("4", [4]),
        ("2(x3),1", [2, 2, 2, 1]),
        ("2,1(x2)", [2, 1, 1]),
        ("1(x2)", [1, 1]),
        ("10,3(x2),10", [10, 3, 3, 10]),
    ],
)
def test_every_spelling_of_the_tasks_of_nodes(text, tasks):
    assert slurm.tasks_of_nodes(text) == tasks
    for node, number in enumerate(tasks):
        step = {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}
        assert slurm.local_tasks(step) == number


@pytest.mark.parametrize(
    "text", ["", "x", "2(x3", "2(3)", "1,,1", "-1", "2 1", "1(x999999999)", "٣", "9" * 5000]
)
def test_other_text_is_no_list_of_tasks(text):
    with pytest.raises(ValueError, match="list of tasks"):
        slurm.tasks_of_nodes(text)
    with pytest.raises(MachineError, match="SLURM_STEP_TASKS_PER_NODE="):
        slurm.local_tasks({"SLURM_STEP_TASKS_PER_NODE": text})


@pytest.mark.parametrize("node", ["2", "here", "-1", "٣"])
def test_a_node_that_the_step_does_not_have(node):
    with pytest.raises(MachineError, match=f"SLURM_NODEID={node}"):
        slurm.local_tasks({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": node})


@pytest.mark.parametrize("text", ["x", "-1", "0", "", "٣", "9" * 5000])
def test_a_number_of_cores_that_is_none(text):
    assert slurm.cores_of_node({"SLURM_CPUS_ON_NODE": text}) is None


def test_the_process_of_a_batch_script_is_alone(told):
    told(BATCH | {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"})
    assert slurm.local_tasks(os.environ) == 1 and launch.launched_size() == 1
    assert launch.launched_rank() == 0 and launch.launched_local_rank() == 0
    assert not slurm.started(os.environ)


@pytest.mark.parametrize(
    ("variables", "size", "rank", "local"),
    [(STEP, 3, 1, 1), (PMI2, 3, 1, 1), (PMIX, 3, 1, 1), (HYDRA, 4, 3, 1), (BATCH, 1, 0, 0)],
)
def test_ranks(told, variables, size, rank, local):
    told(variables)
    assert launch.launched_size() == size
    assert launch.launched_rank() == rank and launch.launched_local_rank() == local


@pytest.mark.parametrize(
    ("variables", "allowed", "threads"),
    [
        # Nothing binds or limits: the node's other cores are other jobs'.
        (BATCH, 64, 2),
        (STEP | {"SLURM_CPUS_ON_NODE": "8"}, 64, 4),
        # Each task is bound to cores of its own, and must not share them once more.
        (STEP | {"SLURM_CPUS_ON_NODE": "8"}, 4, 4),
        # srun was not told how many each task needs, and bound it to one.
        (STEP | {"SLURM_CPUS_ON_NODE": "8"}, 1, 1),
        # The whole node is the job's, but two cores a task were asked.
        (STEP | {"SLURM_CPUS_ON_NODE": "64", "SLURM_CPUS_PER_TASK": "2"}, 64, 2),
        (HYDRA | {"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "8"}, 8, 4),
        # More ranks than cores, and no SLURM at all.
        (HYDRA, 2, 1),
        (TWO, 8, 4),
        ({}, 8, 8),
    ],
)
def test_threads(told, monkeypatch, variables, allowed, threads):
    told(variables)
    monkeypatch.setattr(launch, "available_cores", lambda: allowed)
    monkeypatch.setattr(launch, "wake_punctually", lambda: None)
    assert launch.prepare(None) == threads
    for name in [n for n in os.environ if n.startswith("NUMBA_")]:
        del os.environ[name]
    assert launch.prepare(3) == 3  # who names a number gets it


@pytest.mark.parametrize(
    ("variables", "quota", "threads"),
    [({}, 2.0, 2), ({}, 2.5, 2), ({}, 0.3, 1), ({}, 16.0, 8), (TWO, 4.0, 2), (TWO, 1.0, 1)],
)
def test_threads_of_a_container(told, monkeypatch, variables, quota, threads):
    told(variables)
    monkeypatch.setattr(launch, "available_cores", lambda: 8)
    monkeypatch.setattr(launch, "wake_punctually", lambda: None)
    monkeypatch.setattr(launch.cgroups, "cpu_quota", lambda: quota)
    assert launch.prepare(None) == threads


def test_who_yields_its_core(told, monkeypatch):
    monkeypatch.setattr(launch, "available_cores", lambda: 4)
    monkeypatch.setattr(launch, "wake_punctually", lambda: None)
    told(STEP | {"SLURM_CPUS_ON_NODE": "8"})  # each of two tasks is bound to four of eight
    launch.prepare(None)
    assert YIELD not in os.environ
    told(STEP | {"SLURM_CPUS_ON_NODE": "1"})  # two tasks on a core
    launch.prepare(None)
    assert os.environ.get(YIELD) == "1"


def test_how_srun_must_start_an_mpi():
    assert slurm.flag(MPICH) == "--mpi=pmi2" and slurm.flag(OPEN_MPI) == "--mpi=pmix"
    assert slurm.speaks_otherwise(PMIX, MPICH)
    assert not slurm.speaks_otherwise(PMIX, MPICH.replace("--with", "--with-pmix=/usr --with"))
    assert not slurm.speaks_otherwise(PMIX, OPEN_MPI)
    assert not slurm.speaks_otherwise(PMI2, MPICH) and not slurm.speaks_otherwise(STEP, MPICH)


def test_whose_addresses_slurm_can_t_read():
    assert slurm.must_avoid_ucx(PMI2, MPICH)
    assert not slurm.must_avoid_ucx(PMI2 | {"SLURM_STEP_NUM_NODES": "1"}, MPICH)
    assert not slurm.must_avoid_ucx(PMI2, MPICH.replace("ch4:ucx ofi", "ch4:ucx"))  # has no other
    assert not slurm.must_avoid_ucx(HYDRA, MPICH) and not slurm.must_avoid_ucx(PMIX, OPEN_MPI)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (STEP, ("srun started 3 processes", "`srun --mpi=pmi2`")),
        (HYDRA, ("the launcher started 4 processes", "mpirun is of another MPI")),
    ],
)
def test_ranks_that_are_each_alone_are_told_how_to_start(told, variables, words):
    told(variables)
    sentence = launch._alone(launch.launched_size(), "MPICH Version: 5.0.2")
    assert all(word in sentence for word in words)
    if "srun" in words[0]:
        assert "`srun --mpi=pmix`" in launch._alone(3, "Open MPI v5.0.11")
