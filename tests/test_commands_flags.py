"""Flags, old spellings, and one sentence for what is wrong."""

import pytest

from tpimpi.commands.command_line import REMOVED, parse
from tpimpi.engine.settings import GenerationSettings, SamplingSettings
from tpimpi.errors import UserError
from tpimpi.memory.request import MemoryRequest
from tpimpi.shards.request import ShardRequest

chosen = GenerationSettings.of
BASE = ["generate", "--model", "M", "--prompt", "hello"]


def test_defaults_are_the_predecessors():
    options = parse(BASE).options
    assert options.settings == GenerationSettings(
        20, SamplingSettings(1.0, 0, 0.9, 0.0, 1.0, 42, 0.0, 0.0, ()), (), (), False
    )
    assert options.memory == MemoryRequest() and options.shards == ShardRequest()


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--memory_window", "4"], "memory", MemoryRequest(window=4)),
        (["--memory_window=3"], "memory", MemoryRequest(window=3)),
        (["--split_bin"], "shards", ShardRequest(again=True)),
        (["--force-download"], "shards", ShardRequest(again=True)),
        ([], "shards", ShardRequest()),
        (["--local-checkpoint"], "shards", ShardRequest(local="")),
        (["--local-checkpoint", "D"], "shards", ShardRequest(local="D")),
        (["--save_dir", "D"], "shards", ShardRequest("D")),
        (["--disable_memory_schedule"], "memory", MemoryRequest(everything=True)),
        (["--k", "5"], "settings", chosen(top_k=5)),
        (["--p", "0.5"], "settings", chosen(top_p=0.5)),
        (["--temp", "0"], "settings", chosen(temperature=0)),
        (["-n", "7"], "settings", chosen(max_new_tokens=7)),
        (["--max-new-tokens", "7"], "settings", chosen(max_new_tokens=7)),
        (["--stop", "a", "--stop", "b"], "settings", chosen(stop=("a", "b"))),
        (["--model_path", "N"], "model", "N"),
        (["--stop-id", "7"], "settings", chosen(stop_ids=(7,))),
        (["--escape", "--stop", r"a\n\"b"], "settings", chosen(stop=('a\n"b',))),
        (["--presence_penalty=-2"], "settings", chosen(presence_penalty=-2.0)),
        (["--frequency-penalty", "0.5"], "settings", chosen(frequency_penalty=0.5)),
        (
            ["--logit-bias", "7=-100", "--logit-bias=8=1.5"],
            "settings",
            chosen(logit_bias=((7, -100.0), (8, 1.5))),
        ),
        (["--no-echo"], "echo", False),
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
        (
            ["-p", "A", "--stop", "--x_y", "--stop=--y_z"],
            "settings",
            chosen(stop=("--x_y", "--y_z")),
        ),
        (["-p", "A", "--save_d", "--a_b"], "shards", ShardRequest("--a_b")),
    ],
)
def test_values_stay_as_they_are(flags, name, value):
    assert getattr(parse(["generate", "--model", "M", *flags]).options, name) == value


@pytest.mark.parametrize("value", ["--length", "-n", "--leng", "--save_dir=x", "--rank", "--"])
def test_a_value_that_may_be_a_flag(value):
    with pytest.raises(UserError, match="one that begins with a dash is written as --prompt=TEXT"):
        parse(["generate", "--model", "M", "--prompt", value])


def test_a_negative_number_is_a_value():
    with pytest.raises(UserError, match="-4 must be from 1"):
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


def test_verify_cuts_nothing():
    with pytest.raises(UserError, match="no flag --split-bin"):
        parse(["verify", "--model", "M", "--split-bin"])


@pytest.mark.parametrize("argv", [[], ["nothing"], ["generate"], ["perplexity", "--model", "M"]])
def test_incomplete(argv):
    with pytest.raises(UserError):
        parse(argv)


NINES = "9" * 5000


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        ("info -m M", ["--ranks", "100000"], "100000 must be from 1 to 4096"),
        ("plan -m M", ["-np", "4097"], "from 1 to 4096"),
        ("plan --shape S", ["--layers", "1000000000"], "from 1 to 4096"),
        (
            "generate -m M -p A",
            ["--threads", "1000000000"],
            "from 1 to 1024; this machine has .* cores",
        ),
        ("bench --shape S", ["--threads", "1025"], "from 1 to 1024"),
        ("generate -m M -p A", ["--length", "1000000000"], "from 1 to 16777216 tokens"),
        ("generate -m M -p A", ["--prompt-chunk", "1000000000"], "from 1 to 16777216 tokens"),
        ("plan -m M", ["--context", "1000000000"], "from 2 to 16777216 tokens"),
        ("bench --shape S", ["--prompts", "8,1000000000"], "from 1 to 16777216 tokens"),
        ("perplexity -m M --file F", ["--window", "1000000000"], "from 2 to 16777216 tokens"),
        ("generate -m M -p A", ["--seed", NINES], "5000 characters. is too long for a number"),
        ("generate -m M -p A", ["--temperature", NINES], "is too long for a number"),
        ("generate -m M -p A", ["--temperature", "1e400"], "1e400 is not finite"),
        ("generate -m M -p A", ["--repeat-penalty", "inf"], "inf is not finite"),
        ("plan -m M", ["--memory-budget", "200"], r"did you mean 200MiB\?"),
        ("plan -m M", ["--memory-budget", NINES], "more memory than any machine has"),
    ],
)
def test_numbers_beyond_all_reason(command, flags, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        parse([*command.split(), *flags])
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stop", ""], "--stop is empty"),
        (["--escape", "--stop", r"a\q"], "not one"),
        (["--prefix", "a\udcff"], "--prefix is no UTF-8 text .byte 0xff"),
    ],
)
def test_texts_that_are_refused(flags, words):
    with pytest.raises(UserError, match=words):
        parse(BASE + flags)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--lenght", "4"],
            "no flag --lenght; did you mean --length.; see `tpimpi generate --help`",
        ),
        (["there"], "'there' belongs to no flag; a text with spaces is put between quotes"),
    ],
)
def test_what_no_flag_takes(words, said):
    with pytest.raises(UserError, match=said):
        parse(BASE + words)


def test_chat_says_only_what_it_is_told():
    options = parse(["chat", "-m", "M"]).options
    assert options.said == {} and options.history and options.context is None
    flags = ["--temp", "0", "-n", "7", "--logit-bias", "3=-1", "--stop", "END", "--no-history"]
    options = parse(["chat", "-m", "M", *flags]).options
    assert options.said == {
        "temperature": 0.0, "max_new_tokens": 7, "logit_bias": ((3, -1.0),), "stop": ("END",),
    }  # fmt: skip
    assert not options.history and chosen(**options.said).max_new_tokens == 7
