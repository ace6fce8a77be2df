"""Where tokens and landmarks stand, against counting them one by one, and what the encoder makes of chunks."""

import pytest
import torch

from gca_lit.attention import GroupedCrossAttention
from gca_lit.attention.base import Dims
from gca_lit.model.chunks import ChunkEncoder, Layout
from tests.model.backends import decoder, gca


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
@pytest.mark.parametrize(
    "score, qk_norm, smear", [("dot", False, False), ("cosine", True, False), ("dot", False, True)]
)
def test_no_chunks_have_the_types_and_widths_of_chunks(autocast, kv_dtype, dtype, score, qk_norm, smear):
    dims = Dims(width=8, heads=2, kv_heads=1, qk_norm=qk_norm)
    attention = GroupedCrossAttention(chunk_size=3, window=8, top_k=2, score=score, retrieval_width=6)
    encoder = ChunkEncoder(dims, 8, 1, attention.landmark_key(dims), kv_dtype, smear).to(dtype)
    blocks = torch.randn(2, 1, 4, 8, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        some = encoder(blocks, encoder.rotation(blocks))
        none = encoder.nothing(blocks[:, 0], 3)
    for found, wanted in zip((none.landmarks, *none.table), (some.landmarks, *some.table), strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == (2, 0, *wanted.shape[2:])


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_a_smeared_key_is_a_mean_with_the_key_before_it_in_its_chunk(qk_norm, chunk_size):
    share = torch.tensor([0.2, 0.9], dtype=torch.float64)
    plain, smeared = (decoder(gca(smear_keys=on), qk_norm=qk_norm).upper.encoder for on in (False, True))
    smeared.smear.logit.copy_(share.logit())
    norm, plain.k_norm = plain.k_norm, torch.nn.Identity()
    blocks = torch.randn(2, 3, chunk_size + 1, 32, dtype=torch.float64)
    turn = plain.rotation(blocks)
    (landmarks, (k, v)), made = plain(blocks, turn), smeared(blocks, turn)
    expected = k.clone()
    for i in range(1, chunk_size):
        expected[:, :, i] = (1 - share[:, None]) * k[:, :, i] + share[:, None] * k[:, :, i - 1]
    torch.testing.assert_close(made.table.k, norm(expected), rtol=0, atol=1e-12)
    assert torch.equal(made.table.v, v) and torch.equal(made.landmarks, landmarks)


def test_smeared_keys_add_one_vector_that_starts_at_one_half_and_does_not_decay():
    plain, model = decoder(gca()), decoder(gca(smear_keys=True))
    weights, logit = dict(model.named_parameters()), model.upper.encoder.smear.logit
    assert logit.sigmoid().tolist() == [0.5, 0.5]
    assert weights.pop("upper.encoder.smear.logit") is logit
    assert weights.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.named_parameters())
    vectors = model.parameter_groups()[-1]
    assert vectors["name"] == "vectors" and any(p is logit for p in vectors["params"])


def test_angles_first_made_in_evaluation_serve_training():
    encoder = ChunkEncoder(Dims(width=8, heads=2, kv_heads=2), 8, 1, torch.nn.Identity(), None)
    blocks = torch.randn(1, 3, 37, 8)  # rows that no other test has
    with torch.inference_mode():
        evaluated = encoder(blocks, encoder.rotation(blocks)).table.k.clone()
    trained = encoder(blocks, encoder.rotation(blocks)).table.k
    trained.sum().backward()
    torch.testing.assert_close(trained, evaluated)
    assert encoder.kv.weight.grad is not None
