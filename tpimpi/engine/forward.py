"""The forward pass, in the order of the maths (Touvron et al. 2023, arXiv:2302.13971).

T tokens of any sequences, n of them selected, D hidden, H_loc / K_loc query and key/value heads of
this rank, Hd head size, F_loc MLP columns of this rank, V_loc vocabulary rows of this rank. Buffers
are planned once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpimpi.comm.group import Group
from tpimpi.engine.buffers import Buffers
from tpimpi.engine.kvcache import KVCache
from tpimpi.engine.layers import Layer, Projection, layers_of, projection
from tpimpi.engine.step import StepMessage
from tpimpi.errors import MachineError, describe
from tpimpi.kernels.activation import silu_gate
from tpimpi.kernels.append import append_kv
from tpimpi.kernels.attention import attention
from tpimpi.kernels.matmul import matmul
from tpimpi.kernels.norm import rmsnorm
from tpimpi.kernels.rope import rope, rope_tables
from tpimpi.model.config import ModelConfig
from tpimpi.model.encoding import ROWS
from tpimpi.model.partition import Partition
from tpimpi.shards.shard import Shard
from tpimpi.tape.tape import Tape


@dataclass(frozen=True)
class Batch:
    """A flat, ragged batch: where each token stands, and which ones are asked for logits."""

    positions: np.ndarray  # int32 [T]: in its sequence
    slots: np.ndarray  # int32 [T]: of its sequence
    pages: np.ndarray  # int32 [T]: to which its keys and values are written
    lengths: np.ndarray  # int32 [T]: of its sequence, as far as known when the token came
    selected: np.ndarray  # int32 [n]: the tokens whose logits are asked for


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
        self._inv_freq = config.rope.inverse_frequencies()  # [Hd/2]
        self._layers = layers_of(config, shard)
        self._norm_weight = shard.widened("norm")  # [D]
        self._head_projection = projection(shard, "head")
        self.buffers = Buffers.allocate(config, mine, max_tokens, max_logits)
        self.message = StepMessage(self.buffers.message, max_tokens, config.hidden_size)
        self.hidden = self.message.hidden  # [T, D]
        self.failure: Exception | None = None  # the first product's that had no weights

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
        self.cache.place(batch.positions, batch.slots, batch.pages)
        cos, sin = self.buffers.cos[:tokens], self.buffers.sin[:tokens]  # [T, Hd/2]
        rope_tables(
            batch.positions, self._frequencies(batch), cos, sin, self.config.rope.attention_factor
        )
        *inner, last = self._layers
        for layer in inner:
            x += self._attend(layer, x, x, slice(None), batch)  # [T, D]
            x += self._feed_forward(layer, x)  # [T, D]
        # All tokens leave keys and values in the last layer, but only selected ones go on.
        chosen, selection = x, slice(None)
        if len(batch.selected) != 1 or tokens != 1:
            chosen, selection = self.buffers.last[: len(batch.selected)], batch.selected
            np.take(x, selection, axis=0, out=chosen)  # [n, D]
        chosen += self._attend(last, x, chosen, selection, batch)  # [n, D]
        chosen += self._feed_forward(last, chosen)  # [n, D]
        return self._head(chosen)

    def _frequencies(self, batch: Batch) -> np.ndarray:
        """Return RoPE's inverse frequencies [Hd/2], or each token's own [T, Hd/2].

        Those of type `dynamic` follow the length of the text, but a key that was once turned stays
        as it is. So each token has those of the length that was known when it came.
        """
        if self.config.rope.kind != "dynamic":
            return self._inv_freq
        lengths, tokens = np.unique(batch.lengths, return_inverse=True)
        tables = [self.config.rope.inverse_frequencies(int(n)) for n in lengths]
        return np.stack(tables)[tokens]

    def _attend(
        self, layer: Layer, x: np.ndarray, chosen: np.ndarray, selection: slice | np.ndarray,
        batch: Batch,
    ) -> np.ndarray:  # fmt: skip
        """Return the attention half of a layer, summed over all ranks [n, D].

        x [T, D] gives keys and values, chosen [n, D] = x[selection] the queries.
        """
        tokens, count, head_dim = len(x), len(chosen), self.config.head_dim
        q, k, v = self.buffers.q, self.buffers.k, self.buffers.v
        h = self._norm(layer.attention_norm, chosen)  # [n, D]
        if chosen is x:
            q, k, v = self._project((layer.q, layer.k, layer.v), h, (q, k, v))  # [T, . Hd]
        else:
            (q,) = self._project((layer.q,), h, (q,))  # [n, H_loc Hd]
            h = self._norm(layer.attention_norm, x)  # [T, D]
            k, v = self._project((layer.k, layer.v), h, (k, v))  # [T, K_loc Hd]
        attended = self.buffers.attended[:count]  # [n, H_loc Hd]
        if self._heads:
            self._norm_heads(layer.q_norm, q)
            self._norm_heads(layer.k_norm, k)
            cos, sin = self.buffers.cos[:tokens], self.buffers.sin[:tokens]  # [T, Hd/2]
            q = q.reshape(count, self._heads, head_dim)  # [n, H_loc, Hd]
            k = k.reshape(tokens, self._kv_heads, head_dim)  # [T, K_loc, Hd]
            v = v.reshape(tokens, self._kv_heads, head_dim)  # [T, K_loc, Hd]
            rope(q, cos[selection], sin[selection], self._threads)
            rope(k, cos, sin, self._threads)
            keys, values = self.cache.keys[layer.index], self.cache.values[layer.index]
            table, positions, slots = self.cache.page_table, batch.positions, batch.slots
            append_kv(k, v, keys, values, table, positions, slots, self._threads)
            attention(
                q, keys, values, table, positions[selection], slots[selection],
                attended.reshape(count, self._heads, head_dim), self._kv_index,
                np.float32(head_dim**-0.5), self._threads, layer.window,
            )  # fmt: skip
        partial = self._product(layer.o, attended, self.buffers.partial)  # [n, D]
        self._group.allreduce(partial)  # 1st sum of the layer
        return layer.o.add_bias(partial)

    def _feed_forward(self, layer: Layer, x: np.ndarray) -> np.ndarray:
        """Return the MLP half of a layer, summed over all ranks [T, D]."""
        h = self._norm(layer.mlp_norm, x)  # [T, D]
        gate, up = self._project(
            (layer.gate, layer.up), h, (self.buffers.gate, self.buffers.up)
        )  # [T, F_loc]
        silu_gate(gate, up, self._threads)  # [T, F_loc]
        partial = self._product(layer.down, gate, self.buffers.partial)  # [T, D]
        self._group.allreduce(partial)  # 2nd sum of the layer
        return layer.down.add_bias(partial)

    def _head(self, x: np.ndarray) -> np.ndarray | None:
        h = self._norm(self._norm_weight, x)  # [n, D]
        logits_loc = self._product(self._head_projection, h, self.buffers.logits_loc)  # [n, V_loc]
        if not len(x):
            return None
        logits = self.buffers.logits[: len(x)] if self._group.rank == 0 else None  # [n, V]
        self._group.gatherv_rows(logits_loc, logits, self._vocab_counts)
        return logits

    def _norm(self, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = self.buffers.normed[: len(x)]  # [T, D]
        rmsnorm(x, weight, self.config.rms_norm_eps, out, self._threads)
        return out

    def _norm_heads(self, weight: np.ndarray | None, x: np.ndarray) -> None:
        """Normalize each head of x [T, H Hd] in place, where the model does (Qwen 3)."""
        if weight is not None:
            heads = x.reshape(-1, self.config.head_dim)  # [T H, Hd]
            rmsnorm(heads, weight, self.config.rms_norm_eps, heads, self._threads)

    def _project(
        self, matrices: Sequence[Projection], x: np.ndarray, outs: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Multiply x [T, K] by this rank's rows of matrices and add their biases: [T, N_loc] each.

        Those that lie in memory are multiplied in one call.
        """
        kept = self._kept(matrices) if len(x) else None
        if kept is None:
            outs = [self._product(m, x, out) for m, out in zip(matrices, outs, strict=True)]
        else:
            outs = [out[: len(x)] for out in outs]
            pairs = list(zip(kept, outs, strict=True))
            matmul(x, pairs, self._threads, matrices[0].encoding)
        return [matrix.add_bias(out) for matrix, out in zip(matrices, outs, strict=True)]

    def _kept(self, matrices: Sequence[Projection]) -> list[np.ndarray] | None:
        """Take the tape's next matrices at once where all lie in memory, in the same encoding."""
        if self.failure is not None or len({matrix.encoding for matrix in matrices}) > 1:
            return None
        try:
            return self._tape.take_kept([matrix.name for matrix in matrices])
        except Exception as error:
            self.failure = error
            return None

    def _product(self, matrix: Projection, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Multiply x [T, K] by the tape's next matrix [N, K], tile by tile, into out [:T, N].

        Without tokens the matrix only passes, as in a chunk of a prompt that no one asks about.
        After a failure, out is NaN: the other ranks wait in the sums of this pass, and so rank 0
        learns from its logits that there is one.
        """
        out = out[: len(x)]
        rows = 0
        try:
            for row, panels in self._tape.take(matrix.name) if self.failure is None else ():
                rows = min(row + len(panels) * ROWS, out.shape[1])
                if len(x):
                    matmul(x, [(panels, out[:, row:rows])], self._threads, matrix.encoding)
        except (OSError, MemoryError) as error:
            self.failure = MachineError(describe(error))
        except Exception as error:
            self.failure = error
        if rows == 0:
            out[...] = 0.0  # this rank owns no row, or no column, of the matrix
        if self.failure is not None:
            out[...] = np.nan
        return out
