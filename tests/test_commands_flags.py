"""Flags, old spellings, and one sentence for what is wrong."""

import pytest

from tpimpi.commands.command_line import REMOVED, parse
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest

BASE = ["generate", "--model", "M", "--prompt", "hello"]


def test_defaults_are_the_predecessors():
    options = parse(BASE).options
    choice = (options.length, options.seed, options.temperature, options.top_k, options.top_p)
    assert choice == (20, 42, 1, 0, 0.9)
    assert options.memory == MemoryRequest() and options.save_dir is None and not options.again


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--memory_window", "4"], "memory", MemoryRequest(window=4)),
        (["--memory_window=3"], "memory", MemoryRequest(window=3)),
        (["--split_bin"], "again", True),
        (["--save_dir", "D"], "save_dir", "D"),
        (["--disable_memory_schedule"], "memory", MemoryRequest(everything=True)),
        (["--k", "5"], "top_k", 5),
        (["--p", "0.5"], "top_p", 0.5),
        (["--temp", "0"], "temperature", 0),
        (["-n", "7"], "length", 7),
        (["--max-new-tokens", "7"], "length", 7),
        (["--stop", "a", "--stop", "b"], "stop", ("a", "b")),
        (["--model_path", "N"], "model", "N"),
    ],
)
def test_spellings(flags, name, value):
    assert getattr(parse(BASE + flags).options, name) == value


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["-p", "--hello_world foo"], "prompt", "--hello_world foo"),
        (["--prompt=--a_b"], "prompt", "--a_b"),
        (["--prompt", "--new_thing"], "prompt", "--new_thing"),
        (["-p--a_b"], "prompt", "--a_b"),
        (["-p", "-nice day"], "prompt", "-nice day"),
        (["-p", "-5"], "prompt", "-5"),
        (["--prompt_file", "-"], "prompt_file", "-"),
        (["--prompt_file=a_b"], "prompt_file", "a_b"),
        (["-p", "A", "--stop", "--x_y", "--stop=--y_z"], "stop", ("--x_y", "--y_z")),
        (["-p", "A", "--save_d", "--a_b"], "save_dir", "--a_b"),
    ],
)
def test_values_stay_as_they_are(flags, name, value):
    assert getattr(parse(["generate", "--model", "M", *flags]).options, name) == value


@pytest.mark.parametrize("value", ["--length", "-n", "--leng", "--save_dir=x", "--rank", "--"])
def test_a_value_that_may_be_a_flag(value):
    with pytest.raises(UserError, match="one that begins with a dash is written as --prompt=TEXT"):
        parse(["generate", "--model", "M", "--prompt", value])


def test_a_negative_number_is_a_value():
    with pytest.raises(UserError, match="-4 must be at least 1"):
        parse([*BASE, "--length", "-4"])


@pytest.mark.parametrize("flag", REMOVED)
def test_removed_flags_name_what_replaces_them(flag):
    with pytest.raises(UserError, match=REMOVED[flag][:10]):
        parse([*BASE, flag.replace("-", "_").replace("__", "--", 1), "1"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--memory-window", "1"],
        ["--memory-window", "x"],
        ["--length", "-3"],
        ["--length", "0"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-p", "1.5"],
        ["--top-k", "-1"],
        ["--threads", "0"],
        ["--memory-window", "4", "--disable-memory-schedule"],
        ["--prompt-file", "F"],
        ["--unknown"],
    ],
)
def test_mistakes(flags):
    with pytest.raises(UserError, match="see `tpimpi generate --help`|see `tpimpi --help`"):
        parse(BASE + flags)


@pytest.mark.parametrize("argv", [[], ["nothing"], ["generate"], ["perplexity", "--model", "M"]])
def test_incomplete(argv):
    with pytest.raises(UserError):
        parse(argv)
