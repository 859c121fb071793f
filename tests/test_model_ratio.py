"""What --ratio says, the folders of its cuts, and partitions as shards tell them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpimpi.errors import UserError
from tpimpi.model.partition import Partition, partition_key, shares_of_key
from tpimpi.model.ratio import AUTO, lowest_terms, parse_ratio, shares_of, spelled
from tpimpi.model.shapes import shape_config

SHARES = st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any)


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("3,2,2,1", (3, 2, 2, 1)), ("6,4", (3, 2)), ("1.5,1", (3, 2)), (" 0.25 , 0,0.5", (1, 0, 2)),
        ("7", (1,)), ("999999.999999,0", (1, 0)), ("2,2,2", (1, 1, 1)), ("auto", AUTO),
    ],
)  # fmt: skip
def test_a_ratio_is_in_lowest_terms(text, shares):
    assert parse_ratio(text) == shares


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no number"), ("3,,1", "no number"), ("a,1", "'a' in 'a,1' is no number"),
        ("1e3,1", "no number"), ("inf,1", "no number"),
        ("1:2", "such as 3,2,2,1 or 1.5,1, or auto"),
        ("-1,2", "-1 is less than nothing; the share of a rank that shall own nothing is 0"),
        ("0,0.0", "gives no rank a share"), ("9" * 5000, "5000 characters"),
        ("auto,1", "no number"),
        ("0.0000001,1", "at most 6 decimals"),
    ],
)  # fmt: skip
def test_what_is_no_ratio(text, said):
    with pytest.raises(ValueError, match=said) as caught:
        parse_ratio(text)
    assert len(str(caught.value)) < 250


@given(SHARES, st.integers(1, 9), st.integers(1, 9))
def test_proportions_have_one_spelling(shares, above, below):
    assert lowest_terms(Fraction(share * above, below) for share in shares) == lowest_terms(shares)
    assert parse_ratio(spelled(lowest_terms(shares))) == lowest_terms(shares)


def test_a_share_for_each_rank():
    assert shares_of(None, 3) == (1, 1, 1) and shares_of((3, 1), 2) == (3, 1)
    with pytest.raises(UserError, match="--ratio 3,1 lists 2 shares, but there are 4 ranks; give"):
        shares_of((3, 1), 4)
    with pytest.raises(UserError, match="--ratio 1 lists 1 share, but there are 2 ranks"):
        shares_of((1,), 2)


def test_folders_keep_the_names_they_had_and_tell_unequal_shares():
    assert partition_key((1, 1, 1)) == "3-ranks"
    assert partition_key((3, 2, 2, 1)) == "4-ranks-3,2,2,1"
    many = partition_key((*range(1, 300),))
    assert len(many) < 64 and many != partition_key((*range(2, 300), 1))


@given(SHARES)
def test_a_folder_tells_its_shares(shares):
    shares = lowest_terms(shares)
    key = partition_key(shares)
    assert shares_of_key(key, len(shares)) == shares
    assert shares_of_key(key, len(shares) + 1) is None
    assert Partition.of(shape_config("tiny"), [5 * share for share in shares]).key == key


@pytest.mark.parametrize("key", ["2-ranks-", "2-ranks-4,2", "2-ranks-1,1", "2-ranks-0,0", "x",
                                 "2-ranks-1,a", "2-ranks-1,2,3", "02-ranks"])  # fmt: skip
def test_other_folders_tell_none(key):
    assert shares_of_key(key, 2) is None


@given(SHARES)
def test_a_partition_is_read_as_it_was_written(shares):
    config = shape_config("tiny")
    cut = Partition.of(config, shares)
    found = Partition.from_json(config, cut.to_json())
    assert found.ranks == cut.ranks and found.to_json() == cut.to_json()


@pytest.mark.parametrize("text", ["[]", "{}", "3", "[{}]", "no"])
def test_what_is_no_partition(text):
    with pytest.raises((ValueError, LookupError, TypeError)):
        Partition.from_json(shape_config("tiny"), text)
