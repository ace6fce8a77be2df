"""The text of evaluation: whole documents to hide needles in, each pass over them in another order and from other
offsets; and passages of single documents."""

from math import gcd

import numpy as np
import torch
from torch import Tensor

from gca_lit.data.hashing import mix, permutation
from gca_lit.data.shards import ShardReader

_ORDER, _OFFSET, _PASSAGE = 1, 2, 3


class BookHaystack:
    """Text of any length from the documents of `reader`.

    Each pass takes every document once and whole, in an order of its own. A document is rotated: it begins at an
    offset, goes to its end and comes round. The offset is another one in every pass: no pass repeats the one before.
    """

    def __init__(self, reader: ShardReader, seed: int) -> None:
        self.reader = reader
        self.seed = seed

    @property
    def identity(self) -> str:
        """The first digits of the fingerprint of the data set's content."""
        return self.reader.identity[:12]

    def take(self, index: int, length: int) -> Tensor:
        """int64 [length], a pure function of (seed, index, length); each index begins at another place."""
        out = np.empty(length, np.int64)
        starts, ends = self.reader.documents
        at = lap = 0
        while at < length:
            for document in permutation(len(starts), self.seed, index, lap, _ORDER).tolist():
                start, stop = int(starts[document]), int(ends[document])
                middle = start + self._offset(index, lap, document, stop - start)
                for begin, end in ((middle, stop), (start, middle)):
                    n = min(end - begin, length - at)
                    out[at : at + n] = self.reader.tokens(begin, begin + n)
                    at += n
                if at == length:
                    break
            lap += 1
        return torch.from_numpy(out)

    def passage(self, index: int, length: int) -> Tensor:
        """int64 [length], `length` consecutive tokens of one document, a pure function of (seed, index, length).

        Successive indices take the documents of at least `length` tokens in turn, each time from another offset as long
        as there are others. Raises ValueError when no document is so long.
        """
        starts, ends = self.reader.documents
        sizes = ends - starts
        (long,) = np.nonzero(sizes >= length)
        if not len(long):
            raise ValueError(
                f"no document of {self.reader.place} has {length:,} tokens, the longest has {sizes.max():,}: "
                "take shorter passages, or longer documents"
            )
        lap, turn = divmod(index, len(long))
        document = int(long[permutation(len(long), self.seed, _PASSAGE)[turn]])
        offset = self._offset(_PASSAGE, lap, document, int(sizes[document]) - length + 1)
        start = int(starts[document]) + offset
        return torch.from_numpy(self.reader.tokens(start, start + length))

    def passes(self, length: int) -> int:
        """How many passes over all documents one episode of `length` tokens takes, at least 1."""
        return max(1, -(-length // self.reader.total))

    def _offset(self, index: int, lap: int, document: int, size: int) -> int:
        """Laps step through the document by a stride coprime to its size: no offset comes twice in `size` laps."""
        stride = max(1, round(size * 0.618))
        while gcd(stride, size) > 1:
            stride += 1
        return (mix(self.seed, index, document, _OFFSET) + lap * stride) % size
