from collections import Counter

import numpy as np
import pytest
import torch

from gca_lit.data.haystack import BookHaystack
from gca_lit.data.shards import ShardReader


def rotations(reader: ShardReader, taken: np.ndarray) -> dict[int, int]:
    """Documents found whole in `taken`, in order, each with the offset that it begins at."""
    found: dict[int, int] = {}
    at = 0
    while at < len(taken):
        for document, (start, stop) in enumerate(zip(*reader.documents, strict=True)):
            text, size = reader.tokens(start, stop), stop - start
            for offset in np.flatnonzero(text == taken[at]) if document not in found else []:
                if np.array_equal(np.roll(text, -offset), taken[at : at + size]):
                    found[document] = int(offset)
                    at += size
                    break
            else:
                continue
            break
        else:
            raise AssertionError(f"no whole document at {at}")
    return found


def test_passes_take_every_document_whole_and_from_another_offset(reader: ShardReader) -> None:
    taken = BookHaystack(reader, 3).take(0, 3 * reader.total).numpy()
    laps = [rotations(reader, taken[i * reader.total : (i + 1) * reader.total]) for i in range(3)]
    assert all(sorted(lap) == [0, 1, 2, 3] for lap in laps)
    assert all(len({lap[document] for lap in laps}) == 3 for document in (0, 2, 3))


def test_pure_and_different_for_each_index(reader: ShardReader) -> None:
    haystack = BookHaystack(reader, 3)
    torch.testing.assert_close(haystack.take(7, 300), BookHaystack(reader, 3).take(7, 300), rtol=0, atol=0)
    torch.testing.assert_close(haystack.take(7, 300), haystack.take(7, 5000)[:300], rtol=0, atol=0)
    starts = Counter(tuple(haystack.take(index, 20).tolist()) for index in range(30))
    assert len(starts) == 30
    assert not torch.equal(haystack.take(7, 300), BookHaystack(reader, 4).take(7, 300))


@pytest.mark.parametrize("length, passes", [(1, 1), (2101, 1), (2102, 2), (4203, 3)])
def test_passes(reader: ShardReader, length: int, passes: int) -> None:
    assert reader.total == 2101 and BookHaystack(reader, 0).passes(length) == passes
