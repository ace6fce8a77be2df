"""A replay gives what the function gives, copies what it has to and no more, and never changes what it gave."""

import copy
import gc

import pytest
import torch

from gca_kernels.gather import RowGather
from gca_lit.memory import host_store
from gca_lit.model import replay
from gca_lit.model.places import Given, Places
from gca_lit.model.replay import Replayed
from gca_lit.model.weights import Weights
from tests.model.backends import BACKENDS, decoder, gca, tokens
from tests.model.captures import Captures
from tests.model.decoded import decoded, prompted, tensors


def replayed(function, module, stays=None):
    return Replayed(function, Weights(module), Places(), stays or {})


def test_the_second_call_of_a_kind_in_a_row_is_captured(monkeypatch):
    captures, x, y = Captures(monkeypatch), torch.ones(2), torch.ones(3)
    layer = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(3, 2)})
    call = replayed(lambda pair: (layer["a" if len(pair[0]) == 2 else "b"](pair[0]) + pair[1],), layer)
    counts = []
    with torch.no_grad():
        for z in (x, y, x, y, x, x, y, x, y, y, y):
            torch.testing.assert_close(call((z, torch.ones(2)))[0], layer["a" if len(z) == 2 else "b"](z) + 1)
            counts.append((captures.made, captures.replayed))
    assert counts == [(0, 0)] * 5 + [(1, 1), (1, 1), (1, 2), (1, 2), (2, 3), (2, 4)]


@torch.no_grad()
def test_other_weights_are_captured_anew_and_other_values_are_not(monkeypatch):
    captures, x = Captures(monkeypatch), torch.ones(2)
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    call = replayed(lambda x: (layer(x),), layer)

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
            torch.testing.assert_close(call(x)[0], layer(x))
        made += new
        assert captures.made == made


def test_what_is_held_is_read_where_it_lies(monkeypatch):
    captures, layer, held = Captures(monkeypatch), torch.nn.Linear(2, 2), torch.ones(3)
    call = replayed(lambda x, held: (x + sum(held),), layer)
    for _ in range(3):
        assert torch.equal(call(torch.zeros(3), held=(held,))[0], held)
        held += 1
    assert captures.made == 1
    for other, calls in ((held.clone(), 1), (held[:2], 2)):
        for _ in range(calls):
            assert torch.equal(call(torch.zeros(len(other)), held=(other,))[0], other)
    assert captures.made == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_during_a_capture(enabled, monkeypatch):
    class CUDAGraph:
        def capture_begin(self, **_):
            self.begun = True

        def capture_end(self):
            assert self.begun and not gc.isenabled()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    if not enabled:
        gc.disable()
    try:
        assert replay._record(gc.isenabled)[1] is False and gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError):
            replay._record(lambda: 1 / 0)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def rows(past, new, pair):
    return torch.cat((past[1:], new)), pair[0] * new, (pair[1] + new,)


def leaves(value):
    return Given(value).leaves


@pytest.mark.parametrize("stays", [{0: 0}, {}])
def test_only_what_does_not_lie_there_is_copied(stays, monkeypatch):
    """The past was left there, the same pair lies there; a tensor given again may have another value."""
    captures, module = Captures(monkeypatch), torch.nn.Linear(1, 1)
    call = replayed(rows, module, stays)
    past, new = torch.arange(3.0), torch.tensor([3.0])
    pair, other = (torch.tensor([2.0]), torch.tensor([[1.0]])), (torch.tensor([5.0]), torch.zeros(1, 1))
    made, expected, filled = [], [], []
    for given in (pair, pair, pair, other, other):
        expected.append([x.clone() for x in leaves(rows(past, new, given))])
        captures.filled.clear()
        made.append(leaves(call(past, new, given)))
        filled.append(len(captures.filled))
        past = made[-1][0]
        new += 1  # in place: the same object holds another value
    for found, wanted in zip(made, expected, strict=True):  # what was given first has not changed since
        assert all(map(torch.equal, found, wanted))
    past_too = 0 if stays else 1
    assert filled == [0, 3, 1 + past_too, 2 + past_too, 1 + past_too]
    module.double()  # what the graph reads lies elsewhere: it is captured anew
    expected = leaves(rows(past, new, other))
    assert all(map(torch.equal, leaves(call(past, new, other)), expected)) and captures.made == 2


def test_functions_leave_to_one_another_what_comes_next(monkeypatch):
    captures, module = Captures(monkeypatch), torch.nn.Linear(1, 1)
    shared = Weights(module), Places(), {0: 0, 1: 1}

    def forth(past, pair):
        return past + pair[0], ()

    def back(past, pair):
        return past * 2, (pair[0] - past,)

    calls = {function: Replayed(function, *shared) for function in (forth, back)}
    past, pair = torch.ones(2), (torch.ones(2),)
    for at, function in enumerate((forth, forth, back, back, forth, back, forth, forth, back)):
        expected, replaced = function(past, pair)
        captures.filled.clear()
        past, made = calls[function](past, pair)
        assert torch.equal(past, expected) and all(map(torch.equal, made, replaced))
        assert at < 5 or not captures.filled
        pair = made or pair
    assert captures.made == 2


def test_a_past_of_another_text_is_copied(monkeypatch):
    captures, call = Captures(monkeypatch), replayed(rows, torch.nn.Linear(1, 1), {0: 0})
    pasts, new, pair = [torch.arange(3.0), torch.arange(3.0) + 10], torch.tensor([3.0]), (torch.ones(1), torch.ones(1))
    for number in (0, 0, 1, 0, 0, 1, 1, 0):
        expected = rows(pasts[number], new, pair)[0]
        pasts[number] = call(pasts[number], new, pair)[0]
        assert torch.equal(pasts[number], expected)
    assert captures.replayed == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="slabs of plain memory need the interpreter")
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_texts_decoded_in_turns_do_not_mix(backend, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(host_store, "_row_gather", lambda gather, slabs, device: RowGather(slabs.slabs, device))
    model = decoder(BACKENDS[backend])
    texts = [tokens(60), tokens(60).flip(1)]
    expected = [decoded(model, ids, *prompted(model, ids, [(23, "last")])) for ids in texts]
    captures = Captures(monkeypatch)
    states = [prompted(model, ids, [(23, "last")])[0] for ids in texts]
    hidden, held = ([], []), []
    for at in range(23, 60):
        for number in (0, 1) if at % 3 else (1, 0):
            step = model(texts[number][:, at : at + 1], states[number], "last")
            states[number] = step.state
            hidden[number].append(step.hidden)
            held.append((step, [x.clone() for x in (step.hidden, *tensors(step.state))]))
    assert backend == "full" or captures.replayed > 20
    for number in range(2):
        assert torch.equal(torch.cat(hidden[number], 1), expected[number][0])
    for step, before in held:
        assert all(map(torch.equal, (step.hidden, *tensors(step.state)), before))


@torch.no_grad()
def test_nothing_is_kept_of_shapes_that_do_not_come_again(monkeypatch):
    captures, places = Captures(monkeypatch), Places()
    call = Replayed(lambda past: (torch.cat((past, past[:1])),), Weights(torch.nn.Linear(1, 1)), places, {0: 0})
    past = torch.ones(1)
    for _ in range(20):
        (past,) = call(past)
    assert captures.made == 0 and not any(vars(places).values())


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
