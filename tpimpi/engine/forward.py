"""The forward pass, in the order of the maths (Touvron et al. 2023, arXiv:2302.13971).

T tokens of any sequences, D hidden, H_loc / K_loc query and key/value heads of this rank, Hd head
size, F_loc MLP columns of this rank, V_loc vocabulary rows of this rank. Buffers are planned once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.engine.buffers import Buffers
from tpimpi.engine.kvcache import KVCache
from tpimpi.kernels.activation import silu_gate
from tpimpi.kernels.attention import append_kv, attention
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.norm import rmsnorm
from tpimpi.kernels.rope import rope, rope_tables
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition
from tpimpi.shards.shard import Shard
from tpimpi.tape.tape import Tape


@dataclass(frozen=True)
class Batch:
    """A flat, ragged batch: each token's position in its sequence, and its sequence's slot."""

    positions: np.ndarray  # int32 [T]
    slots: np.ndarray  # int32 [T]
    wanted: np.ndarray  # int32 [n]: the tokens whose logits are asked for


class Model:
    """This rank's part of the model, with buffers for batches of up to `max_tokens` tokens."""

    def __init__(
        self,
        group: Group,
        config: ModelConfig,
        partition: Partition,
        shard: Shard,
        tape: Tape,
        cache: KVCache,
        max_tokens: int,
        max_logits: int,
        threads: int,
    ):
        self.config, self.cache, self.max_tokens, self.max_logits = (
            config, cache, max_tokens, max_logits,
        )  # fmt: skip
        self._group, self._tape, self._shard, self._threads = group, tape, shard, threads
        mine = partition.ranks[group.rank]
        self._vocab_counts = [len(r.rows) for r in partition.ranks]
        self._heads, self._kv_heads = len(mine.q_heads), len(mine.kv_heads)
        self._kv_index = np.array(mine.kv_index, np.int32)  # [H_loc]
        self._inv_freq = config.inverse_frequencies()  # [Hd/2]
        names = [name for name in self._norm_names() if name]
        self._norms = {name: shard.widened(name) for name in names}  # [D] each
        self._encoding = {t.name: t.encoding for t in shard.tensors}
        self.buffers = Buffers.allocate(config, mine, max_tokens, max_logits)
        self.hidden = self.buffers.hidden  # [T, D]

    def _norm_names(self):
        for layer in range(self.config.num_layers):
            yield f"layers/{layer:02d}/attn/norm"
            yield f"layers/{layer:02d}/mlp/norm"
        yield "norm"

    def embed(self, ids: np.ndarray) -> None:
        """Read the tokens' rows of the embedding from the shard into `hidden` (rank 0)."""
        for t, token in enumerate(ids):
            self.hidden[t] = self._shard.widened("embed", slice(int(token), int(token) + 1))[0]

    def forward(self, batch: Batch) -> np.ndarray | None:
        """Run one pass over the tape (collective); return logits [n, V] on rank 0, else None.

        `hidden` [T, D] holds the embedded tokens on every rank. The result is valid until the next
        call.
        """
        tokens = len(batch.positions)
        x = self.hidden[:tokens]  # [T, D]
        self.cache.reserve(batch.positions, batch.slots)
        rope_tables(
            batch.positions, self._inv_freq, self.buffers.cos[:tokens], self.buffers.sin[:tokens]
        )
        last = self.config.num_layers - 1
        for layer in range(last):
            x += self._attend(layer, x, x, slice(None), batch)  # [T, D]
            x += self._feed_forward(layer, x)  # [T, D]
        # All tokens leave keys and values in the last layer, but only what is asked for goes on.
        asked, which = x, slice(None)
        if len(batch.wanted) != 1 or tokens != 1:
            asked, which = self.buffers.last[: len(batch.wanted)], batch.wanted
            np.take(x, which, axis=0, out=asked)  # [n, D]
        asked += self._attend(last, x, asked, which, batch)  # [n, D]
        asked += self._feed_forward(last, asked)  # [n, D]
        return self._head(asked)

    def _attend(
        self, layer: int, x: np.ndarray, asked: np.ndarray, which: slice | np.ndarray, batch: Batch
    ) -> np.ndarray:
        """Return the attention half of a layer, summed over all ranks [n, D].

        x [T, D] gives keys and values, asked [n, D] = x[which] the queries.
        """
        tokens, count, head_dim = len(x), len(asked), self.config.head_dim
        at = f"layers/{layer:02d}/attn"
        h = self._norm(f"{at}/norm", asked)  # [n, D]
        q = self._product(f"{at}/q_proj", h, self.buffers.q)  # [n, H_loc Hd]
        if asked is not x:
            h = self._norm(f"{at}/norm", x)  # [T, D]
        k = self._product(f"{at}/k_proj", h, self.buffers.k)  # [T, K_loc Hd]
        v = self._product(f"{at}/v_proj", h, self.buffers.v)  # [T, K_loc Hd]
        attended = self.buffers.attended[:count]  # [n, H_loc Hd]
        if self._heads:
            cos, sin = self.buffers.cos[:tokens], self.buffers.sin[:tokens]  # [T, Hd/2]
            q = q.reshape(count, self._heads, head_dim)  # [n, H_loc, Hd]
            k = k.reshape(tokens, self._kv_heads, head_dim)  # [T, K_loc, Hd]
            v = v.reshape(tokens, self._kv_heads, head_dim)  # [T, K_loc, Hd]
            rope(q, cos[which], sin[which], self._threads)
            rope(k, cos, sin, self._threads)
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            table, positions, slots = self.cache.page_table, batch.positions, batch.slots
            append_kv(k, v, keys, values, table, positions, slots, self._threads)
            attention(
                q, keys, values, table, positions[which], slots[which],
                attended.reshape(count, self._heads, head_dim), self._kv_index,
                np.float32(head_dim**-0.5), self._threads,
            )  # fmt: skip
        partial = self._product(f"{at}/o_proj", attended, self.buffers.partial)  # [n, D]
        self._group.allreduce(partial)  # 1st sum of the layer
        return partial

    def _feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        """Return the MLP half of a layer, summed over all ranks [T, D]."""
        at = f"layers/{layer:02d}/mlp"
        h = self._norm(f"{at}/norm", x)  # [T, D]
        gate = self._product(f"{at}/gate_proj", h, self.buffers.gate)  # [T, F_loc]
        up = self._product(f"{at}/up_proj", h, self.buffers.up)  # [T, F_loc]
        silu_gate(gate, up, self._threads)  # [T, F_loc]
        partial = self._product(f"{at}/down_proj", gate, self.buffers.partial)  # [T, D]
        self._group.allreduce(partial)  # 2nd sum of the layer
        return partial

    def _head(self, x: np.ndarray) -> np.ndarray | None:
        h = self._norm("norm", x)  # [n, D]
        logits_loc = self._product("head", h, self.buffers.logits_loc)  # [n, V_loc]
        if not len(x):
            return None
        logits = self.buffers.logits[: len(x)] if self._group.rank == 0 else None  # [n, V]
        self._group.gatherv_rows(logits_loc, logits, self._vocab_counts)
        return logits

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        out = self.buffers.normed[: len(x)]  # [T, D]
        rmsnorm(x, self._norms[name], self.config.rms_norm_eps, out, self._threads)
        return out

    def _product(self, name: str, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Multiply x [T, K] by the tape's next tensor [N, K], tile by tile, into out [:T, N].

        Without tokens the tensor only passes, as in a chunk of a prompt that no one asks about.
        """
        out = out[: len(x)]
        rows = 0
        for row, weights in self._tape.take(name):
            rows = row + len(weights)
            if len(x):
                matmul(x, weights, out[:, row:rows], self._threads, self._encoding[name])
        if rows == 0:
            out[...] = 0.0  # this rank owns no row, or no column, of the tensor
        return out
