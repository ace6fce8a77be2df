"""A token decoded by rows of constant shapes, replayed as CUDA graphs, equals the same token in an ordinary segment."""

import copy
from dataclasses import fields

import pytest
import torch
from torch.utils._pytree import tree_leaves

from gca_kernels.gather import RowGather
from gca_lit.memory import DeviceStore, DiskStore, HostStore, host_store
from gca_lit.model import nested, replay
from gca_lit.model.decoding import Decoding
from gca_lit.model.pasts import separate
from tests.model.backends import BACKENDS, decoder, gca, tokens

PROMPTS = {"short": [(2, "last")], "long": [(23, "none"), (20, "last")], "whole chunks": [(40, "all")]}


def prompted(model, ids, prompt, store=HostStore):
    state, at = model.new_state(len(ids), store()), 0
    for size, read in prompt:
        state, at = model(ids[:, at : at + size], state, read).state, at + size
    return state, at


def decoded(model, ids, state, at):
    """Hidden states of the tokens from `at` on, the chunks selected for each chunk, and the last state."""
    hidden, picked = [], {}
    for token in range(at, ids.shape[1]):
        step = model(ids[:, token : token + 1], state, "last")
        state = step.state
        hidden.append(step.hidden)
        for number, selection in enumerate(step.selections):
            for j in range(selection.ids.shape[1]):
                picked[number, step.first_chunk + j] = selection.ids[:, j].cpu()
    return torch.cat(hidden, 1), picked, state


def plain(state):
    """What a state holds beside memory and selections, in one form."""
    waiting = torch.cat((state.deferred[:, :0], *state.pending), 1)
    return state.position, tuple(map(tuple, separate(state.pasts))), waiting, state.deferred


def tensors(state):
    return [
        x for field in fields(state) for x in tree_leaves(getattr(state, field.name)) if isinstance(x, torch.Tensor)
    ]


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


class Captures:
    """Graphs without a device: each replay calls the function on what was captured."""

    def __init__(self, monkeypatch):
        self.made, self.replayed = 0, 0
        monkeypatch.setattr(replay, "_can_replay", lambda given: True)
        monkeypatch.setattr(replay.Graph, "capture", self.capture)

    def capture(self, function, key, given):
        self.made += 1
        captures = self

        class Graph:
            def __init__(self):
                self.key, self.given = key, given

            def replay(self, given):
                captures.replayed += 1
                self.given = given
                return function(*[one.value for one in given])

        return Graph()


def test_the_second_call_of_a_kind_in_a_row_is_captured(monkeypatch):
    captures, x, y = Captures(monkeypatch), torch.ones(2), torch.ones(3)
    layer = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(3, 2)})
    call = replay.Replayed(lambda pair: layer["a" if len(pair[0]) == 2 else "b"](pair[0]) + pair[1], layer)
    counts = []
    for z in (x, y, x, y, x, x, y, x, y, y, y):
        torch.testing.assert_close(call((z, torch.ones(2))), layer["a" if len(z) == 2 else "b"](z) + 1)
        counts.append((captures.made, captures.replayed))
    assert counts == [(0, 0)] * 5 + [(1, 1), (1, 1), (1, 2), (1, 2), (2, 3), (2, 4)]


@torch.no_grad()
def test_other_weights_are_captured_anew_and_other_values_are_not(monkeypatch):
    captures, x = Captures(monkeypatch), torch.ones(2)
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    call = replay.Replayed(lambda x: layer(x), layer)

    def replace_weight():
        layer[0].weight = torch.nn.Parameter(torch.randn(2, 2))

    def move():
        layer.bfloat16().float()

    def replace_part():
        layer[0] = torch.nn.Linear(2, 2)

    def change():
        layer[0].weight.mul_(2)

    made = 1
    for act, new in ((lambda: None, 0), (replace_weight, 1), (move, 1), (replace_part, 1), (change, 0)):
        act()
        for _ in range(3):
            torch.testing.assert_close(call(x), layer(x))
        made += new
        assert captures.made == made


def by_hand(function, inputs, goes_round):
    """A graph without a device, as `Graph.capture` makes it, and the numbers of the arguments that were copied."""
    given = [nested.Given(value) for value in inputs]
    rooms, copied = [nested.Room.like(one.leaves) for one in given], []
    for room, one in zip(rooms, given, strict=True):
        room.fill(one.leaves)

    def call():
        values = [nested.unflatten(one.structure, iter(r.tensors)) for one, r in zip(given, rooms, strict=True)]
        first, *rest = function(*values)
        return nested.Given(first).leaves, nested.Given(tuple(rest))

    first, rest = call()
    results = nested.Room.like(rest.leaves)
    if not goes_round:
        results = nested.Room.like([*first, *rest.leaves])

    class Captured:
        def replay(self):
            first, rest = call()
            results.fill(rest.leaves if goes_round else [*first, *rest.leaves])
            if goes_round:
                rooms[0].fill(first)

    class Watched:
        def __init__(self, number):
            self.number = number

        def fill(self, leaves):
            copied.append(self.number)
            rooms[self.number].fill(leaves)

    output = nested.Room([*rooms[0].tensors, *results.tensors]) if goes_round else results
    structure = (tuple, given[0].structure, *rest.structure[1:])
    watched = [Watched(number) for number in range(len(rooms))]
    return replay.Graph(None, Captured(), given, watched, output, structure, goes_round), copied


def rows(past, new, pair):
    return torch.cat((past[1:], new)), pair[0] * new, (pair[1] + new,)


@pytest.mark.parametrize("goes_round", [True, False])
def test_a_replay_reads_what_it_is_given_and_gives_copies(goes_round, monkeypatch):
    monkeypatch.setattr(replay, "_can_replay", lambda given: True)
    past, new, pair = torch.arange(3.0), torch.tensor([3.0]), (torch.tensor([2.0]), torch.tensor([[1.0]]))
    graph, copied = by_hand(rows, (past, new, pair), goes_round)

    def capture(function, key, given):
        graph.key, graph.given = key, list(given)
        for room, one in zip(graph._inputs, given, strict=True):
            room.fill(one.leaves)
        copied.clear()
        return graph

    monkeypatch.setattr(replay.Graph, "capture", capture)
    module, other = torch.nn.Linear(1, 1), (torch.tensor([5.0]), torch.zeros(1, 1))
    call = replay.Replayed(rows, module)
    expected, made = [], []
    for again in (pair, pair, pair, other, other):
        expected.append([x.clone() for x in nested.Given(rows(past, new, again)).leaves])
        made.append(nested.Given(call(past, new, again)).leaves)
        past = made[-1][0]
        new += 1  # in place: the same object holds another value
    for found, wanted in zip(made, expected, strict=True):  # what was given first has not changed since
        assert all(map(torch.equal, found, wanted))
    first = [] if goes_round else [0]
    assert copied == [*first, 1, *first, 1, 2, *first, 1]
    module.double()  # what the graph reads lies elsewhere: it is captured anew, from the values given
    assert all(
        map(torch.equal, nested.Given(call(past, new, other)).leaves, nested.Given(rows(past, new, other)).leaves)
    )


def test_a_past_of_another_text_is_copied():
    past, new, pair = torch.arange(3.0), torch.tensor([3.0]), (torch.tensor([2.0]), torch.tensor([[1.0]]))
    graph, copied = by_hand(rows, (past, new, pair), True)
    graph.replay(graph.given)
    other = [nested.Given(torch.tensor([7.0, 8.0, 9.0])), *graph.given[1:]]
    assert graph.replay(other)[0].tolist() == [8, 9, 3] and copied == [0]


def test_what_is_held_is_read_where_it_lies(monkeypatch):
    captures, layer, held = Captures(monkeypatch), torch.nn.Linear(2, 2), torch.ones(3)
    call = replay.Replayed(lambda x, held: x + sum(held), layer)
    for _ in range(3):
        assert torch.equal(call(torch.zeros(3), held=(held,)), held)
        held += 1
    assert captures.made == 1
    for other, calls in ((held.clone(), 1), (held[:2], 2)):
        for _ in range(calls):
            assert torch.equal(call(torch.zeros(len(other)), held=(other,)), other)
    assert captures.made == 3


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


@torch.no_grad()
def test_a_network_that_decoded_can_be_copied(monkeypatch):
    model, ids = decoder(gca()), tokens(24, 1)
    captures = Captures(monkeypatch)
    expected = decoded(model, ids, *prompted(model, ids, [(16, "last")]))[0]
    assert captures.made and captures.replayed
    other = copy.deepcopy(model)
    assert other.decoding.decoder is other
    for weight in model.parameters():
        weight.zero_()
    torch.testing.assert_close(decoded(other, ids, *prompted(other, ids, [(16, "last")]))[0], expected)


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
