"""What nodes and cgroups of both versions can still give, from trees as the kernel shows them."""

import pytest

from tpimpi.memory.process import free_memory

MIB = 1 << 20


def fake_proc(tmp_path, cgroup, mounts):
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "self" / "mountinfo").write_text(mounts)
    return proc


def group(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_cgroup_version_2_with_a_tighter_parent(tmp_path):
    mounts = "30 24 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    proc = fake_proc(tmp_path, "0::/user/app\n", mounts)
    base = tmp_path / "sys/fs/cgroup"
    stat = "anon 5\ninactive_file 300\n"
    group(base, {"memory.stat": stat})
    group(base / "user", {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": stat})
    group(base / "user/app", {"memory.max": "max\n", "memory.current": "9\n", "memory.stat": stat})
    free = free_memory(proc, tmp_path)
    assert free.node == 4 * MIB and free.cgroup == 600
    assert free.cgroup_path == str(base / "user")


def test_cgroup_version_1_in_a_container(tmp_path):
    mounts = (
        "31 30 0:27 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "32 30 0:28 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    )
    proc = fake_proc(tmp_path, "4:memory:/docker/1\n3:cpu:/docker/1\n", mounts)
    group(
        tmp_path / "sys/fs/cgroup/memory",
        {
            "memory.limit_in_bytes": "5000\n", "memory.usage_in_bytes": "6000\n",
            "memory.stat": "inactive_file 1\ntotal_inactive_file 2000\n",
        },
    )  # fmt: skip
    assert free_memory(proc, tmp_path).cgroup == 1000
    unlimited = {"memory.limit_in_bytes": str((1 << 63) - 4096)}
    group(tmp_path / "sys/fs/cgroup/memory", unlimited)
    assert free_memory(proc, tmp_path).cgroup is None


CGROUP2 = "30 24 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"memory.max": "1000", "memory.high": "max"}, 700),
        ({"memory.max": "1000", "memory.high": "900"}, 600),
        ({"memory.max": "800", "memory.high": "900"}, 500),
        ({"memory.max": "max", "memory.high": "900"}, 600),
        ({"memory.max": "max", "memory.high": "0"}, 0),
        ({"memory.max": "max", "memory.high": "max"}, None),
        ({"memory.high": "900"}, 600),
        ({"memory.max": "1000"}, 700),  # a kernel without memory.high
        ({}, None),
    ],
)
def test_the_tighter_of_max_and_high_with_all_page_cache_free(tmp_path, limits, left):
    proc = fake_proc(tmp_path, "0::/app\n", CGROUP2)
    stat = "anon 250\nfile 600\nshmem 50\ninactive_anon 50\nactive_anon 250\n"
    stat += "inactive_file 200\nactive_file 350\nunevictable 0\n"
    files = {"memory.current": "850\n", "memory.stat": stat}
    files |= {name: f"{text}\n" for name, text in limits.items()}
    group(tmp_path / "sys/fs/cgroup/app", files)
    assert free_memory(proc, tmp_path).cgroup == left


def test_page_cache_of_version_1_with_the_groups_below(tmp_path):
    mounts = "31 30 0:27 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    proc = fake_proc(tmp_path, "4:memory:/job\n", mounts)
    stat = "inactive_file 7\nactive_file 8\ntotal_inactive_file 100\ntotal_active_file 1000\n"
    files = {"memory.limit_in_bytes": "5000\n", "memory.usage_in_bytes": "4900\n"}
    group(tmp_path / "sys/fs/cgroup/memory/job", files | {"memory.stat": stat})
    assert free_memory(proc, tmp_path).cgroup == 1200


def test_no_more_page_cache_is_free_than_is_held(tmp_path):
    proc = fake_proc(tmp_path, "0::/app\n", CGROUP2)
    stat = "inactive_file 600\nactive_file 600\n"  # read at another moment than memory.current
    files = {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": stat}
    group(tmp_path / "sys/fs/cgroup/app", files)
    assert free_memory(proc, tmp_path).cgroup == 1000
