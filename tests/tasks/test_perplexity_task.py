import pytest
import torch

from gca_lit.tasks import Perplexity
from tests.tasks.oracle import Letters

LETTERS = Letters()


def test_the_same_tokens_are_scored_at_every_length():
    task = Perplexity(longest=1000, scored=50)
    stretch = LETTERS.take(3, 1000)
    for length in (51, 100, 999, 1000):
        episode = task.episode(length, 3, LETTERS)
        assert torch.equal(episode.tokens, stretch[-length:])
        assert episode.targets.shape == (length,) and int((episode.targets != -100).sum()) == 50
        assert torch.equal(episode.targets[length - 51 : -1], stretch[-50:])
        assert (episode.answer, episode.asked, episode.needles) == ((length - 50, length), length - 51, ())
        assert (episode.depth, episode.distance) == (None, 0)


def test_all_tokens_scored():
    episode = Perplexity(longest=64, scored=None).episode(64, 0, LETTERS)
    assert torch.equal(episode.targets[:-1], episode.tokens[1:]) and episode.targets[-1] == -100


def test_errors():
    task = Perplexity(longest=100, scored=10)
    with pytest.raises(ValueError, match="11"):
        task.episode(10, 0, LETTERS)
    with pytest.raises(ValueError, match="longest = 100"):
        task.episode(101, 0, LETTERS)
    with pytest.raises(NotImplementedError, match="plain text"):
        task.row(50, 0, LETTERS.take(0, 50))
    with pytest.raises(ValueError, match="at least 257"):
        Perplexity(longest=256)
    with pytest.raises(ValueError, match="scored"):
        Perplexity(longest=256, scored=0)
