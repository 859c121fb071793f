"""Ranks whose code differs are refused on all ranks; other libraries are a warning on rank 0."""

import pytest

from tpimpi.comm import versions
from tpimpi.comm.group import Group
from tpimpi.errors import UserError


@pytest.fixture
def group(comm):
    made = Group(comm)
    yield made
    made.close()


def last(group):
    return group.size > 1 and group.rank == group.size - 1


def test_equal_ranks_are_silent(group, capsys):
    versions.agree_on_code(group)
    assert capsys.readouterr() == ("", "")


def test_another_kernel_is_refused(group, monkeypatch):
    sources = versions._sources()
    if last(group):
        monkeypatch.setattr(versions, "_sources", lambda: sources | {"kernels/matmul.py": "0"})
    if group.size == 1:
        versions.agree_on_code(group)
        return
    with pytest.raises(UserError, match="kernels/matmul.py differs") as caught:
        versions.agree_on_code(group)
    assert caught.value.agreed
    assert str(caught.value).startswith(f"rank 0 on {group.host} and rank {group.size - 1} on ")


def test_another_version_is_refused(group, monkeypatch):
    if last(group):
        monkeypatch.setattr(versions.tpimpi, "__version__", "9.9")
    if group.size > 1:
        with pytest.raises(UserError, match=r"tpimpi \S+ and 9.9; install the same"):
            versions.agree_on_code(group)


def test_other_libraries_are_a_warning(group, monkeypatch, capsys):
    mine = versions.versions_of_libraries()
    if last(group):
        monkeypatch.setattr(versions, "versions_of_libraries", lambda: mine | {"numba": "0.1"})
    versions.agree_on_code(group)
    said = capsys.readouterr().err
    if group.size > 1 and group.rank == 0:
        assert said.startswith(f"tpimpi: numba is {mine['numba']} on ") and "0.1 on" in said
        assert len(said.splitlines()) == 1
    else:
        assert said == ""


def test_sources_are_all_of_them():
    found = versions._sources()
    assert {"tpimpi/cli.py", "tpimpi/comm/versions.py", "kernels/matmul.py"} <= set(found)
    assert not any("tpimpi/kernels" in name for name in found)


def test_what_differs():
    one, other = {"a.py": "1", "b.py": "1"}, {"a.py": "2", "c.py": "1"}
    assert versions._difference("1.0", "1.1", one, one) == "tpimpi 1.0 and 1.1"
    said = versions._difference("1.0", "1.0", one, other)
    assert said == "tpimpi 1.0 on both, but a.py and 2 more differ"
