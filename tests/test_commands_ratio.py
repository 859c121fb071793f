"""--ratio as a user gives it: the same text, its folders, its mistakes, what plan says of it."""

import json

import pytest

from program import DEMO, GREEDY, output, refused, run
from tpimpi.commands.command_line import parse
from tpimpi.errors import UserError

ROMEO = ["-m", DEMO, "-p", "ROMEO:", "-n", 48, "--temp", 0, "--no-echo"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_one_ratio_has_one_folder(mpirun, cache):
    for spelled in ("2,0,1", "3.0,0,1.5"):
        process = run(mpirun, 3, "generate", *ROMEO, "--ratio", spelled, folder=cache)
        assert output(process) == f"{GREEDY}\n"
    listed = json.loads(output(run(mpirun, 0, "cache", "--output", "json", folder=cache)))
    (one,) = listed["sets"]
    assert one["name"].endswith("/3-ranks-2,0,1") and (one["shards"], one["ranks"]) == (3, 3)
    listed = output(run(mpirun, 3, "verify", "-m", DEMO, "--ratio", "auto", folder=cache))
    assert "3 shards are whole" in listed and "3-ranks-2,0,1" in listed
    refused(run(mpirun, 3, "verify", "-m", DEMO, folder=cache), 2, "does not exist")


def test_auto_says_what_it_chose_and_chooses_it_again(mpirun, cache):
    """Whatever the machine does meanwhile: one of three ranks has nearly all of a core."""
    first = run(mpirun, 2, "convert", "-m", DEMO, "--ratio", "auto", folder=cache)
    assert output(first).startswith("cut 2 shards")
    assert "tpimpi: shares " in first.stderr and " as measured: weights in memory" in first.stderr
    assert output(run(mpirun, 2, "verify", "-m", DEMO, "--ratio", "auto", folder=cache))
    process = run(mpirun, 2, "generate", *ROMEO, "--ratio", "auto", folder=cache)
    assert output(process) == f"{GREEDY}\n" and "as measured" in process.stderr


def test_a_folder_holds_one_ratio(mpirun, tmp_path):
    folder = ["--save-dir", tmp_path / "shards"]
    output(run(mpirun, 2, "convert", "-m", DEMO, "--ratio", "3,1", *folder))
    refused(
        run(mpirun, 2, "generate", *ROMEO, "--ratio", "1,3", *folder), 2,
        "was cut in another --ratio", "--split-bin",
    )  # fmt: skip
    refused(run(mpirun, 2, "verify", "-m", DEMO, *folder), 2, "was cut in another --ratio")
    process = run(mpirun, 2, "generate", *ROMEO, "--ratio", "auto", *folder)
    assert output(process) == f"{GREEDY}\n" and "there are shards of this cut" in process.stderr


@pytest.mark.parametrize(
    "command",
    ["generate -m M -p A", "convert -m M", "verify -m M", "plan -m M", "info -m M",
     "perplexity -m M --file F", "bench -m M"],
)  # fmt: skip
def test_each_command_takes_it(command):
    assert parse([*command.split(), "--ratio", "4,2"]).options.shards.ratio == (2, 1)
    assert parse([*command.split(), "--ratio=auto"]).options.shards.ratio == "auto"
    for ratio, said in (
        ("-1,2", "-1 is less than nothing"),
        ("1;2", "no number"),
        ("0", "no rank"),
    ):
        with pytest.raises(UserError, match=said):
            parse([*command.split(), "--ratio", ratio])


@pytest.mark.parametrize("command", ["generate -p A", "info", "plan", "convert"])
def test_a_wrong_count_is_one_sentence(mpirun, command):
    process = run(mpirun, 2, *command.split(), "-m", DEMO, "--ratio", "3,2,1")
    refused(process, 2, "--ratio 3,2,1 lists 3 shares, but there are 2 ranks; give one for each")


@pytest.mark.parametrize("link", ["1ms", "1,300mbit", "1ms,300", "1ms,0mbit", "fast,slow", "",
                                  "1ms,300mbit,2", "-1ms,1gbit"])  # fmt: skip
def test_what_is_no_link(link):
    with pytest.raises(
        UserError, match="is no link; write the delay of one way and a rate above 0"
    ):
        parse(["plan", "-m", "M", "--link", link])


def test_links():
    def given(text):
        return parse(["plan", "-m", "M", "--link", text]).options.link

    assert given("1ms,300mbit") == (1e-3, 37.5e6) and given("2s, 1Gbit/s") == (2.0, 125e6)
    assert given("0.5s,64kbit") == (0.5, 8e3)


def test_info_shows_the_cut(mpirun):
    flags = ["-m", DEMO, "-np", 3, "--ratio", "0,2,1"]
    found = json.loads(output(run(mpirun, 0, "info", *flags, "--output", "json")))
    assert [rank["mlp_columns"] for rank in found["ranks"]] == [0, 320, 160]
    refused(run(mpirun, 0, "info", *flags[:4], "--ratio", "auto"), 2, "1 run and not 3")


def plan(mpirun, ranks, *flags, text=False):
    process = run(mpirun, ranks, "plan", "--memory-budget", "400MiB", *flags,
                  *([] if text else ["--output", "json"]))  # fmt: skip
    return output(process) if text else json.loads(output(process))


def test_plan_tells_shares_times_and_the_best_number(mpirun, tmp_path):
    shape = ["--shape", "tinyllama-1.1b", "--layers", 4, "--save-dir", tmp_path]
    link = ["--link", "100ms,10mbit"]
    found = plan(mpirun, 0, *shape, *link, "-np", 3, "--ratio", "3,2,1")
    assert found["shares"] == [rank["share"] for rank in found["ranks"]] == [3, 2, 1]
    weights = [rank["resident"] + rank["streamed"] for rank in found["ranks"]]
    assert weights[0] > 1.4 * weights[1] > 1.8 * weights[2]
    for rank in found["ranks"]:
        assert rank["disk_seconds"] == rank["streamed"] / rank["disk_bytes_per_second"]
        assert rank["compute_seconds"] > 0
    assert found["network_seconds"] > 8 * 0.1
    assert [number["devices"] for number in found["numbers"]] == [1, 2, 3]
    assert [number["shares"] for number in found["numbers"]] == [[1], [3, 2], [3, 2, 1]]
    assert found["best_number"] == 1 and found["numbers"][0]["network_seconds"] == 0
    assert found["gain_of_best_shares"] > 0.1 and found["best_shares"] == [1, 1, 1]
    lines = plan(mpirun, 0, *shape, *link, "-np", 3, "--ratio", "3,2,1", text=True).splitlines()
    assert "over 3 ranks, shares 3,2,1, as if each ran on a device like this one" in lines[0]
    assert any(line.startswith("--ratio 1,1,1 would make") for line in lines)
    assert any(line.startswith("the first device alone is faster than all 3: ") for line in lines)
    assert any(line.startswith("a token on the first devices alone") for line in lines)


def test_plan_measures_the_links_of_a_run(mpirun, tmp_path):
    found = plan(mpirun, 2, "-m", DEMO, "--save-dir", tmp_path)
    assert found["launched"] and found["network_seconds"] > 0
    assert [number["devices"] for number in found["numbers"]] == [1, 2]
    assert found["best_number"] in (1, 2)
    alone = plan(mpirun, 0, "-m", DEMO, "--save-dir", tmp_path)
    assert alone["numbers"] is alone["best_number"] is None and alone["shares"] == [1]
