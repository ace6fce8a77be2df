"""A token decoded by rows of constant shapes, replayed as CUDA graphs, equals the same token in an ordinary segment."""

import pytest
import torch

from gca_kernels.gather import RowGather
from gca_lit.memory import DeviceStore, DiskStore, HostStore, host_store
from gca_lit.model import replay
from gca_lit.model.decoding import Decoding
from tests.model.backends import BACKENDS, decoder, gca, tokens
from tests.model.captures import Captures
from tests.model.decoded import decoded, plain, prompted, tensors

PROMPTS = {"short": [(2, "last")], "long": [(23, "none"), (20, "last")], "whole chunks": [(40, "all")]}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("backend", [*BACKENDS, "chunks of one token"])
@torch.no_grad()
def test_rows_equal_segments(backend, prompt, monkeypatch):
    model = decoder(BACKENDS.get(backend) or gca(chunk_size=1, window=4))
    ids = tokens(70)
    took = []
    monkeypatch.setattr(Decoding, "step", lambda *a, step=Decoding.step: took.append(1) or step(*a))
    hidden, picked, state = decoded(model, ids, *prompted(model, ids, PROMPTS[prompt]))
    assert len(took) == hidden.shape[1]
    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "takes", lambda *_: False)
        expected, chosen, other = decoded(model, ids, *prompted(model, ids, PROMPTS[prompt]))
    assert len(took) == hidden.shape[1]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-9)
    assert picked.keys() == chosen.keys() and all(torch.equal(picked[at], chosen[at]) for at in chosen)
    torch.testing.assert_close(plain(state), plain(other), rtol=0, atol=1e-9)


@torch.no_grad()
def test_rows_that_wait_make_an_ordinary_segment(monkeypatch):
    model, ids = decoder(gca()), tokens(12)
    monkeypatch.setattr(Decoding, "step", None)
    for size, read in ((5, "none"), (1, "none"), (6, "last")):
        state, at = prompted(model, ids, [(size, read)])
        if read == "none":
            model(ids[:, at : at + 1], state, "last")
        else:
            model(ids[:, at : at + 1], state, "none")
            with torch.enable_grad():
                model(ids[:, at : at + 1], prompted(model, ids, [(size, read)])[0], "last")


@pytest.mark.skipif(torch.cuda.is_available(), reason="slabs of plain memory need the interpreter")
@pytest.mark.parametrize("backend", ["gca of two groups", "gca own"])
@torch.no_grad()
def test_where_the_device_reads_chunks_alone_a_landmark_is_one_graph(backend, monkeypatch):
    pytest.importorskip("triton")
    model, ids = decoder(BACKENDS[backend]), tokens(60)
    expected, chosen, _ = decoded(model, ids, *prompted(model, ids, [(20, "last")]))
    monkeypatch.setattr(host_store, "_row_gather", lambda gather, slabs, device: RowGather(slabs.slabs, device))
    Captures(monkeypatch)
    calls = []
    replayed = replay.Replayed.__call__
    monkeypatch.setattr(replay.Replayed, "__call__", lambda *a, **k: calls.append(bool(k)) or replayed(*a, **k))
    hidden, picked, _ = decoded(model, ids, *prompted(model, ids, [(20, "last")]))
    assert calls.count(True) == 60 // model.attention.chunk_size - 20 // model.attention.chunk_size
    assert torch.equal(hidden, expected) and all(torch.equal(picked[at], chosen[at]) for at in chosen)


@pytest.mark.parametrize("backend", ["gca of two groups", "sliding_window"])
@torch.no_grad()
def test_compiled_rows_are_the_same(backend):
    model, ids = decoder(BACKENDS[backend]), tokens(34, 1)
    expected = model(ids).hidden[:, 20:]
    model.compile_parts("aot_eager")
    hidden = decoded(model, ids, *prompted(model, ids, [(20, "last")]))[0]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-9)
    torch._dynamo.reset()


@pytest.fixture
def replays(monkeypatch):
    """Counts replays of graphs."""
    calls = []
    once = replay.Graph.replay
    monkeypatch.setattr(replay.Graph, "replay", lambda *a: calls.append(1) or once(*a))
    return calls


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_graphs_give_the_same_on_a_cuda_device(backend, autocast, monkeypatch, replays):
    model, ids = decoder(BACKENDS[backend], torch.float32).cuda(), tokens(90).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        hidden, picked, _ = decoded(model, ids, *prompted(model, ids, [(40, "last")]))
        assert bool(replays) == (backend != "full")
        with monkeypatch.context() as patch:
            patch.setattr(Decoding, "takes", lambda *_: False)
            expected, chosen, _ = decoded(model, ids, *prompted(model, ids, [(40, "last")]))
    if not autocast:
        assert all(torch.equal(picked[at], chosen[at]) for at in chosen)
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-4)
    else:  # a chunk may be another one where scores are close
        assert (hidden - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.gpu
@pytest.mark.parametrize("store", [DeviceStore, DiskStore])
@torch.no_grad()
def test_every_store_gives_the_same_on_a_cuda_device(store, replays):
    model, ids = decoder(BACKENDS["gca of two groups"], torch.float32).cuda(), tokens(90).cuda()
    found = [decoded(model, ids, *prompted(model, ids, [(40, "last")], kind)) for kind in (HostStore, store)]
    (hidden, picked, _), (other, chosen, _) = found
    assert replays and torch.equal(hidden, other) and all(torch.equal(picked[at], chosen[at]) for at in chosen)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["gca of two groups", "sliding_window"])
@torch.no_grad()
def test_compiled_layers_are_captured_too(backend, replays):
    model, ids = decoder(BACKENDS[backend], torch.float32, width=128).cuda(), tokens(80).cuda()
    expected = model(ids).hidden[:, 40:]
    model.compile_parts()
    hidden = decoded(model, ids, *prompted(model, ids, [(40, "last")]))[0]
    assert replays
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gca of two groups", "sliding_window"])
@torch.no_grad()
def test_states_keep_what_they_hold_and_do_not_mix(backend, replays):
    model = decoder(BACKENDS[backend], torch.float32).cuda()
    texts = [tokens(90).cuda(), tokens(90).cuda().flip(1)]
    expected = [model(ids).hidden[:, 40:] for ids in texts]
    states = [prompted(model, ids, [(40, "last")])[0] for ids in texts]
    hidden, held = ([], []), []
    for at in range(40, 90):
        for number, ids in enumerate(texts):
            step = model(ids[:, at : at + 1], states[number], "last")
            states[number] = step.state
            hidden[number].append(step.hidden)
            held.append((step, [x.clone() for x in (step.hidden, *tensors(step.state))]))
    assert len(replays) > 80
    for number in range(2):
        torch.testing.assert_close(torch.cat(hidden[number], 1), expected[number], rtol=0, atol=1e-4)
    for step, before in held:
        assert all(map(torch.equal, (step.hidden, *tensors(step.state)), before))


@pytest.mark.gpu
@torch.no_grad()
def test_training_in_between_is_seen(replays):
    model, ids = decoder(gca(), torch.float32).cuda(), tokens(70).cuda()
    for _ in range(2):
        expected = model(ids).hidden[:, 40:]
        hidden = decoded(model, ids, *prompted(model, ids, [(40, "last")]))[0]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-4)
        for weight in model.parameters():
            weight.mul_(0.9)
    assert replays
