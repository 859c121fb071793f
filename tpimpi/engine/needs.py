"""What one rank must hold to run a model, line by line: the memory account's entries."""

from __future__ import annotations

from tpimpi.engine.buffers import buffer_bytes
from tpimpi.engine.kvcache import PAGE_TOKENS, kept_window, page_bytes
from tpimpi.kernels import attention, matmul
from tpimpi.memory.account import Needs, Work
from tpimpi.memory.process import peak_bytes, resident_bytes
from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import RankCut
from tpimpi.model.tensors import Kind, pieces
from tpimpi.shards.layout import StoredTensor

SAMPLING_BYTES = 64  # for each token of the vocabulary, on rank 0: eight float64 at most


def needs_of(
    config: ModelConfig, mine: RankCut, tape: dict[str, StoredTensor], work: Work, threads: int,
    tokenizer: int = 0,
) -> Needs:  # fmt: skip
    """Return what a rank like this process needs; `tape` are its tensors in the order of use.

    `tokenizer` are the bytes that one has taken in this process; of the ranks only 0 has one.
    """
    blocks: dict[int, int] = {}
    small = 0  # norms and biases, as float32
    for piece in pieces(config, mine):
        if piece.tensor.kind is Kind.MATRIX:
            block = piece.tensor.block
            blocks[block] = blocks.get(block, 0) + tape[piece.name].nbytes
        elif piece.tensor.kind is not Kind.TABLE:
            small += 4 * piece.size
    leading = 0
    if mine.rank == 0:  # tokens are chosen in so many threads at once
        sampling = SAMPLING_BYTES * config.vocab_size * min(work.slots, threads)
        leading = sampling + work.beside
    columns = max((tensor.shape[1] for tensor in tape.values()), default=0)
    heads, kv_heads = len(mine.q_heads), len(mine.kv_heads)
    shape = (heads, kv_heads, config.head_dim, work.context, threads)
    scratch = 4 * max(  # kernels share it
        matmul.scratch_floats(work.prompt, columns, threads),
        *(attention.scratch_floats(tokens, *shape) for tokens in (1, work.prompt)),
    )
    one = buffer_bytes(config, mine, 1, 1)
    per_token = buffer_bytes(config, mine, 2, 1) - one
    per_logits = buffer_bytes(config, mine, 1, 2) - one
    return Needs(
        process=resident_bytes() - tokenizer, tokenizer=tokenizer if mine.rank == 0 else 0,
        peak=peak_bytes(),
        fixed=small + leading + scratch, per_token=per_token, per_logits=per_logits,
        logits=max(work.logits, 1),
        kv_page=page_bytes(config.num_layers, kv_heads, config.head_dim),
        page_tokens=PAGE_TOKENS, window=kept_window(config.windows), tensors=tuple(tape.values()),
        blocks=tuple(blocks[b] for b in sorted(blocks)),
    )  # fmt: skip
