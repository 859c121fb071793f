"""The program as a user runs it, on the demo model: text, figures, perplexity, every command."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tpimpi
from program import DEMO, GREEDY, TPIMPI, output, run
from tpimpi.checkpoint.tokenizer import load_tokenizer
from tpimpi.model.config import ModelConfig

TEXT = (
    """\
First Citizen:
We are accounted poor citizens, the patricians good. What authority surfeits on would
relieve us; if they would yield us but the superfluity, while it were wholesome, we might
guess they relieved us humanely; but they think we are too dear.

KING RICHARD:
My lord, the night is long and I am weary of the crown; who comes? What news, what news?
"""
    * 6
)


@pytest.mark.parametrize(
    ("ranks", "memory"),
    [(0, []), (1, ["--memory-window", "4"]), (2, []), (3, ["--memory-window", "2"]),
     (4, ["--disable-memory-schedule", "--prompt-chunk", "2"])],
)  # fmt: skip
def test_greedy_text_is_the_same_everywhere(mpirun, ranks, memory):
    flags = ["--prompt", "ROMEO:", "--length", 48, "--temperature", 0, "--output", "json"]
    lines = output(run(mpirun, ranks, "generate", "--model", DEMO, *flags, *memory)).splitlines()
    result = json.loads(lines[0])
    assert len(lines) == 1 and result["text"] == GREEDY
    assert result["finish_reason"] == "length" and len(result["generated_ids"]) == 48
    figures = result["figures"]
    assert figures["tokens"] == 48 and figures["prompt_tokens"] == len(result["prompt_ids"]) == 3
    assert 0 < figures["first_token_seconds"] < figures["seconds"]
    assert 30 << 20 < figures["peak_memory_bytes"] < 1 << 30 and figures["bytes_read"] > 10**6


def test_text_output_and_the_line_of_figures(mpirun):
    process = run(mpirun, 2, "generate", "--model", DEMO, "-p", "ROMEO:", "--temp", 0, "-n", 48)
    assert output(process) == "ROMEO:" + GREEDY + "\n"
    for word in ("48 tokens", "first token", "tokens/s", "peak memory", "MB/s"):
        assert word in process.stderr


def test_a_stop_string_ends_the_text(mpirun):
    flags = ["-p", "ROMEO:", "--temp", 0, "-n", 48, "--stop", GREEDY[9:14], "--output", "json"]
    result = json.loads(output(run(mpirun, 2, "generate", "--model", DEMO, *flags)))
    assert result["text"] == GREEDY[: GREEDY.index(GREEDY[9:14])]
    assert result["finish_reason"] == "stop"


def test_escapes_and_a_stop_at_once(mpirun):
    flags = ["-e", "-p", r"\u0052OMEO:", "--temp", 0, "--stop", r"\n"]
    process = run(mpirun, 2, "generate", "--model", DEMO, *flags)
    assert output(process) == "ROMEO:\n"  # the greedy text begins with the stop
    assert "ended at once" not in process.stderr and "chat" not in process.stderr


def test_a_chat_model_that_ends_at_once(mpirun, tmp_path):
    model = shutil.copytree(DEMO, tmp_path / "model")
    tokenizer = load_tokenizer(DEMO, ModelConfig.from_directory(DEMO))
    first = tokenizer.encode("\n", add_bos=False)[-1]
    for name, change in (
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("generation_config.json", {"eos_token_id": first}),
    ):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | change))
    flags = ["-p", "ROMEO:", "--temp", 0, "-n", 48, "--no-echo"]
    process = run(mpirun, 2, "generate", "--model", model, *flags)
    assert output(process) == "\n" and "model is a chat model" in process.stderr
    assert f"ended at once, with token {first}; --ignore-eos goes on" in process.stderr
    process = run(mpirun, 2, "generate", "--model", model, *flags, "--ignore-eos")
    assert output(process) == GREEDY + "\n" and "ended at once" not in process.stderr


def test_the_prompt_as_a_message_of_a_chat(mpirun, tmp_path):
    model = shutil.copytree(DEMO, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    tokenizer = load_tokenizer(DEMO, ModelConfig.from_directory(DEMO))
    asked = ["generate", "--model", model, "--chat", "-p", "Who?", "--temp", 0, "-n", 6]
    found = json.loads(output(run(mpirun, 2, *asked, "--system", "Short.", "--output", "json")))
    bos = settings["bos_token"]
    expected = tokenizer.encode(f"{bos}SYSTEM: Short.\nUSER: Who?\n", add_bos=False)
    assert found["prompt_ids"] == expected and expected.count(expected[0]) == 1
    process = run(mpirun, 2, *asked)
    assert "Who?" not in process.stdout and "template" not in process.stderr
    spoken = ["-p", f"{bos}USER: Who?\n", "--no-bos", "--temp", 0, "-n", 6, "--no-echo"]
    assert process.stdout == output(run(mpirun, 2, "generate", "--model", DEMO, *spoken))
    process = run(mpirun, 2, *asked[:2], DEMO, *asked[3:])
    assert "demo has no chat template; this is a plain form" in process.stderr
    refusal = run(mpirun, 2, *asked[:3], "-p", "x", "--system", "y")
    assert refusal.returncode == 2 and "give --chat with it" in refusal.stderr


def test_the_line_of_figures_comes_after_the_text(mpirun):
    command = [*mpirun, "-np", "2", *TPIMPI, "generate", "--model", DEMO, "-p", "ROMEO:"]
    process = subprocess.run(
        [*command, "--temp", "0", "-n", "48"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=120, check=True,
    )  # fmt: skip
    text, _, figures = process.stdout.partition(GREEDY + "\n")
    assert text == "ROMEO:" and figures.startswith("tpimpi: 48 tokens after a prompt of 3 |")


def test_prompt_from_stdin_with_a_prefix_and_a_seed(mpirun):
    flags = ["--prompt-file", "-", "--prefix", "JULIET:\n", "--length", 9, "--output", "json"]
    texts = []
    for seed in (1, 1, 2):
        process = run(
            mpirun, 2, "generate", "--model", DEMO, *flags, "--seed", seed, stdin="O Romeo"
        )
        texts.append(json.loads(output(process))["text"])
    assert texts[0] == texts[1] != texts[2]


def test_the_context_ends_the_text(mpirun):
    prompt = "word " * 250
    flags = ["-p", prompt, "-n", 400, "--ignore-eos", "--output", "json"]
    process = run(mpirun, 2, "generate", "--model", DEMO, *flags)
    result = json.loads(output(process))
    assert len(result["prompt_ids"]) + len(result["generated_ids"]) == 512
    assert result["finish_reason"] == "length" and "leaves room" in process.stderr


def test_report(mpirun, tmp_path):
    file = tmp_path / "report.json"
    flags = ["-p", "A", "--memory-window", 2, "--report", file]
    output(run(mpirun, 3, "generate", "--model", DEMO, *flags))
    report = json.loads(file.read_text())
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1, 2]
    for rank in report["ranks"]:
        parts = [rank[f"{part}_seconds"] for part in ("compute", "disk_wait", "network", "idle")]
        assert sum(parts) == pytest.approx(rank["seconds"], rel=0.01)
        assert 0 <= rank["late_seconds"] <= rank["network_seconds"]
        assert rank["allreduce_alone_seconds"] > 0
        assert set(rank["allreduce"].split("/")) <= {
            "mpi",
            "mesh",
            "star",
            "scatter",
            "recursive-doubling",
        }
        assert rank["streamed_bytes_per_pass"] > 0 == rank["resident_bytes"]
    figures = report["figures"]
    assert figures["bound_by"] in ("compute", "disk", "network") and 0 < figures["bound_share"] <= 1
    assert figures["last_rank"] in (0, 1, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_report_that_a_full_disk_does_not_take(mpirun):
    process = run(mpirun, 2, "generate", "--model", DEMO, "-p", "A", "--report", "/dev/full")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "--report /dev/full can't be written (No space left on device)" in process.stderr


@pytest.mark.parametrize("ranks", [0, 3])
def test_perplexity_is_that_of_transformers(mpirun, tmp_path, ranks):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    (tmp_path / "text").write_text(TEXT)
    flags = ["--file", tmp_path / "text", "--window", 200, "--output", "json"]
    ours = json.loads(output(run(mpirun, ranks, "perplexity", "--model", DEMO, *flags)))
    model = LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(DEMO)(TEXT, add_special_tokens=False).input_ids
    total = 0.0
    for start in range(0, len(ids), 199):
        window = torch.tensor([[1, *ids[start : start + 199]]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    assert ours["tokens"] == len(ids)
    assert ours["nll"] == pytest.approx(total, rel=1e-5)
    assert f"{ours['perplexity']:.4g}" == f"{math.exp(total / len(ids)):.4g}"


def test_convert_verify_info(mpirun, tmp_path):
    folder = ["--save-dir", tmp_path / "shards"]
    assert "cut 3 shards" in output(run(mpirun, 3, "convert", "--model", DEMO, *folder))
    assert "already there" in output(run(mpirun, 3, "convert", "--model", DEMO, *folder))
    again = run(mpirun, 3, "convert", "--model", DEMO, *folder, "--split_bin", "--local-checkpoint")
    assert "cut 3 shards" in output(again) and "sent what" not in again.stderr
    assert "are whole" in output(run(mpirun, 3, "verify", "--model", DEMO, *folder))
    found = json.loads(
        output(run(mpirun, 0, "info", "--model", DEMO, "-np", 3, "--output", "json"))
    )
    for rank, entry in enumerate(found["ranks"]):
        size = (tmp_path / "shards" / f"shard-{rank}-of-3.h5").stat().st_size
        assert entry["shard_bytes"] <= size <= entry["shard_bytes"] + 800_000
    assert "query heads" in output(run(mpirun, 0, "info", "--model", DEMO))


def test_help_and_version(mpirun):
    assert tpimpi.__version__ in output(run(mpirun, 0, "--version"))
    assert output(run(mpirun, 2, "--version")).count(tpimpi.__version__) == 1
    assert "(default: 20)" in output(run(mpirun, 0, "generate", "--help"))


def test_no_half_characters_in_the_output(mpirun):
    flags = ["-p", "é😀", "-n", 60, "--temp", 3, "--top-p", 1, "--seed", 3, "--ignore-eos"]
    output(run(mpirun, 2, "generate", "--model", DEMO, *flags))  # decoding would raise


@pytest.mark.parametrize(("number", "ranks"), [(1, 0), (1, 3), (2, 3)])
def test_the_scripts_of_the_api_page(mpirun, tmp_path, number, ranks):
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    script = tmp_path / "script.py"
    script.write_text(page.split("```python\n")[number].split("```")[0])
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    process = subprocess.run(
        [*launcher, sys.executable, str(script), str(DEMO)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = output(process).split("\n")
    if number == 2:
        assert len(lines) == 4 and all(line.startswith(("'", '"')) for line in lines[:3])
        return
    assert process.stdout.startswith(GREEDY[:40]) and len(script.read_text().splitlines()) <= 12
    assert lines[-2].endswith("nats a token") and process.stdout.count("(length)") == 2


def test_importing_initializes_nothing():
    code = "import sys, tpimpi; print({'mpi4py', 'numba', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
