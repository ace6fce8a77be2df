"""Where tokens and landmarks stand, against counting them one by one."""

import pytest
import torch

from gca_lit.model.chunks import Layout


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 4])
@pytest.mark.parametrize("position", [0, 1, 3, 4, 11, 12])
@pytest.mark.parametrize("tokens", [1, 2, 4, 9])
def test_layout_counts(chunk_size, position, tokens):
    rows = []
    for token in range(position + tokens):
        rows.append(token)
        if chunk_size and (token + 1) % chunk_size == 0:
            rows.append("landmark")
    before = rows.index(position)
    layout = Layout(position, tokens, chunk_size)
    segment = rows[before:]
    assert (layout.first_row, layout.rows) == (before, len(segment))
    assert layout.chunks == segment.count("landmark")
    assert layout.first_chunk == rows[:before].count("landmark")
    assert layout.text_rows(torch.device("cpu")).tolist() == [i for i, row in enumerate(segment) if row != "landmark"]
    for token in range(tokens):
        assert layout.row_of(token) == rows.index(position + token)
    text = torch.arange(1.0, tokens + 1).view(1, -1, 1)
    spread = layout.spread(text, torch.tensor([-1.0]))
    assert spread.flatten().tolist() == [-1 if row == "landmark" else row - position + 1 for row in segment]
    documents = torch.arange(position, position + tokens)[None]
    of_rows = layout.row_documents(documents)[0].tolist()
    expected = [row if row != "landmark" else segment[i - 1] for i, row in enumerate(segment)]
    assert of_rows == expected
