"""A model on the Hugging Face hub: found in the cache, fetched from a small server on loopback."""

import hashlib
import importlib.util
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hub_server import (
    COMMIT,
    NAME,
    SHARDED,
    WEIGHTS,
    Hub,
    demo_files,
    own_cache,
    sharded_files,
    snapshot,
)  # fmt: skip
from program import DEMO, output, run
from tpimpi.checkpoint.download import small_files, weights_of
from tpimpi.checkpoint.hub import cached_directory, local_directory
from tpimpi.checkpoint.hub_cache import HubId, hub_cache
from tpimpi.checkpoint.weights import Checkpoint
from tpimpi.errors import MachineError, UserError
from tpimpi.model.config import ModelConfig
from tpimpi.model.directory import read_configs

GOOD = (DEMO / WEIGHTS).read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def hub(home, monkeypatch):
    with Hub({NAME: demo_files(), SHARDED: sharded_files()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def without_library(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "huggingface_hub" else found(name)
    )


def test_what_names_a_model_on_the_hub():
    assert HubId.of("meta-llama/Llama-3.2-1B") == HubId("meta-llama/Llama-3.2-1B", "main")
    for revision in ("v1.0", "refs/pr/1", COMMIT, "main"):
        assert HubId.of(f"a/b@{revision}") == HubId("a/b", revision)
    for path in (
        "none", "./a", "./a/b", "~/a", "/a/b", "a/b/c", "a/", "a//b", "../a", "a/..", "a b/c",
        "a/b@", "a/b@../../x", "a/b@/etc", "a/b@x/..", "a/b.gguf", "a--b/c", "ä/b", "a/b\n", "",
        "a/b\0", "a/model.safetensors",
    ):  # fmt: skip
        assert HubId.of(path) is None, path


def test_the_cache_is_where_the_environment_says(monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub_cache() == Path("/xdg/huggingface/hub")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub_cache() == Path("/home/me/.cache/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert hub_cache() == Path("/home/me/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/cache")
    assert hub_cache() == Path("/home/me/cache")


def test_what_is_in_the_cache_needs_neither_network_nor_library(home, without_library, monkeypatch):
    directory = snapshot(home)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_directory(NAME) == cached_directory(NAME) == directory
    assert local_directory(f"{NAME}@{COMMIT}") == directory
    assert ModelConfig.from_directory(directory).name == "Demo-1.9M"
    with pytest.raises(UserError, match="@v1 is no directory here and not in the hub's cache"):
        local_directory(f"{NAME}@v1")
    with pytest.raises(UserError, match="neither a directory nor in the hub's cache"):
        cached_directory("some-lab/other")


def test_a_directory_goes_first(home, tmp_path, monkeypatch):
    snapshot(home)
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    assert local_directory(NAME) == Path(NAME)


def test_a_mistyped_path_is_told_as_one(home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is to be asked
    for path in ("none", "./a/b", "~/a", "a/b/c", "/none/b", Path("a/b")):
        with pytest.raises(UserError, match="does not exist; "):
            read_configs(local_directory(path))


def test_what_forbids_to_ask_the_hub_is_told(home, without_library, monkeypatch):
    with pytest.raises(UserError, match=r"no directory here and not in .*pip install 'tpimpi\[hub"):
        local_directory(NAME)
    snapshot(home, leave_out=[WEIGHTS])
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    says = "only a part of it is in the hub's cache .*no weights.*HF_HUB_OFFLINE forbids.*unset it"
    with pytest.raises(UserError, match=says):
        local_directory(NAME)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with pytest.raises(UserError, match="TRANSFORMERS_OFFLINE forbids"):
        local_directory(NAME)


def test_only_what_is_needed_is_fetched():
    model = HubId(NAME)
    names = [
        "config.json", "tokenizer.json", "vocab.bin", "original/tokenizer.model",
        "chat_template.jinja", "additional_chat_templates/tools.jinja",
        "additional_chat_templates/a/b.jinja",
    ]  # fmt: skip
    assert small_files(names) == [names[0], names[1], names[4], names[5]]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weights_of(model, [*shards, WEIGHTS], None) == [WEIGHTS]
    assert weights_of(model, [*shards, "consolidated.safetensors"], None) == shards
    assert weights_of(model, [*shards, "x.safetensors"], ["x.safetensors"]) == ["x.safetensors"]
    for have, indexed, says in (
        (shards[:1], shards, "has no model-00002.*which its model.safetensors.index.json names"),
        (
            ["pytorch_model.bin"],
            None,
            "has its weights in pytorch_model.bin, but model.safetensors",
        ),
        (["adapter_config.json", "adapter_model.safetensors"], None, "is an adapter, not a model"),
        (["README.md"], None, "has no weights"),
    ):
        with pytest.raises(UserError, match=says):
            weights_of(model, have, indexed)


def test_a_model_is_fetched_once(hub, home, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated = "hf_secret"
    directory = local_directory(NAME)
    said = capfd.readouterr().err
    assert f"downloading {NAME}, 3.6 MiB in 5 files, from {hub.endpoint} into {home}" in said
    assert "hf_secret" not in said
    assert sorted(p.name for p in directory.iterdir()) == sorted(p.name for p in DEMO.iterdir())
    assert all((directory / p.name).read_bytes() == p.read_bytes() for p in DEMO.iterdir())
    asked = len(hub.asked)
    assert local_directory(NAME) == directory and len(hub.asked) == asked
    # The hub's own library finds it, too.
    code = (
        f"import huggingface_hub as h; print(h.snapshot_download({NAME!r}, local_files_only=True, "
    )
    code += "allow_patterns=['config.json', '*.safetensors']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == directory


def test_the_library_stays_out_of_this_process(hub):
    script = "import sys\nfrom tpimpi.checkpoint.hub import local_directory\n"
    script += f"local_directory({NAME!r}); print('huggingface_hub' in sys.modules)"
    assert output(run([], 0, program=[sys.executable, "-c", script])) == "False\n"
    assert HubId(NAME).snapshot()


def test_shards_and_revisions_are_fetched(hub):
    directory = local_directory(f"{SHARDED}@refs/pr/1")
    shards = sorted(name for name in hub.repositories[SHARDED] if name.startswith("model"))
    assert sorted(p.name for p in directory.glob("model*")) == shards
    Checkpoint(directory, ModelConfig.from_directory(directory)).close()
    assert HubId.of(f"{SHARDED}@refs/pr/1").reference.read_text() == COMMIT
    assert HubId.of(SHARDED).snapshot() is None
    with pytest.raises(UserError, match=f"{NAME} on {hub.endpoint} has no revision v9; name a"):
        local_directory(f"{NAME}@v9")


def test_what_cant_be_read_is_told(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    says = "some-lab/Dome is neither a directory here nor a model on .*without a token; correct its"
    with pytest.raises(UserError, match=f"{says} name or, .*gated, ask for access .*HF_TOKEN"):
        local_directory("some-lab/Dome")
    hub.gated = "hf_right"
    says = "gated on .* without a token it can't be read; ask for access at http.*/{}, and set HF_T"
    with pytest.raises(UserError, match=says.format(NAME)):
        local_directory(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="gated on .* with your token it can't be read"):
        local_directory(NAME)


def test_what_is_no_model_is_told(hub):
    del hub.repositories[NAME][WEIGHTS]
    with pytest.raises(UserError, match="has its weights in pytorch_model.bin, but model.safetens"):
        local_directory(NAME)
    del hub.repositories[NAME]["config.json"]
    with pytest.raises(UserError, match="has no config.json; it is no model to run"):
        local_directory(NAME)
    del hub.repositories[SHARDED]["tokenizer.model"]
    with pytest.raises(UserError, match="is no whole model: .* has no tokenizer"):
        local_directory(SHARDED)


def test_a_small_disk_is_told_before_anything_is_fetched(hub):
    hub.sizes[WEIGHTS] = 1 << 60
    with pytest.raises(
        MachineError, match="needs 1073741824.* GiB more in .*, and its disk has .* free"
    ):
        local_directory(NAME)
    assert not hub.received(WEIGHTS)


def test_a_network_that_is_away_is_told(home, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(MachineError, match="is no directory here, and http.* can't be reached"):
            local_directory(NAME)


def test_a_hub_that_fails_is_told(hub):
    hub.commit = "../../etc"
    with pytest.raises(MachineError, match="gives some-lab.* the commit '../../etc', no hash"):
        local_directory(NAME)
    hub.commit, hub.status[""] = COMMIT, 500
    with pytest.raises(MachineError, match="answered with status 500 .*; try again later: the s"):
        local_directory(NAME)
    for model, name in ((NAME, WEIGHTS), (SHARDED, "config.json")):
        for status, says in (
            (404, "has lost a file of .* that it lists"),
            (400, "with status 400"),
        ):
            hub.status = {name: status}
            with pytest.raises(MachineError, match=says):
                local_directory(model)


def test_a_cache_that_cant_be_written_is_told(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(MachineError, match="hub's cache can't be written.*set HF_HUB_CACHE"):
        local_directory(NAME)


def test_a_lost_connection_is_taken_up_again(hub):
    hub.cut[WEIGHTS] = 1_500_000
    directory = local_directory(NAME)
    assert (directory / WEIGHTS).read_bytes() == GOOD
    starts = [int(part[6:-1]) for part in hub.received(WEIGHTS)[1:]]
    assert len(starts) >= 2 and starts[0] > 0 and starts == sorted(set(starts))


def test_a_file_on_another_host_is_fetched_without_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.split, hub.cut[WEIGHTS], hub.cuts = True, 1_500_000, 1
    assert (local_directory(NAME) / WEIGHTS).read_bytes() == GOOD
    assert hub.tokens == {"hf_secret"} and hub.elsewhere and not hub.leaked
    assert any(part for part in hub.received(WEIGHTS))  # it went on there, too


def test_another_start_goes_on(hub):
    part = HubId(NAME).folder / "blobs" / f"{hashlib.sha256(GOOD).hexdigest()}.incomplete"
    script = f"from tpimpi.checkpoint.hub import local_directory as d; print(d({NAME!r}))"
    hub.pace = threading.Event()
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        end = time.monotonic() + 30
        while not part.exists() or part.stat().st_size < 1 << 20:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
    hub.pace.set()
    hub.pace = None
    assert HubId(NAME).snapshot() is None  # half a model is none
    first = len(hub.received(WEIGHTS))
    directory = local_directory(NAME)
    assert (directory / WEIGHTS).read_bytes() == GOOD
    assert hub.received(WEIGHTS)[first:] == [f"bytes={1 << 20}-"]


def test_a_hub_that_gives_no_parts_gives_the_whole(hub):
    hub.cut[WEIGHTS], hub.cuts, hub.ranges = 1_500_000, 1, False
    assert (local_directory(NAME) / WEIGHTS).read_bytes() == GOOD


def test_other_content_than_the_hub_says_is_not_used(hub):
    hub.content[WEIGHTS] = GOOD[:-1] + b"x"
    with pytest.raises(MachineError, match="came with another content .*SHA-256 differs.*again"):
        local_directory(NAME)
    for bad in (GOOD[:-1], GOOD + b"x"):
        hub.content[WEIGHTS] = bad
        says = f"{WEIGHTS} of {NAME} came with {len(bad)} bytes and must have {len(GOOD)}; the same"
        with pytest.raises(MachineError, match=says):
            local_directory(NAME)
    hub.content.clear()
    assert (local_directory(NAME) / WEIGHTS).read_bytes() == GOOD
