"""Where tokens and landmarks stand, against counting them one by one, and what the encoder makes of chunks."""

import pytest
import torch

from gca_lit.attention import GroupedCrossAttention
from gca_lit.attention.base import Dims
from gca_lit.model.chunks import ChunkEncoder, Layout


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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kv_dtype", [None, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("score, qk_norm", [("dot", False), ("cosine", True)])
def test_no_chunks_have_the_types_and_widths_of_chunks(autocast, kv_dtype, dtype, score, qk_norm):
    dims = Dims(width=8, heads=2, kv_heads=1, qk_norm=qk_norm)
    attention = GroupedCrossAttention(chunk_size=3, window=8, top_k=2, score=score, retrieval_width=6)
    encoder = ChunkEncoder(dims, 8, 1, attention.landmark_key(dims), kv_dtype).to(dtype)
    blocks = torch.randn(2, 1, 4, 8, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        some = encoder(blocks, encoder.rotation(blocks))
        none = encoder.nothing(blocks[:, 0], 3)
    for found, wanted in zip((none.landmarks, *none.table), (some.landmarks, *some.table), strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == (2, 0, *wanted.shape[2:])
