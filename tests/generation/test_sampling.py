"""Generation continues what one forward over everything would; sampling does what it says; text comes whole."""

import pytest
import torch

from gca_lit.attention import FullAttention
from gca_lit.generation.sampling import AHEAD, Sampler, Sampling, check_length, generate, read
from gca_lit.memory import HostStore
from gca_lit.model import DecoderConfig
from gca_lit.module import CausalLM
from tests.model.backends import BACKENDS, gca, tokens

VOCAB = 50
GREEDY = Sampling(max_new_tokens=17, temperature=0)


def network(attention, dtype=torch.float64):
    torch.manual_seed(1)
    size = DecoderConfig(width=32, heads=4, kv_heads=2, layers=4, mlp_width=48, init="fan_in")
    model = CausalLM(attention, VOCAB, size)
    model.configure_model()
    return model.to(dtype).eval()


def continued(model, prompt, sampling, segment=10, stop_ids=()):
    state, logits = read(model, prompt, model.new_state(1, HostStore()), segment)
    return list(generate(model, state, logits, sampling, stop_ids))


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_greedy_is_the_argmax_of_a_forward_at_every_position(backend):
    model = network(BACKENDS[backend])
    for length in (1, 3, 4, 5, 6, 9, 10, 11, 23, 40):  # chunks of 5 tokens, segments of 10
        new = continued(model, tokens(length, 1), GREEDY)
        assert len(new) == 17
        whole = torch.cat((tokens(length, 1), torch.tensor([new])), 1)
        hidden = model.step(whole, model.new_state(1, HostStore())).hidden
        assert model.logits(hidden)[0, length - 1 : -1].argmax(-1).tolist() == new


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_on_a_cuda_device(backend):
    model = network(BACKENDS[backend], torch.float32)
    expected = continued(model, tokens(23, 1), GREEDY)
    assert continued(model.cuda(), tokens(23, 1).int().cuda(), GREEDY) == expected
    sampling = Sampling(max_new_tokens=12, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    found = [continued(model, tokens(23, 1).cuda(), sampling) for _ in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_segment_does_not_matter(backend):
    model = network(BACKENDS[backend])
    sampling = Sampling(max_new_tokens=12, top_k=20, seed=4)
    found = [continued(model, tokens(43, 1), sampling, segment) for segment in (1, 5, 7, 15, 1000)]
    assert all(new == found[0] for new in found)


def test_segments_are_whole_chunks_and_only_the_last_is_read(monkeypatch):
    model, steps, done = network(gca()), [], []

    def step(ids, state, read):
        steps.append((ids.dtype, ids.shape[1], read))
        return model._decoder(ids, state, read)

    monkeypatch.setattr(model, "step", step)
    read(model, tokens(33, 1).int(), model.new_state(1, HostStore()), 13, done.append)
    sizes = [10, 10, 10, 3]
    assert steps == [(torch.int64, n, "last" if n == 3 else "none") for n in sizes] and done == sizes


def test_a_batch_can_be_read_but_only_one_text_continued():
    model = network(gca())
    state, logits = read(model, tokens(20, 2), model.new_state(2, HostStore()), 10)
    one = read(model, tokens(20, 2)[1:], model.new_state(1, HostStore()), 10)[1]
    torch.testing.assert_close(logits[1:], one)
    with pytest.raises(ValueError, match="one text at a time, got a batch of 2"):
        next(generate(model, state, logits, GREEDY))


def test_each_token_is_one_step_and_none_is_made_in_vain(monkeypatch):
    model = network(gca())
    state, logits = read(model, tokens(20, 1), model.new_state(1, HostStore()), 10)
    sizes = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda ids, *a, **k: sizes.append(ids.shape) or step(ids, *a, **k))
    stream = generate(model, state, logits, Sampling(max_new_tokens=8))
    next(stream)
    assert sizes == []
    assert len(list(stream)) == 7 and sizes == [(1, 1)] * 7


@pytest.mark.gpu
def test_a_cuda_device_is_some_steps_ahead(monkeypatch):
    model = network(gca(), torch.float32).cuda()
    state, logits = read(model, tokens(20, 1).cuda(), model.new_state(1, HostStore()), 10)
    steps = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda *a, **k: steps.append(1) or step(*a, **k))
    found = [len(steps) for _ in generate(model, state, logits, Sampling(max_new_tokens=AHEAD + 4))]
    assert found == [min(AHEAD + number, AHEAD + 3) for number in range(AHEAD + 4)]
    assert list(generate(model, state, logits, Sampling(max_new_tokens=0))) == []


def test_stop_ids_end_it_and_are_not_given():
    model = network(gca())
    new = continued(model, tokens(9, 1), GREEDY)
    stop = new[6]
    assert continued(model, tokens(9, 1), GREEDY, stop_ids={stop}) == new[: new.index(stop)]
    assert continued(model, tokens(9, 1), Sampling(max_new_tokens=0)) == []


def test_a_seed_gives_the_same_tokens_whatever_else_draws():
    model = network(gca())
    sampling = Sampling(max_new_tokens=12, seed=7)
    first = continued(model, tokens(9, 1), sampling)
    torch.rand(5)
    assert continued(model, tokens(9, 1), sampling) == first
    assert continued(model, tokens(9, 1), Sampling(max_new_tokens=12, seed=8)) != first


def shares(logits, **settings):
    logits = torch.tensor(logits)
    return Sampler(Sampling(**settings), logits).probabilities(logits)


def test_the_smallest_temperature_is_greedy():
    logits = torch.tensor([0.0, 1.0, 3.0, 3.0])
    assert shares(logits, temperature=1e-320).tolist() == [0, 0, 0.5, 0.5]


def test_temperature_divides_logits():
    logits = [0.0, 1.0, 3.0]
    torch.testing.assert_close(shares(logits, temperature=0.5), torch.tensor([0.0, 2.0, 6.0]).softmax(0))


def test_filters_leave_the_others_in_proportion():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().tolist()
    for settings, kept in (
        ({}, [1, 2, 3, 4]),
        ({"top_k": 2}, [0, 0, 3, 4]),
        ({"top_k": 9}, [1, 2, 3, 4]),
        ({"top_p": 0.35}, [0, 0, 0, 4]),
        ({"top_p": 0.65}, [0, 0, 3, 4]),
        ({"top_p": 1e-9}, [0, 0, 0, 4]),
        ({"top_p": 1.0}, [1, 2, 3, 4]),
        ({"min_p": 0.45}, [0, 2, 3, 4]),
        ({"min_p": 1.0}, [0, 0, 0, 4]),
        ({"top_k": 3, "top_p": 0.75}, [0, 0, 3, 4]),  # of what top_k leaves: 4/9 + 3/9 = 0.78
        ({"top_k": 3, "top_p": 0.8}, [0, 2, 3, 4]),
    ):
        wanted = torch.tensor(kept, dtype=torch.float32)
        torch.testing.assert_close(shares(logits, **settings), wanted / wanted.sum(), msg=str(settings))


def test_ties_with_the_last_of_top_k_stay():
    assert (shares([1.0, 2.0, 1.0, 0.0], top_k=2) > 0).tolist() == [True, True, True, False]


def test_samples_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    sampler = Sampler(Sampling(seed=1), logits)
    counts = torch.bincount(torch.stack([sampler.choose(logits) for _ in range(4000)]), minlength=3)
    torch.testing.assert_close(counts / 4000, logits.exp(), rtol=0, atol=0.03)


def test_half_precision_logits_are_sampled_in_fp32():
    logits = torch.zeros(3, dtype=torch.bfloat16)
    assert Sampler(Sampling(), logits).choose(logits) in (0, 1, 2)
    seen = []
    sampler = Sampler(Sampling(), logits)
    sampler.probabilities = lambda scores: seen.append(scores.dtype) or scores.softmax(0)
    sampler.choose(logits)
    assert seen == [torch.float32]


def test_the_penalty_is_for_what_was_generated():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), torch.zeros(3))
    chosen = [int(sampler.choose(torch.tensor([3.0, 2.0, -1.0]))) for _ in range(3)]
    assert chosen == [0, 1, 0]
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), torch.zeros(2))
    assert [int(sampler.choose(torch.tensor([-1.0, -1.5]))) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_new_tokens": -1}, "sampling.max_new_tokens must not be negative, got -1"),
        ({"temperature": -0.1}, "sampling.temperature"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"top_k": 0}, "sampling.top_k"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"min_p": -1.0}, "sampling.min_p"),
        ({"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
        ({"seed": -1}, "sampling.seed"),
        ({"stop": "word"}, "sampling.stop"),
        ({"stop": ("",)}, "sampling.stop"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_the_longest_input_is_refused_by_name():
    model = network(FullAttention(max_length=30))
    check_length(model, 13, GREEDY)
    with pytest.raises(ValueError, match=r"at most max_length = 30 tokens, but 14 are to be read.*is 17"):
        check_length(model, 14, GREEDY)


def test_nothing_to_read_is_refused():
    model = network(gca())
    with pytest.raises(ValueError, match="at least one token"):
        read(model, tokens(0, 1), model.new_state(1, HostStore()), 10)
    with pytest.raises(ValueError, match="segment must be at least 1"):
        read(model, tokens(4, 1), model.new_state(1, HostStore()), 0)
