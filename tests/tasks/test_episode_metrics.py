import pytest
import torch

from gca_lit.tasks import EpisodeMetrics, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (16, 17, 0.7302, 0.9895), (0, 0, 0.0, 1.0)],
)
def test_wilson(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_counts():
    metrics = EpisodeMetrics()
    metrics.update(torch.tensor([True, True, True]), recall_at_1=True, recall_at_k=True)
    metrics.update(torch.tensor([True, False, False]), recall_at_1=False, recall_at_k=True)
    metrics.update(torch.tensor([False, True]))
    metrics.update(torch.tensor([False]))
    result = metrics.compute()
    assert (result["n"], result["correct"], result["accuracy"]) == (4, 1, 0.25)
    assert (result["first_hits"], result["last_hits"]) == (2, 2)
    assert (result["recall_at_1"], result["recall_at_k"]) == (0.5, 1.0)
    assert (result["ci_low"], result["ci_high"]) == wilson(1, 4)
    metrics.reset()
    with pytest.warns(UserWarning, match="before"):
        empty = metrics.compute()
    assert empty["n"] == 0 and empty["accuracy"] is None and empty["recall_at_k"] is None
