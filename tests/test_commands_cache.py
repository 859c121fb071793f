"""`tpimpi cache`: what it lists and what it removes, and what it leaves alone."""

import json
import os
import shutil
import subprocess

import pytest

from program import DEMO, TPIMPI, output, refused, run
from tpimpi.comm.group import Group
from tpimpi.commands.command_line import parse
from tpimpi.errors import UserError
from tpimpi.model.shapes import shape_config
from tpimpi.shards.layout import PAGE
from tpimpi.shards.shard import stamp_path
from tpimpi.shards.source import Source
from tpimpi.shards.synthetic import SyntheticSource


@pytest.fixture
def group(comm, shared_tmp, monkeypatch):
    """All ranks with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_tmp))
    group = Group(comm)
    yield group
    group.close()


def cache(group, capsys, *flags):
    """Run `tpimpi cache` on all ranks; return what rank 0 prints as JSON."""
    group.comm.Barrier()
    invocation = parse(["cache", "--output", "json", *flags])
    capsys.readouterr()
    invocation.run(invocation.options, group, 1)
    text = capsys.readouterr().out
    assert bool(text) == (group.rank == 0)
    return group.comm.bcast(json.loads(text) if text else None)


def demo(group):
    source = Source(group, DEMO)
    source.shard(group)[0].close()
    return source


def tiny(group):
    source = SyntheticSource(group, shape_config("tiny"), "bf16")
    source.shard(group)[0].close()
    return source


def used(group, source, seconds):
    """Let a set have been used some seconds after 1970."""
    if group.rank == 0:
        for path in source.folder.iterdir():
            os.utime(path, (seconds, seconds))
    group.comm.Barrier()


def test_sets_are_listed_the_latest_used_first(group, capsys):
    first, second = demo(group), tiny(group)
    used(group, first, 2e6)
    used(group, second, 1e6)
    listed = cache(group, capsys)["sets"]
    key = first.partition.key
    assert [row["model"] for row in listed] == ["demo", "tiny"]
    assert listed[0]["name"] == f"demo-{first.folder.parent.name[:8]}/{key}"
    assert listed[1]["name"].startswith("tiny-random-")
    assert [row["last_use"] for row in listed] == [2e6, 1e6]
    for row, source in zip(listed, (first, second), strict=True):
        assert row["ranks"] == row["shards"] == group.size and row["folder"] == str(source.folder)
        sizes = [512 * path.stat().st_blocks for path in source.folder.iterdir()]
        assert row["bytes"] == sum(sizes) and row["unfinished_bytes"] == 0 and row["usable"]
        assert row["hosts"] == [group.host]
    second.shard(group)[0].close()  # that is a use
    assert [row["model"] for row in cache(group, capsys)["sets"]] == ["tiny", "demo"]


def test_what_is_of_no_use_is_listed_as_such(group, capsys):
    source, host = demo(group), group.rank == 0
    path = source.folder / f"shard-0-of-{group.size}.h5"
    if host:
        path.rename(f"{path}.partial")
    row = cache(group, capsys)["sets"][0]
    assert row["shards"] == group.size - 1
    assert row["unfinished_bytes"] == 512 * os.stat(f"{path}.partial").st_blocks
    # As the first format's lay: by the directory's name, without a seal.
    old = source.folder.parent.parent.parent / "demo-0123456789abcdef" / "1-ranks"
    if host:
        old.mkdir(parents=True)
        data = (source.folder / f"{path.name}.partial").read_bytes()[PAGE:]
        (old / "shard-0-of-1.h5").write_bytes(data)
    row = next(r for r in cache(group, capsys)["sets"] if r["folder"] == str(old))
    assert row["name"] == "demo-0123456789abcdef/1-ranks" and not row["usable"]
    assert cache(group, capsys, "--remove", row["name"])["removed"][0]["name"] == row["name"]
    assert not old.parent.exists() and source.folder.exists()


def test_one_set_is_removed_and_the_others_stay(group, capsys):
    first, second = demo(group), tiny(group)
    name = next(r["name"] for r in cache(group, capsys)["sets"] if r["model"] == "demo")
    with pytest.raises(UserError, match=f"demo-nothing.*{name}"):
        cache(group, capsys, "--remove", "demo-nothing")
    if group.rank == 0:
        shutil.copytree(first.folder, first.folder.with_name("another-cut"))
    removed = cache(group, capsys, "--remove", name)["removed"]
    assert [row["name"] for row in removed] == [name]
    group.comm.Barrier()
    assert not first.folder.exists() and first.folder.with_name("another-cut").exists()
    cache(group, capsys, "--remove", name.split("/")[0])
    group.comm.Barrier()
    assert not first.folder.parent.exists() and second.folder.exists()
    assert [row["model"] for row in cache(group, capsys)["sets"]] == ["tiny"]


def test_a_set_in_use_is_not_removed(group, capsys):
    source = demo(group)
    shard, _ = source.shard(group)
    name = cache(group, capsys)["sets"][0]["name"]
    with pytest.raises(UserError, match=f"{name} is in use"):
        cache(group, capsys, "--remove", name)
    shard.close()
    assert stamp_path(shard.path).exists()
    cache(group, capsys, "--remove", name)
    group.comm.Barrier()
    assert not source.folder.exists()


def test_links_are_not_followed_out_of_the_cache(group, capsys, shared_tmp):
    source, outside = demo(group), shared_tmp / "outside"
    if group.rank == 0:
        shutil.copytree(source.folder, outside / "0123" / "1-ranks")
        (source.folder.parent.parent / "0123").symlink_to(outside / "0123")
        (source.folder.parent / "9-ranks").symlink_to(outside / "0123" / "1-ranks")
        (source.folder / "more").symlink_to(outside)
        (source.folder / "shard-7-of-8.h5").symlink_to(
            outside / "0123" / "1-ranks" / f"shard-0-of-{group.size}.h5"
        )
    rows = cache(group, capsys)["sets"]
    assert [row["folder"] for row in rows] == [str(source.folder)]
    assert rows[0]["shards"] == group.size
    cache(group, capsys, "--remove", rows[0]["name"].split("/")[0])
    group.comm.Barrier()
    assert not source.folder.exists()
    assert len(list((outside / "0123" / "1-ranks").glob("*.h5"))) == group.size


def test_people_get_a_table_from_one_rank(mpirun, tmp_path):
    text = output(run(mpirun, 2, "cache", folder=tmp_path))
    assert text.count("\n") == 1 and "no shards" in text and "compiled kernels" in text
    output(run(mpirun, 2, "convert", "--model", DEMO, folder=tmp_path))
    lines = output(run(mpirun, 2, "cache", folder=tmp_path)).splitlines()
    assert len(lines) == 3 and lines[0].split()[:3] == ["name", "shards", "size"]
    name = lines[1].split()[0]
    assert name.startswith("demo-") and "2 of 2" in lines[1] and "MiB" in lines[1]
    refused(run(mpirun, 2, "cache", "--remove", "demo", folder=tmp_path), 2, "demo", name)
    assert name in output(run(mpirun, 2, "cache", "--remove", name, folder=tmp_path))
    assert "no shards" in output(run(mpirun, 0, "cache", folder=tmp_path))


@pytest.mark.parametrize("ranks", [(2, 2), (1, 2)])
def test_two_conversions_at_once_into_one_cache(mpirun, tmp_path, ranks):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [*mpirun, "-np", str(n), *TPIMPI, "convert", "--model", str(DEMO)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for n in ranks
    ]  # fmt: skip
    errors = [process.communicate(timeout=60)[1] for process in processes]
    codes = [process.returncode for process in processes]
    if ranks[0] == ranks[1]:  # one may find the other at work, and says so
        assert 0 in codes
        for code, error in zip(codes, errors, strict=True):
            assert code == 0 or (code == 1 and "another conversion is writing" in error)
    else:
        assert codes == [0, 0], errors
    for n in set(ranks):
        output(run(mpirun, n, "verify", "--model", DEMO, folder=tmp_path))
    assert not list(tmp_path.rglob("*.partial"))
