"""Layers and chunk encoder compile whole, and compute the same."""

import pytest
import torch

from gca_lit.attention import FullAttention, GroupedCrossAttention, SlidingWindow
from gca_lit.memory import DeviceStore
from gca_lit.model import Decoder, DecoderConfig, chunked_cross_entropy, decoder

BACKENDS = {
    "gca": lambda: GroupedCrossAttention(chunk_size=7, window=16, top_k=2),
    "gca_switches": lambda: GroupedCrossAttention(chunk_size=7, window=16, top_k=2, smear_keys=True, recency=True),
    "gca_triton": lambda: GroupedCrossAttention(chunk_size=7, window=16, top_k=2, impl="triton"),
    "sliding_window": lambda: SlidingWindow(window=16),
    "full": FullAttention,
}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(backend, checkpointing=False):
    torch.manual_seed(0)
    config = DecoderConfig(width=32, heads=2, kv_heads=2, layers=2, mlp_width=32, gradient_checkpointing=checkpointing)
    return Decoder(config, BACKENDS[backend](), 257)


def hidden_and_gradients(decoder, tokens):
    hidden = decoder(tokens, noise=torch.arange(len(tokens))).hidden
    loss = chunked_cross_entropy(decoder.token_loss, hidden, tokens.roll(-1, 1), tokens_at_once=40)
    loss.mean().backward()
    return [hidden, loss.nll, loss.correct, *(p.grad for p in decoder.parameters() if p.grad is not None)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("backend", "checkpointing"),
    [
        *(pytest.param(name, False, marks=SLOW if name in ("gca_switches", "gca_triton") else ()) for name in BACKENDS),
        pytest.param("gca", True, marks=SLOW),
    ],
)
def test_training_is_the_same_at_two_lengths(backend, checkpointing):
    plain, compiled = network(backend, checkpointing), network(backend, checkpointing)
    compiled.compile_parts("aot_eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for length in (48, 64):
        tokens = torch.randint(0, 257, (2, length), generator=torch.Generator().manual_seed(length))
        for got, expected in zip(
            hidden_and_gradients(compiled, tokens), hidden_and_gradients(plain, tokens), strict=True
        ):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", [pytest.param("gca", marks=SLOW), "sliding_window"])
def test_segments_are_the_same(backend):
    plain, compiled = network(backend).eval(), network(backend).eval()
    compiled.compile_parts("aot_eager")
    tokens = torch.randint(0, 257, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state, other = plain.new_state(1, DeviceStore()), compiled.new_state(1, DeviceStore())
        for segment in tokens.split((32, 32, 6), 1):
            expected, got = plain(segment, state), compiled(segment, other)
            torch.testing.assert_close(got.hidden, expected.hidden)
            state, other = expected.state, got.state


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8)
def test_training_validation_and_a_sweep_stay_within_the_limit():
    model = network("gca")
    model.compile_parts("aot_eager")

    def tokens(rows, length):
        return torch.randint(0, 257, (rows, length))

    for length in (48, 64, 96):
        model.train()
        model(tokens(2, length), noise=torch.arange(2)).hidden.sum().backward()
        model.eval()
        with torch.no_grad():
            model(tokens(2, length))
    for rows, length in ((4, 48), (2, 96), (1, 200), (1, 333), (1, 70)):
        state = model.new_state(rows, DeviceStore())
        with torch.inference_mode():
            for segment in tokens(rows, length).split(64, 1):
                state = model(segment, state, "last").state


@torch._dynamo.config.patch(recompile_limit=1, automatic_dynamic_shapes=False)
def test_compiling_too_often_is_an_error(monkeypatch):
    monkeypatch.setattr(decoder, "GRAPHS", 1)
    compiled = network("sliding_window")
    compiled.compile_parts("aot_eager")
    compiled(torch.zeros(1, 32, dtype=torch.long))
    with pytest.raises(Exception, match="fullgraph=True"):
        compiled(torch.zeros(1, 40, dtype=torch.long))
