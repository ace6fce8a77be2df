"""In which order training takes the blocks: pure functions of the seed and the position in the sequence of all epochs.

An order remembers the permutation it is in the midst of, so it is fast for positions that follow each other.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gca_lit.data.hashing import permutation

_SHARDS, _BLOCKS = 1, 2


class Order(Protocol):
    """Which of the `blocks` stands at a position; each block stands once in every epoch of `blocks` positions."""

    blocks: int

    def __call__(self, position: int) -> int: ...


class EpochOrder:
    """All blocks of an epoch permuted."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.blocks = blocks
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.blocks)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.blocks, self._seed, epoch)
        return int(self._order[place])


class ShardOrder:
    """The shards of an epoch permuted and taken `window` at a time, then the blocks of these shards permuted.

    So few shards are needed at once: a block belongs to the shard of its first token, and may reach into the next one.
    Only the permutations of the shards and of the blocks in one window are ever held.

    starts: first token of each shard, in order. Block b holds the tokens from b * train_length on.
    """

    def __init__(self, starts: Sequence[int], blocks: int, train_length: int, window: int, seed: int) -> None:
        self.blocks = blocks
        self._first = np.minimum(-(-np.asarray(starts, np.int64) // train_length), blocks)
        self._counts = np.diff(self._first, append=blocks)
        self._size = window
        self._seed = seed
        self._epoch = self._window = -1
        self._shards = self._ends = self._order = np.empty(0, np.int64)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.blocks)
        if epoch != self._epoch:
            self._epoch, self._window = epoch, -1
            self._shards = permutation(len(self._first), self._seed, epoch, _SHARDS)
            self._ends = np.add.reduceat(self._counts[self._shards], range(0, len(self._shards), self._size)).cumsum()
        window = int(np.searchsorted(self._ends, place, "right"))
        if window != self._window:
            self._window = window
            shards = self._shards[window * self._size : (window + 1) * self._size].tolist()
            blocks = np.concatenate([np.arange(self._first[i], self._first[i] + self._counts[i]) for i in shards])
            self._order = blocks[permutation(len(blocks), self._seed, epoch, _BLOCKS, window)]
        return int(self._order[place - int(self._ends[window])])
