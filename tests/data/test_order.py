from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gca_lit.data.order import EpochOrder, ShardOrder

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def shard_order(sizes: list[int], length: int, window: int, seed: int = 1) -> ShardOrder:
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return ShardOrder(starts, sum(sizes) // length, length, window, seed)


@given(SIZES, st.integers(1, 9), st.integers(1, 14), st.integers(0, 5), st.randoms(use_true_random=False))
def test_every_block_once_in_an_epoch_from_wherever_it_begins(sizes, length, window, seed, random) -> None:  # type: ignore[no-untyped-def]
    length = min(length, sum(sizes))
    order = shard_order(sizes, length, window, seed)
    positions = range(3 * order.blocks)
    blocks = [order(position) for position in positions]
    for epoch in range(3):
        assert sorted(blocks[epoch * order.blocks :][: order.blocks]) == list(range(order.blocks))
    jumps = random.sample(positions, len(positions))
    other = shard_order(sizes, length, window, seed)
    assert [other(position) for position in jumps] == [blocks[position] for position in jumps]


@given(SIZES, st.integers(1, 9), st.integers(1, 4))
def test_only_the_shards_of_one_window_are_begun_at_once(sizes: list[int], length: int, window: int) -> None:
    length = min(length, sum(sizes))
    order = shard_order(sizes, length, window)
    starts = np.cumsum([0, *sizes[:-1]])
    of_block = np.searchsorted(starts, np.arange(order.blocks) * length, "right") - 1
    seen = [int(of_block[order(position)]) for position in range(order.blocks)]
    first_seen = {shard: seen.index(shard) for shard in set(seen)}
    last_seen = {shard: len(seen) - 1 - seen[::-1].index(shard) for shard in set(seen)}
    for place in range(len(seen)):
        assert sum(first_seen[shard] <= place <= last_seen[shard] for shard in set(seen)) <= window


def test_shards_and_blocks_are_shuffled() -> None:
    order = shard_order([400] * 10, 4, window=3)
    epochs = [[order(position) for position in range(start, start + 1000)] for start in (0, 1000)]
    windows = [{block // 100 for block in epoch[:300]} for epoch in epochs]
    assert all(len(shards) == 3 for shards in windows) and windows[0] != windows[1]
    assert Counter(block // 100 for block in epochs[0][:150]).most_common()[-1][1] > 30
    assert np.corrcoef(epochs[0][:300], np.sort(epochs[0][:300]))[0, 1] < 0.2
    assert [shard_order([400] * 10, 4, 3, seed=2)(position) for position in range(9)] != epochs[0][:9]


def test_holds_no_more_than_a_window() -> None:
    order = shard_order([1 << 27] * 200, 1 << 12, window=2)
    order(3_000_000)
    held = sum(value.size for value in vars(order).values() if isinstance(value, np.ndarray))
    assert order.blocks == 6_553_600 and held <= 2 * (1 << 15) + 4 * 200


@pytest.mark.parametrize("blocks", [1, 7, 100])
def test_default_order_permutes_each_epoch(blocks: int) -> None:
    order = EpochOrder(blocks, seed=9)
    epochs = [[order(position) for position in range(start, start + blocks)] for start in (0, blocks)]
    assert all(sorted(epoch) == list(range(blocks)) for epoch in epochs)
    assert [EpochOrder(blocks, 9)(2 * blocks - 1), EpochOrder(blocks, 9)(0)] == [epochs[1][-1], epochs[0][0]]


def test_orders_stay_as_they_are() -> None:
    """A checkpoint of today goes on with the same blocks tomorrow."""
    first = [14, 12, 11, 13, 10, 15, 9, 8, 1, 6, 7, 5, 2, 0, 3, 4]
    second = [10, 2, 0, 8, 4, 9, 3, 1, 7, 6, 12, 13, 11, 14, 5, 15]
    epochs = EpochOrder(8, seed=1)
    assert [epochs(position) for position in range(16)] == [7, 4, 2, 0, 3, 6, 5, 1, 5, 3, 6, 7, 4, 1, 0, 2]
    shards = shard_order([20, 12, 9, 23], 4, window=2)
    assert [shards(position) for position in range(32)] == first + second
