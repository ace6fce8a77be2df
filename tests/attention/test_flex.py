"""The CUDA path of masked attention, as far as a CPU can hold it: blocks, numbers, graphs."""

from itertools import product

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow, flex
from gca_lit.attention.causal import causal_attention
from gca_lit.layers import alibi_slopes
from gca_lit.memory import DeviceStore
from gca_lit.model import Decoder, DecoderConfig

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0] * 100 + [1] * 60 + [2] * 240, [3] * 256 + [4] * 144])


def listed(counts, numbers):
    """The set entries of each row of blocks."""
    rows = zip(counts.flatten(0, -1).tolist(), numbers.flatten(0, -2).tolist(), strict=True)
    return [sorted(row[:count]) for count, row in rows]


@pytest.mark.parametrize("window", [None, 1, 128, 130, 300, 512])
@pytest.mark.parametrize(("rows", "past"), [(128, 0), (400, 0), (1024, 0), (128, 511), (300, 77), (640, 129)])
def test_blocks_are_those_of_the_dense_mask(rows, past, window):
    mask = flex.block_mask(rows, past, window, None, CPU)
    q, k = mask.seq_lengths
    assert q % flex.BLOCK == k % flex.BLOCK == 0 and 0 <= q - rows < flex.BLOCK and 0 <= k - past - q < flex.BLOCK
    dense = create_block_mask(mask.mask_mod, 1, 1, q, k, "cpu", BLOCK_SIZE=flex.BLOCK)
    assert listed(mask.kv_num_blocks, mask.kv_indices) == listed(dense.kv_num_blocks, dense.kv_indices)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert whole == listed(dense.full_kv_num_blocks, dense.full_kv_indices)


def test_blocks_of_documents_hide_no_pair():
    mask = flex.block_mask(400, 0, 200, DOCUMENTS, CPU)
    dense = create_block_mask(mask.mask_mod, 2, 1, 512, 512, "cpu", BLOCK_SIZE=flex.BLOCK)
    assert (dense.to_dense() <= mask.to_dense()).all()
    assert mask.to_dense().sum() < 2 * flex.block_mask(400, 0, 200, None, CPU).to_dense().sum()
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    dense_whole = listed(dense.full_kv_num_blocks, dense.full_kv_indices)
    assert all(set(mine) <= set(theirs) for mine, theirs in zip(whole, dense_whole, strict=True))


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize(
    ("rows", "past", "window", "documents"),
    [
        (400, 0, 150, None),
        (130, 77, 64, None),
        (200, 50, None, None),
        (400, 0, 150, DOCUMENTS),
        (400, 0, None, DOCUMENTS),
    ],
)
def test_numbers_are_those_of_plain_attention(monkeypatch, rows, past, window, documents, alibi):
    monkeypatch.setattr(flex, "_alone", lambda: flex_attention)
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, rows, 4, 16, generator=g)
    k, v = (torch.randn(2, past + rows, 2, 16, generator=g) for _ in range(2))
    slopes = alibi_slopes(4) if alibi else None
    mask = flex.block_mask(rows, past, window, documents, CPU)
    got = flex.masked_attention(q, k, v, mask, slopes)
    torch.testing.assert_close(got, causal_attention(q, k, v, window=window, slopes=slopes, documents=documents))


@pytest.mark.slow
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_a_fused_kernel_reads_all_listed_blocks(documents):
    """Unlike the unfused form, a compiled one looks at the block lists alone."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 400, 2, 16, generator=g) for _ in range(3))
    with torch.no_grad():
        got = flex.masked_attention(q, k, v, flex.block_mask(400, 0, 150, documents, CPU), None)
    torch.testing.assert_close(got, causal_attention(q, k, v, window=150, documents=documents))


GCA = GroupedCrossAttention(chunk_size=7, window=150, top_k=2)


@pytest.mark.parametrize(
    ("backend", "position"),
    [
        *product((SlidingWindow(150), FullAttention()), ("rotary", "alibi")),
        (GCA, "rotary"),
        pytest.param(GCA, "alibi", marks=pytest.mark.slow),
    ],
)
def test_a_decoder_runs_the_same_with_it(monkeypatch, backend, position):
    torch.manual_seed(0)
    config = DecoderConfig(width=32, heads=2, kv_heads=1, layers=2, mlp_width=32, position=position)
    decoder = Decoder(config, backend, 257).eval()
    tokens = torch.randint(0, 257, (1, 400), generator=torch.Generator().manual_seed(0))
    expected = _segments(decoder, tokens)
    used = []
    monkeypatch.setattr(flex, "can_run", lambda x, width: used.append(x.shape[1]) or x.shape[1] >= flex.BLOCK)
    monkeypatch.setattr(flex, "_alone", lambda: flex_attention)
    torch.testing.assert_close(_segments(decoder, tokens), expected)
    assert used
    torch._dynamo.reset()
    decoder.compile_parts("aot_eager")
    torch.testing.assert_close(_segments(decoder, tokens), expected)
    torch._dynamo.reset()


@torch.no_grad()
def _segments(decoder, tokens):
    state, hidden = decoder.new_state(1, DeviceStore()), []
    for segment in tokens.split((200, 150, 50), 1):
        step = decoder(segment, state)
        state = step.state
        hidden.append(step.hidden)
    return torch.cat(hidden, 1)


def test_a_mask_made_in_evaluation_serves_training():
    flex._window_mask.cache_clear()
    with torch.inference_mode():
        mask = flex.block_mask(256, 0, 100, None, CPU)
    assert not mask.kv_indices.is_inference()
    assert flex.block_mask(256, 0, 100, None, CPU) is mask


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_training_on_a_gpu_is_that_of_the_dense_mask(monkeypatch, position, documents, compiled):
    torch.manual_seed(0)
    config = DecoderConfig(width=64, heads=2, kv_heads=1, layers=2, mlp_width=64, position=position)
    decoder = Decoder(config, SlidingWindow(150), 257).cuda()
    tokens = torch.randint(0, 257, (2, 400), generator=torch.Generator().manual_seed(0)).cuda()
    of_tokens = None if documents is None else documents.cuda()

    def gradients():
        decoder.zero_grad()
        decoder(tokens, documents=of_tokens).hidden.pow(2).mean().backward()
        return [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    with monkeypatch.context() as patch:
        patch.setattr(flex, "can_run", lambda x, width: False)
        expected = gradients()
    torch._dynamo.reset()
    if compiled:
        decoder.compile_parts()
    for got, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())
