"""FLOPs against torch's own counter, and against the pairs that really see each other."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gca_lit.attention import AttentionBackend, FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.attention.base import seen_pairs
from gca_lit.model import Decoder, DecoderConfig

CONFIG = DecoderConfig(width=16, heads=4, kv_heads=2, layers=4, mlp_width=24)


def gca(**settings) -> GroupedCrossAttention:
    return GroupedCrossAttention(**({"chunk_size": 4, "window": 10, "top_k": 3, "groups": 2} | settings))


def counted(backend: AttentionBackend, length: int):
    """(FLOPs of matrix products with weights, of all products) as torch counts them, and the step that was run."""
    decoder = Decoder(CONFIG, backend, 50).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step = decoder(torch.zeros(1, length, dtype=torch.int64))
        decoder.logits(step.hidden)
    kinds = counter.get_flop_counts()["Global"]
    return kinds[torch.ops.aten.mm], counter.get_total_flops(), step


@pytest.mark.parametrize("length", [1, 64, 101])
def test_full_attention(length: int) -> None:
    """torch counts causal attention as if rows saw those behind them too."""
    _, total, _ = counted(FullAttention(), length)
    ours = Decoder(CONFIG, FullAttention(), 50).flops(length)
    assert ours + CONFIG.layers * 4 * CONFIG.width * (length**2 - seen_pairs(length, None)) == total


@pytest.mark.parametrize(
    "backend",
    [FullAttention(), SlidingWindow(7), gca(smear_keys=True, recency=True), gca(retrieval_width=6, score="cosine")],
)
@pytest.mark.parametrize("length", [3, 66, 101])
def test_linear_maps(backend: AttentionBackend, length: int) -> None:
    """To the last one where an input does not end in a landmark, which nobody reads."""
    maps, _, _ = counted(backend, length)
    assert Decoder(CONFIG, backend, 50).flops(length) - backend.flops(CONFIG, CONFIG.layers, length) == maps


@pytest.mark.parametrize("window", [1, 5, 20, 99, None])
def test_seen_pairs(window: int | None) -> None:
    distance = torch.arange(20)[:, None] - torch.arange(20)
    assert seen_pairs(20, window) == int(((distance >= 0) & (distance < (window or 20))).sum())


@pytest.mark.parametrize("length", [3, 66, 101])
def test_grouped_cross_attention(length: int) -> None:
    """The slots that are filled, each with a chunk's rows for every row of the block that it serves."""
    backend = gca()
    _, _, step = counted(backend, length)
    chunks = length // 4
    rows = torch.tensor([5] * chunks + [length % 4])
    read = sum(4 * int(((s.ids[0] >= 0).sum(-1) * rows).sum()) for s in step.selections)
    pairs = read + 4 * seen_pairs(length + chunks, 10) + 2 * chunks * 5 * 5
    scores = 2 * 2 * CONFIG.width * sum(range(chunks))
    assert backend.flops(CONFIG, CONFIG.layers, length) == 4 * CONFIG.width * pairs + scores
