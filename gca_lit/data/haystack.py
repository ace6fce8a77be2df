"""The text that needles are hidden in: whole documents, each pass over them in another order and from other offsets."""

from math import gcd

import numpy as np
import torch
from torch import Tensor

from gca_lit.data.hashing import mix, permutation
from gca_lit.data.shards import ShardReader

_ORDER, _OFFSET = 1, 2


class BookHaystack:
    """Text of any length from the documents of `reader`.

    Each pass takes every document once and whole, in an order of its own. A document is rotated: it begins at an
    offset, goes to its end and comes round. The offset is another one in every pass: no pass repeats the one before.
    """

    def __init__(self, reader: ShardReader, seed: int) -> None:
        self.reader = reader
        self.seed = seed

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

    def passes(self, length: int) -> int:
        """How many passes over all documents one episode of `length` tokens takes, at least 1."""
        return max(1, -(-length // self.reader.total))

    def _offset(self, index: int, lap: int, document: int, size: int) -> int:
        """Laps step through the document by a stride coprime to its size: no offset comes twice in `size` laps."""
        stride = max(1, round(size * 0.618))
        while gcd(stride, size) > 1:
            stride += 1
        return (mix(self.seed, index, document, _OFFSET) + lap * stride) % size
