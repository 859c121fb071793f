"""--model with the name of a model on the Hugging Face hub, as a user gives it."""

import sys

import pytest

from hub_server import NAME, Hub, demo_files, own_cache, snapshot
from program import GREEDY, output, refused, run


@pytest.fixture
def home(tmp_path, monkeypatch):
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def hub(home, monkeypatch):
    with Hub({NAME: demo_files()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


# Rank 0 alone has a cache and a hub: the others' can't be reached.
ALONE = """
import os, runpy, sys
if int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))):
    os.environ.update(HF_HOME="/proc/none", HF_ENDPOINT="http://127.0.0.1:9")
sys.argv[0] = "tpimpi"
runpy.run_module("tpimpi", run_name="__main__")
"""


def test_rank_0_alone_needs_the_hub(mpirun, hub, tmp_path):
    program = [sys.executable, "-c", ALONE]
    asked = ["generate", "-m", NAME, "-p", "ROMEO:", "-n", 48, "--temperature", 0, "--no-echo"]
    first = run(mpirun, 3, *asked, folder=tmp_path / "shards", program=program)
    assert output(first) == f"{GREEDY}\n" and f"downloading {NAME}" in first.stderr
    count = len(hub.asked)
    again = run(mpirun, 3, *asked, folder=tmp_path / "shards", program=program)
    assert output(again) == f"{GREEDY}\n" and len(hub.asked) == count
    wrong = run(mpirun, 3, "info", "-m", "some-lab/Dome", folder=tmp_path, program=program)
    refused(wrong, 2, "some-lab/Dome is neither a directory here nor a model", "HF_TOKEN")


def test_a_rank_takes_its_own_copy_from_the_cache(mpirun, home, tmp_path):
    snapshot(home)
    process = run(
        mpirun, 2, "convert", "-m", NAME, "--local-checkpoint", folder=tmp_path,
        program=[sys.executable, "-c", ALONE],
    )  # fmt: skip
    assert "cut 2 shards" in output(process)
    assert "is sent what is missing: some-lab/Demo-1.9M is neither a directory" in process.stderr


def test_every_command_takes_it(home, tmp_path, monkeypatch):
    snapshot(home)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = tmp_path / "text"
    text.write_text("Now is the winter of our discontent\n" * 4)
    for command, says in (
        (["info"], "Demo-1.9M: 1.9 million"), (["plan"], "Demo-1.9M"),
        (["convert"], "cut 1 shards"),
        (["verify"], "are whole"), (["perplexity", "--file", text], "perplexity"),
        (["generate", "--chat", "-p", "Hello", "-n", 2], ""), (["doctor"], "nothing is wrong"),
        (["bench", "--modes", "resident", "--prompts", 8, "--context", 64,
              "--repeats", 1, "--seconds", 0.5], "Demo"),
    ):  # fmt: skip
        process = run([], 0, *command, "-m", NAME, folder=tmp_path / "shards")
        assert says in output(process), (command, process.stdout)
    script = f"import tpimpi\nwith tpimpi.load({NAME!r}) as llm: print(llm.config.name)"
    assert output(run([], 0, program=[sys.executable, "-c", script])) == "Demo-1.9M\n"
