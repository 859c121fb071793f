"""The comparison with other programs: what it needs none of them for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from peers import child  # noqa: E402
from peers.cap import Cap, CapUnavailable, forget_cached  # noqa: E402
from peers.gguf_file import interleaved  # noqa: E402
from peers.lineup import WORKER, Program, numbers_a_token  # noqa: E402
from peers.results import agreement, rows_of  # noqa: E402
from peers.table import metrics, render  # noqa: E402
from peers.worker import STEPS, context_of, measure  # noqa: E402
from program import DEMO  # noqa: E402
from tpimpi.bench.workload import Pass, work_of  # noqa: E402
from tpimpi.model.partition import Partition  # noqa: E402
from tpimpi.model.shapes import shape_config  # noqa: E402


def row(label, **figures):
    return {"label": label, "figures": figures, "failed": "", "ours": False}


def test_table_shows_losses_like_wins():
    ours = row("ours", first_64=1.0, decode=0.1, of_memory=0.9, step=0.2, peak=1 << 20)
    slower = row("slower", first_64=2.0, decode=0.15, of_memory=0.6, step=0.5, peak=3 << 20)
    faster = row("faster", first_64=0.5, decode=0.05, peak=None)
    dead = row("dead") | {"failed": "killed, out of memory"}
    lines = render([ours, slower, faster, dead], metrics([64], 8), ours).splitlines()
    assert "step of 8 tokens" in lines[0]
    assert lines[4].split() == (
        ["slower", "2.000", "2.00", "150.0", "1.50", "0.60", "500.0", "2.50", "3", "3.00"]
    )  # fmt: skip
    assert lines[5].split() == ["faster", "0.500", "0.50", "50.0", "0.50", *"-----"]
    assert lines[6] == "dead     killed, out of memory"
    assert len({len(line) for line in lines[2:5]}) == 1


class Counting:
    """A program whose likeliest id after each token is the number of tokens so far."""

    def __init__(self, vocab_size):
        self.tokens, self.most, self.steps = 0, 0, []
        self._rows = np.eye(vocab_size, dtype=np.float32)  # [V, V]

    def _take(self, count):
        self.tokens += count
        self.most = max(self.most, self.tokens)
        return self._rows[self.tokens - count + 1 : self.tokens + 1]  # [T, V]

    def prefill(self, ids):
        return self._take(len(ids))[-1]

    def step(self, token, position):
        assert position == self.tokens
        return self._take(1)[0]

    def step_of(self, ids, position):
        assert position == self.tokens
        self.steps.append(len(ids))
        return self._take(len(ids))

    def reset(self):
        self.tokens = 0


@pytest.mark.parametrize("prompts, tokens, step", [([3], 4, 5), ([20, 6], 3, 8), ([90, 7], 2, 0)])
def test_steps_follow_the_decoded_tokens(prompts, tokens, step):
    program, vocab_size = Counting(128), 128
    settings = {"prompts": prompts, "tokens": tokens, "step": step, "vocab_size": vocab_size}
    result = measure(program, settings)
    assert program.steps == ([step] * (1 + STEPS) if step else [])  # the first warms up
    assert len(result["step_seconds"]) == (STEPS if step else 0)
    end = min(prompts) + tokens + STEPS * step
    assert result["ids"] == list(range(min(prompts), end + 1))
    assert context_of(settings) == program.most


def test_rows_have_the_median_step_of_all_rounds_where_there_are_steps():
    programs = [Program("ours", "tpimpi", "tpimpi", "", 1), Program("other", "", "", "", 1)]
    result = {"first_seconds": {"4": 1.0}, "token_seconds": [0.5], "peak_bytes": 1, "ids": [1]}
    rounds = [result | {"step_seconds": seconds} for seconds in ([1.0, 9.0], [2.0, 3.0, 8.0])]
    found = {"ours": rounds, "other": [result | {"step_seconds": []}]}
    ours, other = rows_of(programs, found, None)
    assert ours["figures"]["step"] == 3.0 and ours["spread"]["step"] == [1.0, 9.0]
    assert "step" not in other["figures"]


def worker(kind, flags, logits):
    """Return what a worker measures on the demo model: a step of 8 tokens among it."""
    settings = {
        "program": kind, "model": str(DEMO), "threads": 1, "flags": flags, "prompts": [12, 5],
        "tokens": 3, "step": 8, "logits": str(logits), "vocab_size": 1024, "parent": os.getpid(),
    }  # fmt: skip
    result = child.run([sys.executable, str(WORKER), json.dumps(settings)], 120)
    assert "ids" in result, result
    return result


def test_ours_and_transformers_agree_on_every_token_of_a_step(tmp_path):
    pytest.importorskip("transformers")
    programs = [Program("ours", "tpimpi", "tpimpi", "", 1),
                Program("other", "transformers", "transformers", "", 1)]  # fmt: skip
    found = {
        program.label: [worker(program.kind, flags, tmp_path / f"{program.label}.npy")]
        for program, flags in zip(programs, (["--disable-memory-schedule"], {}), strict=True)
    }
    (agreed,) = agreement(programs, found, tmp_path)
    assert agreed["same_ids"] == agreed["of"] == 1 + 3 + 8 * STEPS
    assert agreed["logits_apart"] < 1e-3
    assert all(len(results[0]["step_seconds"]) == STEPS for results in found.values())


def test_weights_of_a_token_are_those_that_bench_counts():
    config = shape_config("tiny")  # its panels are padded
    work = work_of([Pass(1, 0, 1)], config, Partition.of(config, [1]), "bf16", [0])
    keys_values = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
    padding = 9 * config.hidden_size  # of the head's 1031 rows, in panels of 16
    assert 2 * (numbers_a_token(config) + padding) == work.memory_bytes.sum() - keys_values


def test_interleaved_pairs_turn_together():
    heads, half, columns = 3, 4, 5
    rows = np.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    found = interleaved(rows, heads)
    for head in range(heads):
        for i in range(half):
            at = head * 2 * half
            np.testing.assert_array_equal(found[at + 2 * i], rows[at + i])
            np.testing.assert_array_equal(found[at + 2 * i + 1], rows[at + i + half])


def python(code):
    return [sys.executable, "-c", code]


def test_child_gives_its_last_object():
    assert child.run(python("print('noise'); print('{\"a\": 1}')"), 60) == {"a": 1}


def test_child_that_fails_says_why():
    result = child.run(python("raise SystemExit('no such thing')"), 60)
    assert result["failed"] == "exit code 1: no such thing"


def test_child_out_of_time_takes_its_children_along(tmp_path):
    mark = tmp_path / "alive"
    beat = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(.05)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {beat!r}])"
    result = child.run(python(f"{code}; time.sleep(600)"), 3)
    assert result["failed"] == "no result within 3 s"
    last = mark.stat().st_mtime
    time.sleep(0.5)
    assert mark.stat().st_mtime == last


def test_forgotten_files_are_not_cached(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert forget_cached([path]) <= 1
    assert path.stat().st_size == 1 << 20


def test_cap_kills_what_wants_more():
    try:
        with Cap(60_000_000) as group:
            folder = Path(group.prefix()[-1]).parent
            code = "x = b'x' * 10**8; print('{}')"
            assert child.run(python(code), 60, group) == {"failed": "killed, out of memory"}
            peak = group.peak_bytes()
    except CapUnavailable as error:
        pytest.skip(str(error))
    assert peak is None or 30_000_000 < peak <= 60_000_000
    assert not folder.exists()


def test_cap_leaves_nothing_behind_when_interrupted():
    try:
        with pytest.raises(KeyboardInterrupt), Cap(200_000_000) as group:
            folder = Path(group.prefix()[-1]).parent
            left = "import subprocess; subprocess.Popen(['setsid', 'sleep', '600']); print('{}')"
            subprocess.run([*group.prefix(), *python(left)], check=True, stdout=subprocess.DEVNULL)
            assert (folder / "cgroup.procs").read_text().split()
            raise KeyboardInterrupt
    except CapUnavailable as error:
        pytest.skip(str(error))
    assert not folder.exists()


def test_version_2_without_memory_controller_is_refused(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    (tmp_path / "mine").mkdir()
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    membership = tmp_path / "membership"
    membership.write_text("0::/mine\n")
    with pytest.raises(CapUnavailable, match="hands the memory controller down"):
        Cap(1, tmp_path, membership)


def test_version_2_takes_the_nearest_cgroup_that_has_limits(tmp_path):
    root, membership = tmp_path / "root", tmp_path / "membership"
    (root / "user" / "shell").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("memory")
    for folder in (root, root / "user"):
        (folder / "cgroup.subtree_control").write_text("memory")
    membership.write_text("0::/user/shell\n")
    with Cap(12345, root, membership) as group:
        folder = Path(group.prefix()[-1]).parent
        assert folder.parent == root / "user"
        assert (folder / "memory.max").read_text() == "12345"
        (folder / "memory.peak").write_text("99\n")
        (folder / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1\n")
        assert (group.peak_bytes(), group.oom_kills()) == (99, 2)
        for path in folder.iterdir():  # in a true cgroup the files go with the folder
            path.unlink()
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.procs").chmod(0o600)
        group.kill()
        (folder / "cgroup.procs").unlink()
        group.kill = lambda: None
    assert not folder.exists()
