"""The programs compared, behind one interface: `prefill`, `step`, `step_of`, `reset`.

Each is given what its own makers would give it for this work: its fast path, no text, no sampling,
and of a prompt the logits of the last token only. Logits are read in place, without copies.
"""

from __future__ import annotations

import ctypes
import inspect

import numpy as np

ERROR = 4  # GGML_LOG_LEVEL_ERROR


class LlamaCpp:
    """llama.cpp, by its C interface; weights are mapped, which is its default."""

    def __init__(self, model: str, threads: int, prompt: int, context: int, flags: dict):
        import llama_cpp

        self._c = llama_cpp
        said: list[str] = []
        # Kept in an attribute: the library holds the pointer only.
        self._listener = llama_cpp.llama_log_callback(
            lambda level, text, data: said.append(text.decode()) if level == ERROR else None
        )
        llama_cpp.llama_log_set(self._listener, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        loading.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), loading)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {model}: {''.join(said).strip()}")
        running = llama_cpp.llama_context_default_params()
        running.n_ctx, running.n_batch, running.n_ubatch = context, prompt, min(512, prompt)
        running.n_threads = running.n_threads_batch = threads
        running.no_perf = True
        if flags["full_precision"]:  # by default keys and values, and more in attention, are f16
            running.type_k = running.type_v = llama_cpp.GGML_TYPE_F32
            running.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, running)
        if not self._context:
            raise RuntimeError(f"llama.cpp can't make a context of {context} tokens for {model}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Return the logits [V] after a prompt."""
        tokens = (self._c.llama_token * len(ids))(*ids)
        self._decode(self._c.llama_batch_get_one(tokens, len(ids)))
        logits = self._c.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab_size,))

    def step(self, token: int, position: int) -> np.ndarray:
        """Return the logits [V] after one more token."""
        return self.prefill([token])

    def step_of(self, ids: list[int], position: int) -> np.ndarray:
        """Return the logits [T, V] after each of T more tokens, computed in one pass."""
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for t, token in enumerate(ids):
            batch.token[t], batch.pos[t], batch.logits[t] = token, position + t, True
            batch.n_seq_id[t], batch.seq_id[t][0] = 1, 0
        try:
            self._decode(batch)
        finally:
            self._c.llama_batch_free(batch)
        logits = self._c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(ids), self._vocab_size))

    def _decode(self, batch) -> None:
        failed = self._c.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama.cpp's llama_decode returned {failed}")

    def reset(self) -> None:
        """Forget all tokens."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)


class Transformers:
    """Transformers in float32; with `memory` bytes, the rest offloaded to disk by Accelerate."""

    def __init__(self, model: str, threads: int, prompt: int, context: int, flags: dict):
        import torch
        import transformers

        self._torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        offload = {}
        if flags.get("memory"):
            import accelerate  # noqa: F401 - Transformers needs it for a device map

            offload = {
                "device_map": "auto",
                "max_memory": {"cpu": flags["memory"]},
                "offload_folder": flags["folder"],
            }
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, **offload
        ).eval()
        self._new_cache = lambda: transformers.DynamicCache(config=self._model.config)
        takes = inspect.signature(type(self._model).forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # the older name
        self.reset()

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Return the logits [V] after a prompt."""
        return self._forward(ids, 1)[0]

    def step(self, token: int, position: int) -> np.ndarray:
        """Return the logits [V] after one more token."""
        return self.prefill([token])

    def step_of(self, ids: list[int], position: int) -> np.ndarray:
        """Return the logits [T, V] after each of T more tokens, computed in one pass."""
        return self._forward(ids, len(ids))

    def _forward(self, ids: list[int], count: int) -> np.ndarray:
        """Return the logits [n, V] after the last n tokens."""
        given = self._torch.tensor([ids])  # [1, T]
        cache = {self._cache_name: self._cache, "use_cache": True}
        return self._model(given, **cache, logits_to_keep=count).logits[0].numpy()

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache = self._new_cache()


class Tpimpi:
    """This project's passes, on rank 0; the other ranks serve."""

    def __init__(self, runner):
        self._runner = runner

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Return the logits [V] after a prompt."""
        return self._runner.prefill(ids)

    def step(self, token: int, position: int) -> np.ndarray:
        """Return the logits [V] after one more token."""
        return self._runner.step([token], [position], [0], [0])[0]

    def step_of(self, ids: list[int], position: int) -> np.ndarray:
        """Return the logits [T, V] after each of T more tokens, computed in one pass."""
        count = len(ids)
        return self._runner.step(ids, range(position, position + count), [0] * count, range(count))

    def reset(self) -> None:
        """Forget all tokens."""
        self._runner.pages.release(0)


def run_tpimpi(
    model: str, threads: int, prompt: int, context: int, flags: list[str], logits: int, measure
) -> dict | None:
    """Load this rank's shard, call `measure(Tpimpi)` on rank 0 and return what it returns.

    `prompt` are the most tokens of a pass, `logits` the most that one asks the logits of.
    `peak_bytes` of the result is the sum over all ranks. Collective; None on other ranks.
    """
    from tpimpi import launch
    from tpimpi.commands.command_line import parse

    options = parse(["generate", "--model", model, "--prompt", "-", *flags]).options
    threads = launch.prepare(threads)
    world = launch.world()
    from tpimpi.comm.group import Group
    from tpimpi.engine.session import load_session
    from tpimpi.memory.account import Work
    from tpimpi.shards.source import Source

    group = Group(world)
    source = Source(group, model)
    shard, _ = source.shard(group)
    work = Work(prompt, context, logits=logits)
    session = load_session(group, source, shard, options.memory, work, threads)
    result = None
    with session:
        if group.rank == 0:
            result = measure(Tpimpi(session.runner))
        ranks = session.finish()
    if group.rank == 0:
        result["peak_bytes"] = sum(rank.peak_memory_bytes for rank in ranks)
    group.close()
    return result
