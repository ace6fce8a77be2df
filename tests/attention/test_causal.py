"""Window and full attention against a softmax over an explicit mask."""

import pytest
import torch

from gca_lit.attention.causal import causal_attention
from gca_lit.layers import alibi_slopes


def by_mask(q, k, v, window, slopes, documents):
    R, past = q.shape[1], k.shape[1] - q.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    scores = torch.einsum("brhd,bchd->bhrc", q, k) * q.shape[-1] ** -0.5
    distance = torch.arange(past, past + R)[:, None] - torch.arange(past + R)
    if slopes is not None:
        scores = scores - slopes.to(q.dtype)[:, None, None] * distance
    seen = (distance >= 0) & (distance < (window or 10**9))
    seen = seen.expand(len(q), 1, -1, -1)
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None])
    return torch.einsum("bhrc,bchd->brhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize(("past", "rows"), [(0, 1), (0, 23), (3, 1), (3, 4), (3, 29), (6, 2), (6, 14)])
def test_equals_the_mask(past, rows, window, alibi):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, rows, 4, 8, generator=g, dtype=torch.float64)
    k, v = (torch.randn(2, past + rows, 2, 8, generator=g, dtype=torch.float64) for _ in range(2))
    slopes = alibi_slopes(4) if alibi else None
    out = causal_attention(q, k, v, window=window, slopes=slopes)
    torch.testing.assert_close(out, by_mask(q, k, v, window, slopes, None), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3, 5])
def test_documents_are_not_crossed(window):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 17, 2, 4, generator=g, dtype=torch.float64) for _ in range(3))
    documents = torch.tensor([[0] * 4 + [1] * 2 + [2] * 11, [7] * 16 + [8]])
    out = causal_attention(q, k, v, window=window, documents=documents)
    torch.testing.assert_close(out, by_mask(q, k, v, window, None, documents), rtol=1e-10, atol=1e-12)


def test_alibi_slopes_of_a_power_of_two_are_the_published_ones():
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
