"""One forward over the whole input, segments of any size, and token by token are the same: the first invariant."""

import pytest
import torch

from gca_lit.memory import DeviceStore, DiskStore, HostStore
from gca_lit.model import group
from gca_lit.model.retrieval import select
from tests.model.backends import BACKENDS, decoder, gca, tokens

LENGTHS = [1, 4, 5, 6, 10, 11, 59, 61]
PARTITIONS = {
    "one by one": lambda T: [1] * T,
    "chunks": lambda T: [5] * (T // 5) + [T % 5] * (T % 5 > 0),
    "uneven": lambda T: [n for n in (7, 1, 13, 2, 22, 16)],
    "long and short": lambda T: [T - 1, 1],
}


def in_segments(model, ids, sizes, store, read="all"):
    state, hidden, picked, at = model.new_state(len(ids), store), [], {}, 0
    for size in sizes:
        segment = ids[:, at : at + size]
        if segment.shape[1] == 0:
            continue
        step = model(segment, state, read)
        state, at = step.state, at + size
        hidden.append(step.hidden)
        for number, selection in enumerate(step.selections):
            for j in range(selection.ids.shape[1]):
                picked[number, step.first_chunk + j] = selection.ids[:, j]
    return torch.cat(hidden, 1), picked, state


@torch.no_grad()
def score_gaps(model, ids, monkeypatch):
    """Differences between the last chunk chosen and the first one left out, wherever one is."""
    gaps = []

    def spy(queries, keys, first, top_k, noise, documents, recency):
        scores = queries.float() @ torch.cat(list(keys), 1).float().transpose(1, 2)
        for q in range(scores.shape[1]):
            seen = scores[:, q, : first + q]
            if recency is not None:
                seen = seen - recency * torch.arange(first + q, 0, -1).log2()
            seen = seen.sort(-1, descending=True).values
            if seen.shape[-1] > top_k:
                gaps.append((seen[:, top_k - 1] - seen[:, top_k]).min().item())
        return select(queries, keys, first, top_k, noise, documents, recency)

    with monkeypatch.context() as patch:
        patch.setattr(group, "select", spy)
        model(ids)
    return gaps


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@pytest.mark.parametrize("store", [HostStore, DeviceStore, DiskStore])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_segments_and_tokens_equal_one_forward(backend, store, position, monkeypatch):
    model = decoder(BACKENDS[backend], position=position, qk_norm=position == "rotary")
    for T in LENGTHS:
        ids = tokens(T)
        gaps = score_gaps(model, ids, monkeypatch)
        assert min(gaps, default=1.0) > 1e-5 and bool(gaps) == (model.attention.chunk_size is not None and T > 25)
        whole = model(ids)
        for sizes in PARTITIONS.values():
            hidden, picked, state = in_segments(model, ids, sizes(T), store())
            torch.testing.assert_close(hidden, whole.hidden, rtol=0, atol=1e-9)
            assert state.position == T
            for number, selection in enumerate(whole.selections):
                for j in range(selection.ids.shape[1]):
                    if (number, j) in picked:
                        assert torch.equal(picked[number, j], selection.ids[:, j])


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_the_same_in_fp32(backend):
    model = decoder(BACKENDS[backend], torch.float32)
    ids = tokens(61)
    whole = model(ids).hidden
    for sizes in PARTITIONS.values():
        torch.testing.assert_close(in_segments(model, ids, sizes(61), HostStore())[0], whole, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_the_same_on_a_cuda_device(backend):
    model = decoder(BACKENDS[backend], torch.float32)
    ids = tokens(61)
    expected = model(ids).hidden
    model.cuda()
    for sizes in PARTITIONS.values():
        hidden = in_segments(model, ids.cuda(), sizes(61), HostStore())[0]
        torch.testing.assert_close(hidden.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_what_is_read_does_not_depend_on_how_much_is_read(backend):
    model = decoder(BACKENDS[backend])
    ids = tokens(61 * 3)
    whole = model(ids).hidden
    for sizes in ([60, 63, 60], [7] * 27, [183], [150, 33], [1] * 183):
        state, at = model.new_state(2, HostStore()), 0
        for number, size in enumerate(sizes):
            size = min(size, 183 - at)
            read = ("none", "last", slice(2, 5), "none", "none", "all")[(number + len(sizes)) % 6]
            if size < 5 and isinstance(read, slice):
                read = "last"
            if at + size == 183:
                read = "last"
            step = model(ids[:, at : at + size], state, read)
            names = {"none": slice(0, 0), "last": slice(-1, None), "all": slice(None)}
            wanted = read if isinstance(read, slice) else names[read]
            torch.testing.assert_close(step.hidden, whole[:, at : at + size][:, wanted], rtol=0, atol=1e-9)
            state, at = step.state, at + size
        assert at == 183


@torch.no_grad()
def test_a_prefill_that_only_writes_skips_the_upper_layers():
    model = decoder(gca())
    state = model.new_state(1, HostStore())
    ran = []
    hooks = [
        b.register_forward_hook(lambda m, a, o: ran.append(m)) for group in model.upper.groups for b in group.layers
    ]
    for _ in range(6):
        state = model(tokens(40, 1), state, "none").state
    assert not ran
    assert state.deferred.shape[1] == model.upper.reach
    model(tokens(40, 1), state, "last")
    assert len(ran) == 2
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("landmark_reads", ["previous", "own"])
@torch.no_grad()
def test_decoding_fetches_once_a_chunk_and_encodes_only_whole_chunks(monkeypatch, landmark_reads):
    model = decoder(gca(groups=2, landmark_reads=landmark_reads))
    store, reads, encoded = HostStore(), [], []
    monkeypatch.setattr(store, "read", lambda ids, read=store.read: reads.append(ids) or read(ids))
    model.upper.encoder.register_forward_hook(lambda *_: encoded.append(1))
    ids = tokens(61, 1)
    step = model(ids[:, :30], model.new_state(1, store))
    reads.clear(), encoded.clear()
    for at in range(30, 60):
        step = model(ids[:, at : at + 1], step.state)
    assert len(encoded) == 6  # chunks of 5 tokens
    served_the_prompt = 2 * (landmark_reads == "previous")
    assert len(reads) == 2 * 6 + served_the_prompt  # of each chunk and group once


@torch.no_grad()
def test_positions_stay_exact_far_out():
    """A window sees the same relative positions at row 2 * 10^7 as at row 0, in fp32."""
    from gca_lit.layers import rotate, rotation

    x = torch.randn(1, 3, 1, 64)
    near, far = (rotate(x, rotation(torch.arange(3) + start, 64, torch.float32)) for start in (0, 20_000_000))
    products = [(r[0, 0, 0] @ r[0, 2, 0]).item() for r in (near, far)]
    assert products[0] == pytest.approx(products[1], abs=2e-5)


def test_misuse_is_named():
    model = decoder(gca())
    with pytest.raises(ValueError, match="at least one token"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="keeps no chunks"):
        model(tokens(5), model.new_state(2, None))
    with pytest.raises(ValueError, match=r"tokens must be \[3, T\] for this state, got \(2, 5\)"):
        model(tokens(5), model.new_state(3, HostStore()))
    with pytest.raises(ValueError, match="documents"):
        model(tokens(5), model.new_state(2, HostStore()), documents=tokens(5))
    with pytest.raises(ValueError, match="read must be"):
        model(tokens(5), read="some")
    with pytest.raises(ValueError, match="without a step"):
        model(tokens(5), read=slice(0, 5, 2))


@torch.no_grad()
def test_a_state_that_was_used_is_refused():
    model, ids = decoder(gca()), tokens(22)
    before = model(ids[:, :12], model.new_state(2, HostStore())).state
    model(ids[:, 12:], before)
    with pytest.raises(ValueError, match="has read 2 chunks and its memory holds 4: another step took it before"):
        model(ids[:, 12:], before)
