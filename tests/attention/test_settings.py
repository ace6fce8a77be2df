"""Backends refuse settings that cannot work, and say which."""

import pytest

from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.attention.base import Dims


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 127}, "blind gap"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"softmax_offset": -1.0}, "softmax_offset"),
    ],
)
def test_gca_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        GroupedCrossAttention(**settings)


def test_one_slot_warns():
    with pytest.warns(UserWarning, match="no gradient"):
        GroupedCrossAttention(top_k=1)


def test_layers_must_fill_the_groups():
    with pytest.raises(ValueError, match="multiple of groups"):
        GroupedCrossAttention(groups=2).plan(6)
    with pytest.raises(ValueError, match="upper layers"):
        GroupedCrossAttention(lower_layers=4).plan(4)
    assert [p.group for p in GroupedCrossAttention(groups=2).plan(12)] == [None] * 6 + [0] * 3 + [1] * 3


def test_other_backends_refuse():
    with pytest.raises(ValueError, match="window of a layer must be at least 1 row, got 0"):
        SlidingWindow(0).plan(2)
    with pytest.raises(ValueError, match="max_length"):
        FullAttention(max_length=0)
    with pytest.raises(ValueError, match="log_n_length"):
        FullAttention(log_n_length=1)


@pytest.mark.parametrize(
    ("dims", "message"),
    [({"heads": 5}, "multiple of heads"), ({"kv_heads": 5}, "multiple of kv_heads"), ({"width": 0}, "width must be")],
)
def test_dims_refuse(dims, message):
    with pytest.raises(ValueError, match=message):
        Dims(**dims)


def test_kv_bytes_count_what_a_state_holds():
    dims = Dims(width=64, heads=4, kv_heads=2)
    row = 2 * 2 * 16 * 4
    gca = GroupedCrossAttention(chunk_size=10, window=30).kv_bytes(dims, 4, 1005, 4)
    assert gca == {"store": 1000 * row, "state": 4 * 29 * row + 100 * 64 * 4}
    assert FullAttention().kv_bytes(dims, 4, 1005, 4) == {"store": 0, "state": 4 * 1005 * row}
    assert SlidingWindow(30).kv_bytes(dims, 4, 1005, 4) == {"store": 0, "state": 4 * 29 * row}
