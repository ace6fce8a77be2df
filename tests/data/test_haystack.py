from collections import Counter

import numpy as np
import pytest
import torch

from gca_lit.data.haystack import BookHaystack
from gca_lit.data.shards import ShardReader
from gca_lit.tasks import Perplexity


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


def test_passages_lie_in_one_document_and_take_all_that_are_long_enough_in_turn(reader: ShardReader) -> None:
    haystack = BookHaystack(reader, 3)
    bounds = list(zip(*reader.documents, strict=True))
    found = []
    for index in range(12):
        passage = haystack.passage(index, 600).numpy()
        places = [
            (document, at)
            for document, (start, stop) in enumerate(bounds)
            for at in range(start, stop - 600 + 1)
            if np.array_equal(reader.tokens(at, at + 600), passage)
        ]
        assert len(places) == 1
        found += places
    assert all({document for document, _ in found[i : i + 2]} == {0, 2} for i in range(0, 12, 2))
    assert len(set(found)) == 12
    assert haystack.passage(5, 900).equal(torch.from_numpy(reader.tokens(*bounds[2])))  # the only place there is
    assert haystack.passage(4, 600).equal(BookHaystack(reader, 3).passage(4, 600))


def test_no_document_is_long_enough(reader: ShardReader) -> None:
    with pytest.raises(ValueError, match=f"no document of {reader.place} has 1,000 tokens, the longest has 900: take"):
        BookHaystack(reader, 0).passage(0, 1000)


def test_perplexity_keeps_to_one_document(reader: ShardReader) -> None:
    """Only the documents of 700 and 900 tokens are long enough."""
    task, haystack = Perplexity(longest=650, scored=20), BookHaystack(reader, 1)
    bounds = list(zip(*reader.documents, strict=True))
    texts = [reader.tokens(start, stop).tobytes() for start, stop in bounds]
    for index in range(6):
        longest = task.episode(650, index, haystack)
        assert sum(longest.tokens.numpy().tobytes() in text for text in texts) == 1
        for length in (21, 100, 333):
            episode = task.episode(length, index, haystack)
            assert episode.tokens.equal(longest.tokens[-length:]) and episode.targets[-21:].equal(longest.targets[-21:])
            assert int((episode.targets != -100).sum()) == 20


@pytest.mark.parametrize("length, passes", [(1, 1), (2101, 1), (2102, 2), (4203, 3)])
def test_passes(reader: ShardReader, length: int, passes: int) -> None:
    assert reader.total == 2101 and BookHaystack(reader, 0).passes(length) == passes
