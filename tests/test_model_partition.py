"""Everything is owned once, shares are kept, and nothing breaks where counts don't divide."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpimpi.model.config import ModelConfig
from tpimpi.model.partition import Partition, cut
from tpimpi.model.rope import RopeConfig
from tpimpi.model.tensors import pieces

CONFIG = ModelConfig(
    name="t", architecture="llama", num_layers=2, hidden_size=48, intermediate_size=75,
    num_heads=10, num_kv_heads=5, head_dim=12, vocab_size=1001, rms_norm_eps=1e-5,
    rope=RopeConfig("default", 12, 1e4), windows=(None, None), qkv_bias=False, output_bias=False,
    mlp_bias=False, qk_norm=False, max_positions=64, tie_word_embeddings=False, bos_token_id=1,
    eos_token_ids=(2,),
)  # fmt: skip
SHARES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(st.integers(0, 5000), SHARES, st.integers(1, 40))
def test_cut_covers_everything_once_and_in_proportion(count, shares, unit):
    runs = cut(count, shares, unit)
    assert [i for run in runs for i in run] == list(range(count))
    for run, share in zip(runs, shares, strict=True):
        assert abs(len(run) - count * share / sum(shares)) <= unit + (count % unit > 0) * unit
        assert run.start % unit == 0 or run.start == count


def test_cut_refuses_shares_without_a_sum():
    with pytest.raises(ValueError, match="positive sum"):
        cut(5, [0, 0])


@settings(max_examples=200)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 300), SHARES)
def test_heads_stay_with_their_kv_head(kv_heads, group, columns, shares):
    config = replace(
        CONFIG, num_kv_heads=kv_heads, num_heads=kv_heads * group, intermediate_size=columns
    )
    partition = Partition.of(config, shares)
    owned = [head for r in partition.ranks for head in r.q_heads]
    assert owned == list(range(config.num_heads))
    for r in partition.ranks:
        assert [r.kv_heads[i] for i in r.kv_index] == [head // group for head in r.q_heads]
        assert len(r.kv_heads) == len(set(r.kv_index))
        if len(shares) <= kv_heads:
            assert len(r.q_heads) == group * len(r.kv_heads)


@given(SHARES)
def test_pieces_cover_every_tensor(shares):
    partition = Partition.of(CONFIG, shares)
    rows, columns = {}, {}
    for mine in partition.ranks:
        for piece in pieces(CONFIG, mine):
            if piece.rows:
                rows[piece.source] = rows.get(piece.source, 0) + piece.shape[0]
            elif piece.columns:
                columns[piece.source] = columns.get(piece.source, 0) + piece.shape[1]
    for layer in range(2):
        at = f"model.layers.{layer}"
        assert rows[f"{at}.self_attn.q_proj.weight"] == 120
        assert rows[f"{at}.self_attn.k_proj.weight"] >= 60
        assert rows[f"{at}.mlp.gate_proj.weight"] == 75
        assert columns[f"{at}.self_attn.o_proj.weight"] == 120
        assert columns[f"{at}.mlp.down_proj.weight"] == 75
    assert rows["lm_head.weight"] == 1001


def test_equal_ranks_differ_by_one_unit():
    sizes = [len(run) for run in cut(5632, [1] * 3, 32)]
    assert max(sizes) - min(sizes) <= 32
