"""What `tpimpi doctor` says of devices and links that are told it: a sentence for each trouble."""

from dataclasses import replace

import pytest

from devices import GB, device, lan, speed
from tpimpi import cgroups
from tpimpi.bench import findings, link_findings
from tpimpi.bench.device import Device
from tpimpi.bench.findings import FAILS, NOTE, SLOW, Job
from tpimpi.bench.folder import Folder, file_system, look_at
from tpimpi.comm.links import Link

JOB = Job("a model", 44, 8192)


def only(found, level, ranks, *words):
    assert [(one.level, one.ranks) for one in found] == [(level, ranks)], found
    for word in words:
        assert word in found[0].text, found[0].text
    assert "\n" not in found[0].text and not found[0].text.endswith(".")


def all_findings(devices, speeds=None, job=JOB):
    return [
        *findings.of_program(devices, None, []), *findings.of_hosts(devices),
        *findings.of_cores(devices), *findings.of_folders(devices, speeds, job),
        *findings.of_speed(devices, speeds or [speed(d.rank) for d in devices]),
        *findings.of_memory(job),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_nothing_is_wrong_with_good_devices(count):
    devices = [device(rank) for rank in range(count)]
    assert all_findings(devices, [speed(rank) for rank in range(count)]) == []
    wire = [10**8] * count
    assert link_findings.of_links(devices, lan(count), JOB, wire) == []


def test_different_processors_are_fine():
    assert all_findings([device(0), device(1, processor="other")]) == []


def test_another_program():
    devices = [device(0), device(1), device(2, sources="cd")]
    only(findings.of_program(devices, "rank 2 differs", []), FAILS, (2,), "rank 2 differs")
    devices = [device(0), device(1, libraries={"numba": "0.6"})]
    only(findings.of_program(devices, None, ["numba is other"]), NOTE, (1,), "numba is other")
    devices = [device(0), device(1, mpi="MPICH 4.2")]
    only(findings.of_program(devices, None, []), FAILS, (1,), "MPICH 5.0", "MPICH 4.2", "dev1")


def test_one_name_for_two_machines():
    devices = [device(0), device(1, host="dev0")]
    only(findings.of_hosts(devices), SLOW, (0, 1), "share the name dev0", "hostnamectl")


def test_two_ranks_on_a_device_of_several():
    devices = [device(0), device(1), device(2, host="dev1", machine="machine 1")]
    only(findings.of_hosts(devices), NOTE, (1, 2), "ranks 1 and 2 on dev1", "dev1:1", "slots=1")
    assert findings.of_hosts([device(0), device(1, host="dev0", machine="machine 0")]) == []


def test_virtual_devices():
    devices = [device(rank, machine="one") for rank in range(3)]
    only(findings.of_hosts(devices), NOTE, (0, 1, 2), "ranks 0 to 2 are virtual", "its 4 cores")


@pytest.mark.parametrize(
    ("changes", "way"),
    [({"mpi": "Open MPI v5"}, "--bind-to none"), ({"slurm": True}, "--cpus-per-task"),
     ({}, "taskset")],
)  # fmt: skip
def test_bound_to_one_core(changes, way):
    devices = [device(0, cores=(0,), threads=1, **changes), device(1)]
    only(findings.of_cores(devices), SLOW, (0,), "1 of the machine's 4 cores", way)


def test_virtual_devices_bound_to_the_same_core():
    devices = [device(rank, machine="one", cores=(0,), threads=1) for rank in range(2)]
    first, second = findings.of_cores(devices)
    only([first], SLOW, (0, 1), "may use 1 of the machine's 4 cores")
    only([second], NOTE, (0, 1), "share 1 core")


def test_a_core_for_each_rank_is_fine():
    one = {"host": "a", "machine": "a", "threads": 1}
    assert findings.of_cores([device(rank, cores=(rank,), **one) for rank in range(4)]) == []
    alone = device(0, cores=(0,), machine_cores=1, threads=1)
    assert findings.of_cores([alone]) == []


def test_more_threads_than_cores():
    devices = [device(rank, host="a", machine="a") for rank in range(2)]
    only(findings.of_cores(devices), SLOW, (0, 1), "start 8 threads on 4 cores", "--threads 2")
    devices = [device(r, host="a", machine="a", threads=1) for r in range(5)]
    only(findings.of_cores(devices), NOTE, (0, 1, 2, 3, 4), "share 4 cores")


def test_less_than_its_threads_by_cgroup():
    only(findings.of_cores([device(0, quota=1.5)]), SLOW, (0,), "4 threads", "1.5", "--threads 1")
    found = findings.of_cores([device(0, quota=0.5, threads=1)])
    only(found, SLOW, (0,), "starts 1 thread", "0.5 of a core's time; raise that limit")
    assert findings.of_cores([device(0, quota=4.0)]) == []


def test_a_folder_that_cannot_be_written():
    broken = device(1, folder=Folder("/ro", "Read-only file system: /ro", GB, 7, "ext4"))
    found = findings.of_folders([device(0), broken], None, JOB)
    only(found, FAILS, (1,), "rank 1 on dev1", "Read-only", "--save-dir")
    there = replace(JOB, shard_bytes=(GB, 0))  # no need to write it
    assert findings.of_folders([device(0), broken], None, there) == []
    speeds = [speed(0), speed(1, disk=None, trouble="Disk quota exceeded")]
    found = findings.of_folders([device(0), device(1)], speeds, JOB)
    only(found, FAILS, (1,), "Disk quota exceeded")
    both = [replace(broken, rank=0), broken]
    only(findings.of_folders(both, None, JOB), FAILS, (0, 1), "ranks 0 and 1 on dev1 can't write")


def test_a_disk_too_small():
    job = replace(JOB, shard_bytes=(40 * GB, 140 * GB))
    found = findings.of_folders([device(0), device(1)], None, job)
    only(found, FAILS, (1,), "100.00 GiB free", "140.00 GiB", "a model", "--save-dir")
    job = replace(JOB, shard_bytes=(60 * GB, 60 * GB))
    assert findings.of_folders([device(0), device(1)], None, job) == []
    one_machine = [device(0, machine="a"), device(1, machine="a")]
    found = findings.of_folders(one_machine, None, job)
    only(found, FAILS, (0, 1), "their shards of a model take 120.00 GiB")


@pytest.mark.parametrize(("kind", "word"), [("tmpfs", "lies in memory"), ("nfs4", "network file")])
def test_a_folder_on_no_disk_of_its_own(kind, word):
    devices = [device(0), device(1, folder=Folder("/x", None, 100 * GB, 7, kind))]
    only(findings.of_folders(devices, None, JOB), SLOW, (1,), word, kind, "--save-dir")


def test_one_folder_for_two_devices():
    speeds = [speed(0, sees=(0, 1)), speed(1, sees=(0, 1)), speed(2)]
    devices = [device(rank) for rank in range(3)]
    only(findings.of_folders(devices, speeds, JOB), NOTE, (0, 1), "in one folder, /home/me")
    same = [replace(d, host="a") for d in devices]
    assert findings.of_folders(same, speeds, JOB) == []


def test_a_slow_disk():
    devices, speeds = [device(rank) for rank in range(3)], [speed(0), speed(1), speed(2, disk=2e7)]
    found = findings.of_folders(devices, speeds, JOB)
    only(found, SLOW, (2,), "reads 20 MB/s", "1.00 GB/s", "--ratio auto")


@pytest.mark.parametrize("what", [{"flops": 50e9}, {"memory": 5e9}])
def test_a_slow_rank(what):
    devices, speeds = [device(rank) for rank in range(3)], [speed(0), speed(1), speed(2, **what)]
    found = findings.of_speed(devices, speeds)
    only(found, SLOW, (2,), "rank 2 on dev2 is slower", "100", "10.00 GB/s", "--ratio auto")


def test_too_little_memory():
    found = findings.of_memory(replace(JOB, trouble="rank 0 needs 2 GiB"))
    only(found, FAILS, (), "rank 0 needs 2 GiB")


def links_of(links, wire=None, **changes):
    devices = [device(rank, **changes) for rank in range(len(links))]
    return link_findings.of_links(devices, links, JOB, wire or [10**8] * len(links))


def test_a_device_behind_a_slow_link():
    slow = Link(1e-3, 1.2e6)
    for count in (3, 4, 8):
        late = {f"r2to{other}": slow for other in range(count) if other != 2}
        found = links_of(lan(count, **late))
        only(found, SLOW, (2,), "sends 9.6 Mbit/s", "receives 288 Mbit/s", "44 sums of 8 KiB")
        # 2 ms and 8192 bytes at 1.2 and 36 MB/s, 44 times
        assert "398 ms over it" in found[0].text and "108 ms without it" in found[0].text


def test_a_device_far_away():
    far = Link(20e-3, 36e6)
    late = {f"r{a}to{b}": far for a in range(4) for b in range(4) if a != b and 3 in (a, b)}
    only(links_of(lan(4, **late)), SLOW, (3,), "20 ms one way", "288 Mbit/s and 1 ms")


def test_a_bad_cable_between_two():
    bad = Link(1e-3, 1e6)
    found = links_of(lan(4, r1to3=bad, r3to1=bad))
    only(found, SLOW, (1, 3), "rank 1 on dev1 and rank 3 on dev3", "8 Mbit/s", "--allreduce star")
    found = links_of(lan(4, r0to3=bad, r3to0=bad))
    only(found, SLOW, (0, 3), "rank 0 on dev0 and rank 3 on dev3")
    assert "--allreduce" not in found[0].text


@pytest.mark.parametrize(("count", "what"), [(2, "the link is slow"), (3, "all links are slow")])
def test_all_links_slow(count, what):
    wireless = Link(8e-3, 1.2e6)
    links = [[None if i == j else wireless for j in range(count)] for i in range(count)]
    only(links_of(links), SLOW, tuple(range(count)), what, "9.6 Mbit/s", "8 ms one way")


def test_pairs_that_were_not_measured():
    links = lan(4)
    links[2][3] = links[3][2] = None
    assert links_of(links) == []


@pytest.mark.parametrize(
    ("mpi", "way"), [("MPICH 5.0", "UCX_TLS=tcp,self"), ("Open MPI v5", "--mca btl tcp,self")]
)
def test_virtual_devices_that_talk_through_memory(mpi, way):
    fast = lan(2, r0to1=Link(2e-6, 8e9), r1to0=Link(2e-6, 8e9))
    found = links_of(fast, machine="one", mpi=mpi)
    only(found, SLOW, (0, 1), "64 Gbit/s", "through its memory", way)
    assert links_of(fast) == []  # two machines with a network as fast
    only(links_of(lan(2), [100, 100], machine="one"), SLOW, (0, 1), "through its memory")
    assert links_of(lan(2), [10**7, 10**7], machine="one") == []
    assert links_of(lan(2), [None, None], machine="one") == []


def test_reports_of_other_versions_are_read():
    one = device(3)
    assert Device.from_json(one.to_json()) == one
    assert Device.from_json('{"rank": 1, "new": 2, "folder": {"path": "/x", "new": 1}}') == Device(
        1, folder=Folder("/x")
    )


@pytest.mark.parametrize(
    ("version", "files", "quota"),
    [
        (2, {"cpu.max": "50000 100000\n"}, 0.5),
        (2, {"cpu.max": "max 100000\n"}, None),
        (1, {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}, 1.5),
        (1, {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_a_share_of_the_cores(tmp_path, version, files, quota):
    own, folder = tmp_path / "proc" / "self", tmp_path / "cg" / "mine"
    own.mkdir(parents=True)
    folder.mkdir(parents=True)
    kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,cpu,cpuacct")
    own.joinpath("mountinfo").write_text(f"1 2 0:3 / /cg rw - {kind} cgroup {options}\n")
    own.joinpath("cgroup").write_text("0::/mine\n" if version == 2 else "4:cpu,cpuacct:/mine\n")
    for name, text in files.items():
        (folder / name).write_text(text)
    assert cgroups.cpu_quota(tmp_path / "proc", tmp_path) == quota


def test_which_file_system(tmp_path):
    (tmp_path / "self").mkdir()
    inner = tmp_path / "a disk"
    (tmp_path / "self" / "mountinfo").write_text(
        "1 0 0:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:2 / {str(inner).replace(' ', chr(92) + '040')} rw shared:1 - nfs4 server:/ rw\n"
    )
    assert file_system(inner / "x", tmp_path) == "nfs4"
    assert file_system(tmp_path, tmp_path) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert look_at(tmp_path / "not" / "yet").trouble is None
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert "it is a file" in look_at(tmp_path / "file" / "below").trouble
