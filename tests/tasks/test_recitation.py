"""A passage that comes again: exact lengths, answers that stand in the text, the same on every machine."""

import pytest
import torch

from gca_lit.tasks import Recitation
from gca_lit.tasks.base import IGNORED

CUE, ANSWER, LENGTHS = 5, 12, (47, 48, 100, 1000)


class Book:
    """A text without repetition."""

    def take(self, index, length):
        return torch.arange(length) + 10_000 * index


def bound(align, **settings):
    return Recitation(**{"cue": CUE, "answer": ANSWER} | settings).bind(7, lambda text: [ord(c) for c in text], align)


@pytest.mark.parametrize("align", [None, 15, 63])
@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_the_answer_of_an_episode_stands_in_its_text(align, depth):
    task = bound(align)
    for length in (task.min_length(), *(n for n in LENGTHS if n >= task.min_length())):
        episode = task.episode(length, 3, Book(), depth)
        (start, stop), (begin, end) = episode.needles[0], episode.answer
        assert episode.tokens.shape == episode.targets.shape == (length,)
        assert torch.equal(episode.tokens[start - CUE : stop], episode.tokens[begin - CUE : end])
        assert stop <= begin - CUE and episode.distance == begin - stop and episode.asked == begin - 1
        assert (episode.targets != IGNORED).nonzero().flatten().tolist() == list(range(begin - 1, end - 1))
        assert torch.equal(episode.targets[begin - 1 : end - 1], episode.tokens[begin:end])
        assert end == length if align is None else (begin % align == 0 and 0 <= length - end < align)
        assert 0 <= episode.depth <= 1 and (depth not in (0.0, 1.0) or episode.depth == depth or start == CUE)


@pytest.mark.parametrize("align", [None, 15])
def test_depth_alone_moves_the_passage(align):
    one, other = (bound(align).episode(500, 0, Book(), depth) for depth in (0.0, 1.0))
    assert one.needles[0][0] == CUE and other.needles[0][1] == other.answer[0] - CUE
    assert one.answer == other.answer


def test_every_answer_of_a_row_stands_in_its_first_half():
    for length in LENGTHS:
        text = torch.arange(length) + 50
        row = bound(15 if length > 60 else None).row(length, 4, text)
        half = length // 2
        assert torch.equal(row.tokens[:half], text[:half]) and row.tokens.shape == (length,)
        assert row.tokens[half:].max() < 50 + half
        scored = (row.targets != IGNORED).nonzero().flatten()
        assert torch.equal(row.targets[scored], row.tokens[scored + 1]) and scored.min() >= half + CUE - 1
        assert len(scored) > 0.3 * half
        (start, stop), (begin, end) = row.needles[0], row.answer
        assert torch.equal(row.tokens[start - CUE : stop], row.tokens[begin - CUE : end])
        assert stop <= half and row.distance == begin - stop > 0 and 0 <= row.depth <= 1


def test_reproducible_and_different_by_index_and_seed():
    task, text = bound(None), torch.arange(1000)
    rows = [t.row(1000, i, text).tokens.tolist() for t in (task, task.bind(8, task.encode, None)) for i in (0, 1)]
    assert rows[0] == task.row(1000, 0, text).tokens.tolist()
    assert len({tuple(row) for row in rows}) == 4
    assert task.episode(1000, 2, Book()).needles != task.episode(1000, 3, Book()).needles


def test_errors_name_the_thing():
    with pytest.raises(ValueError, match="cue and answer must be at least 1 token each, not 0 and 48"):
        Recitation(cue=0)
    for make in (lambda: bound(None).episode(33, 0, Book()), lambda: bound(None).row(33, 0, torch.arange(33))):
        with pytest.raises(ValueError, match="33 tokens are too few, the shortest episode has 34"):
            make()
    with pytest.raises(ValueError, match="depth must be between 0"):
        bound(None).episode(100, 0, Book(), 1.5)
    with pytest.raises(ValueError, match="needs as much text, not \\(99,\\)"):
        bound(None).row(100, 0, torch.arange(99))
