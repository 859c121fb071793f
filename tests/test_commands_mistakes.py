"""What a user may do wrong: one sentence, the right exit code, no traceback, no rank that hangs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from mpi4py import MPI

from program import DEMO, TPIMPI, refused, run
from tpimpi.shards.shard import Shard


@pytest.fixture
def model(tmp_path):
    """A copy of the demo model that may be spoiled."""
    return shutil.copytree(DEMO, tmp_path / "model")


def generate(mpirun, model, *flags, ranks=2, **more):
    flags = flags or ("--prompt", "A")
    return run(mpirun, ranks, "generate", "--model", model, *flags, **more)


def change_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def rewrite_header(model, change):
    """Let `change` edit the safetensors header; the numbers stay."""
    path = model / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


def spoil(model, how):
    weights, q = model / "model.safetensors", "model.layers.1.self_attn.q_proj.weight"
    data = weights.read_bytes()
    match how:
        case "bin":
            weights.rename(model / "pytorch_model.bin")
        case "gguf":
            weights.rename(model / "model.gguf")
        case "no weights":
            weights.unlink()
        case "truncated":
            weights.write_bytes(data[:-1000])
        case "header beyond":
            weights.write_bytes((10**12).to_bytes(8, "little") + data[8:])
        case "header garbage":
            weights.write_bytes(data[:8] + b"x" * 100 + data[108:])
        case "empty file":
            weights.write_bytes(b"")
        case "index":
            weights.unlink()
            index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
        case "missing tensor":
            rewrite_header(model, lambda header: header.pop(q))
        case "wrong shape":
            rewrite_header(model, lambda header: header[q].update(shape=[96, 384]))
        case "integers":
            rewrite_header(model, lambda header: header[q].update(dtype="I16"))
        case "architecture":
            change_config(model, architectures=["GPT2LMHeadModel"], model_type="gpt2")
        case "rope":
            change_config(model, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
        case "quantized":
            change_config(model, quantization_config={"quant_method": "awq"})
        case "window":
            change_config(model, sliding_window=64)
        case "tokenizer":
            (model / "tokenizer.model").unlink()
        case "no config":
            (model / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("bin", "safetensors are needed"), ("gguf", "safetensors are needed"),
        ("no weights", "no weights"), ("truncated", "cut short"), ("header beyond", "header"),
        ("header garbage", "header"), ("empty file", "cut short"), ("index", "which is not in"),
        ("missing tensor", "q_proj"), ("wrong shape", "[96, 384]"), ("integers", "I16"),
        ("architecture", "GPT2LMHeadModel"), ("rope", "yarn"), ("quantized", "awq"),
        ("window", "sliding"), ("tokenizer", "tokenizer"), ("no config", "config.json"),
    ],
)  # fmt: skip
def test_spoiled_models(mpirun, model, tmp_path, how, word):
    spoil(model, how)
    refused(generate(mpirun, model, folder=tmp_path / "cache"), 2, word)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.h5*"))


@pytest.mark.parametrize("command", [["generate", "-p", "A", "--no-echo"], ["perplexity"]])
def test_weights_that_are_no_numbers(mpirun, model, tmp_path, command):
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    at = json.loads(data[8 : 8 + length])["model.norm.weight"]["data_offsets"][0]
    data[8 + length + at + 10 : 8 + length + at + 12] = b"\xc0\x7f"  # NaN in bf16
    path.write_bytes(data)
    flags = ["--file", __file__] if command == ["perplexity"] else []
    process = run(mpirun, 2, *command, *flags, "--model", model, folder=tmp_path / "cache")
    refused(process, 1, "logits are not numbers", "weights of this checkpoint")


@pytest.mark.parametrize("ranks", [0, 3])
def test_no_such_model(mpirun, tmp_path, ranks):
    refused(generate(mpirun, tmp_path / "none", ranks=ranks), 2, "does not exist")
    (tmp_path / "file").touch()
    refused(generate(mpirun, tmp_path / "file", ranks=ranks), 2, "is a file")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--prompt", ""), "empty"),
        (("--prompt", "word " * 600), "context"),
        (("--prompt", "A", "--memory-window", "1"), "at least 2"),
        (("--prompt", "A", "--length", "-4"), "-4"),
        (("--prompt", "A", "--world_size", "4"), "mpirun -np"),
        (("--prompt-file", "/nowhere/at-all"), "can't be read"),
        (("--prompt", "A", "--save-dir", __file__), "must be a folder"),
    ],
)
def test_flags(mpirun, flags, word):
    refused(generate(mpirun, DEMO, *flags), 2, word)


def test_shards_of_another_partition_or_model(mpirun, model, tmp_path):
    folder = ["--save-dir", str(tmp_path / "shards")]
    assert run(mpirun, 2, "convert", "--model", DEMO, *folder).returncode == 0
    (tmp_path / "shards" / "shard-0-of-2.h5").rename(tmp_path / "shards" / "shard-0-of-3.h5")
    refused(
        generate(mpirun, DEMO, "-p", "A", *folder, ranks=3), 2, "number of ranks", "--split-bin"
    )
    (tmp_path / "shards" / "shard-0-of-3.h5").rename(tmp_path / "shards" / "shard-0-of-2.h5")
    change_config(model, rms_norm_eps=1e-3)
    refused(generate(mpirun, model, "-p", "A", *folder), 2, "fingerprint", "--split-bin")


def test_verify_finds_a_flipped_byte(mpirun, tmp_path):
    folder = ["--save-dir", str(tmp_path)]
    assert run(mpirun, 2, "convert", "--model", DEMO, *folder).returncode == 0
    path = tmp_path / "shard-1-of-2.h5"
    path.rename(tmp_path / "kept")
    shutil.copy(tmp_path / "shard-0-of-2.h5", path)  # whole, but another rank's
    refused(run(mpirun, 2, "verify", "--model", DEMO, *folder), 2, "is the shard of rank 0")
    (tmp_path / "kept").rename(path)
    shard = Shard(path)
    with path.open("r+b") as file:
        file.seek(shard["head"].offset + 77)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    shard.close()
    refused(run(mpirun, 2, "verify", "--model", DEMO, *folder), 1, "head", "rank 1", "--split-bin")
    refused(generate(mpirun, DEMO, "-p", "A", *folder), 1, "checksum", "--split-bin")
    assert generate(mpirun, DEMO, "-p", "A", *folder, "--split-bin").returncode == 0


def test_disk_full(mpirun, tmp_path):
    # After MPI has started, files can't grow beyond 1 MiB: the system answers as a full disk does.
    (tmp_path / "full.py").write_text(
        "import resource, signal\n"
        "from tpimpi import cli, launch\n"
        "start = launch.world\n"
        "def world():\n"
        "    found = start()\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "    return found\n"
        "launch.world = world\n"
        "cli.main()\n"
    )
    program = [sys.executable, tmp_path / "full.py"]
    flags = ["--model", DEMO, "--save-dir", tmp_path / "shards"]
    process = run(mpirun, 2, "convert", *flags, program=program)
    refused(process, 1, "GiB", "--save-dir")
    assert not list((tmp_path / "shards").iterdir())


@pytest.mark.parametrize(
    ("launcher", "word"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI's mpirun"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "4 processes"),
    ],
)
def test_a_launcher_of_another_mpi_is_told(launcher, word):
    if "Open MPI" in word and "Open MPI" in MPI.Get_library_version():
        pytest.skip("it is this MPI's own")
    environment = os.environ | launcher
    process = subprocess.run(
        [*TPIMPI, "generate", "--model", DEMO, "-p", "A"],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    refused(process, 1, word, "mpirun")


def test_an_mpi_library_that_is_not_there(tmp_path):
    process = subprocess.run(
        [*TPIMPI, "generate", "--model", DEMO, "-p", "A"], capture_output=True, text=True,
        timeout=60, check=False, env=os.environ | {"MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")},
    )  # fmt: skip
    refused(process, 1, str(tmp_path / "libmpi.so"), "correct or unset MPI4PY_LIBMPI")


def test_a_rank_that_fails_alone_takes_the_job_down(mpirun, tmp_path):
    # Rank 1 fails in the middle of the forward pass, while rank 0 waits in a sum.
    (tmp_path / "fail.py").write_text(
        "import sys\n"
        "from tpimpi import launch, cli\n"
        "launch.prepare(None)\n"
        "from tpimpi.engine import forward\n"
        "def broken(*arguments): raise OSError(5, 'Input/output error')\n"
        "if launch.launched_rank() == 1: forward.silu_gate = broken\n"
        "cli.main()\n"
    )
    process = generate(mpirun, DEMO, ranks=3, program=[sys.executable, tmp_path / "fail.py"])
    assert process.returncode != 0 and "Traceback" not in process.stderr
    assert "tpimpi: rank 1 on " in process.stderr and "Input/output error" in process.stderr


@pytest.mark.parametrize("ranks", [0, 3])
def test_interrupt(mpirun, ranks):
    launcher = [*mpirun, "-np", str(ranks)] if ranks else []
    process = subprocess.Popen(
        [*launcher, *TPIMPI, "perplexity", "--model", DEMO, "--file", __file__,
         "--memory-window", "2", "--prompt-chunk", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors


def test_other_code_on_another_rank(mpirun, tmp_path):
    (tmp_path / "other.py").write_text(
        "from tpimpi import cli, launch\n"
        "from tpimpi.comm import versions\n"
        "found = versions._sources()\n"
        "if launch.launched_rank() == 1: found['kernels/rope.py'] = 'edited'\n"
        "versions._sources = lambda: found\n"
        "cli.main()\n"
    )
    process = generate(mpirun, DEMO, program=[sys.executable, tmp_path / "other.py"])
    refused(process, 2, "rank 1 on", "kernels/rope.py differs")
