"""Nothing leaks from the future, and a selection serves the next chunk from chunks before its own."""

import pytest
import torch

from tests.model.backends import BACKENDS, decoder, gca, tokens


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_the_future_changes_nothing(backend):
    model = decoder(BACKENDS[backend])
    ids = tokens(47)
    before = model(ids).hidden
    for t in (1, 4, 5, 24, 25, 26, 46):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 50
        after = model(changed).hidden
        assert torch.equal(after[:, :t], before[:, :t]), t
        assert not torch.equal(after[:, t], before[:, t]), t


@pytest.mark.parametrize("reads", ["previous", "own"])
@torch.no_grad()
def test_a_selection_sees_only_chunks_before_its_landmark(reads):
    step = decoder(gca(groups=2, landmark_reads=reads))(tokens(47))
    for selection in step.selections:
        served = torch.arange(selection.ids.shape[1])[:, None]
        assert step.first_chunk == 0
        assert (selection.ids <= served - 2).logical_or(selection.ids < 0).all()
        visible = (served - 1).clamp(0, 3)[:, 0]
        assert torch.equal((selection.ids >= 0).sum(-1), visible.expand(2, -1))
        sums = selection.weights.sum(-1)
        torch.testing.assert_close(sums, (visible > 0).to(sums).expand(2, -1))


@torch.no_grad()
def test_a_far_token_moves_only_what_read_its_chunk():
    """Token 0 is in the windows of rows of chunks 0 and 1. Beyond all windows a chunk moves only if a selection that
    serves it, or a chunk in its window, holds one of the two."""
    model = decoder(gca(top_k=2, window=12, lower_layers=1), layers=2)
    ids = tokens(240)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    before, after = model(ids), model(changed)
    moved = (before.hidden != after.hidden).any(-1).view(2, 48, 5).any(-1)
    holds = [((s.ids == 0) | (s.ids == 1)).any(-1) for s in (before.selections[0], after.selections[0])]
    read = (holds[0] | holds[1])[:, :48]
    untouched = [(b, c) for b in range(2) for c in range(6, 48) if not read[b, c - 2 : c + 1].any()]
    assert untouched and not any(moved[b, c] for b, c in untouched)
    assert moved[:, 6:][read[:, 6:]].all()
