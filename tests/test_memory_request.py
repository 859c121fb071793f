"""Budgets as users write them, and what is refused."""

import os
import time

import pytest

from tpimpi.errors import UserError
from tpimpi.memory.request import Budgets

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3GiB", 3 << 30), ("1500MB", 1_500_000_000), ("1.5 GiB", 3 << 29), ("auto", "auto"),
     ("max", "max"), ("12345678", 12_345_678), ("1048576", MIB), ("2gib", 2 << 30),
     ("3g", 3 * 10**9), ("64M", 64 * 10**6), ("0.5 TiB", 1 << 39), (" 1 PB ", 10**15),
     ("7Gi", 7 << 30)],
)  # fmt: skip
def test_sizes(text, expected):
    assert Budgets.parse(text).of(1, 3, "host") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1GB",
        "much",
        "3XB",
        "nan",
        "inf",
        "1e400",
        "1e3GiB",
        "0x10MB",
        "1/2GiB",
        "1 GiB more",
        "3 gums",
        "-" + "9" * 400,
        "1GiB,,2GiB",
        "5iB",
        "@/no/such/file",
        "@/",
        "@",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="no size|can't be read"):
        Budgets.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("200", "200MiB"), ("4", "4GiB"), ("1.5", "1.5GiB"), ("2048", "2048MiB"), ("0", "3GiB"),
     ("500KiB", "500MiB"), ("2GiB,300", "300MiB")],
)  # fmt: skip
def test_a_forgotten_unit(text, meant):
    with pytest.raises(ValueError, match=rf"less than 1 MiB.*\(did you mean {meant}\?\)"):
        Budgets.parse(text)


@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 5000, "9" * 400 + "GiB", "9" * 99 + ".5", "9999PB"]
)
def test_more_than_any_machine_has(text):
    with pytest.raises(ValueError, match="more memory than any machine has") as caught:
        Budgets.parse(text)
    assert len(str(caught.value)) < 100


def test_a_budget_for_each_rank_or_host(tmp_path):
    budgets = Budgets.parse("3GiB,1GiB,auto")
    assert [budgets.of(r, 3, "h") for r in range(3)] == [3 << 30, 1 << 30, "auto"]
    with pytest.raises(UserError, match="3 budgets, but there are 2 ranks"):
        budgets.of(0, 2, "h")
    file = tmp_path / "budgets"
    file.write_text("# ours\nbig 8GiB\nsmall.lan  512MiB # old\n\n")
    budgets = Budgets.parse(f"@{file}")
    assert budgets.of(0, 9, "big.home") == 8 << 30 and budgets.of(5, 9, "small.lan") == 512 * MIB
    with pytest.raises(UserError, match="no line for host other"):
        budgets.of(0, 2, "other")
    file.write_text("* 1GiB\n")
    assert Budgets.parse(f"@{file}").of(0, 2, "other") == 1 << 30
    for text, word in (("a b c\n", "line 1"), ("# none\n", "no line"), ("h 3XB\n", "no size")):
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            Budgets.parse(f"@{file}")


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfbig 8GiB\nsmall 512MiB\n", b"big 8GiB\r\nsmall\t512MiB\r\n",
     "# größer\nbig 8GiB # ü\nsmall 512MiB".encode()],
)  # fmt: skip
def test_hosts_as_other_systems_write_them(tmp_path, content):
    (tmp_path / "hosts").write_bytes(content)
    budgets = Budgets.parse(f"@{tmp_path / 'hosts'}")
    assert budgets.hosts == (("big", 8 << 30), ("small", 512 * MIB))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"big 8GiB\nsm\xfcll 1GiB\n", "not UTF-8"), ("big 8GiB\n".encode("utf-16"), "not UTF-8"),
     (b"big 200\n", "line 1: 200 is less than 1 MiB"),
     (b"a 1GiB\n" * 200_000, "not a file of lines"),
     (b"a 1GiB\n\nb " + b"9" * 400, "line 3: 9{30}... .400 char.* more memory")],
)  # fmt: skip
def test_hosts_that_are_not_read(tmp_path, content, sentence):
    (tmp_path / "hosts").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        Budgets.parse(f"@{tmp_path / 'hosts'}")


def test_a_pipe_of_hosts_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="not a file of lines HOST BYTES"):
            Budgets.parse(f"@{path}")
    assert time.monotonic() - start < 5
