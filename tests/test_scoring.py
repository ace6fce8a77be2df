"""Streaming scores equal one forward; recall is judged where a needle could be selected at all."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gca_lit import scoring
from gca_lit.attention import SlidingWindow
from gca_lit.model import DecoderConfig
from gca_lit.network import NetworkModule
from gca_lit.scoring import Retrieved, Score, recall, score
from gca_lit.tasks.base import Episode

VOCAB = 11


@dataclass(frozen=True)
class RunningState:
    total: Tensor
    position: int

    def bytes(self) -> dict[str, int]:
        return {"device": 8, "host": 0, "disk": 0}


class RunningSum:
    """A hidden state is the sum of all tokens so far; logits are a fixed function of it. It notes what was read."""

    def __init__(self, chunk_size: int | None = None) -> None:
        self.chunk_size = chunk_size
        self.reads: list[tuple[int, int, str | slice]] = []
        self.most_logits = 0

    def new_state(self, batch_size: int, store: object) -> RunningState:
        return RunningState(torch.zeros(batch_size, 1, dtype=torch.float64), 0)

    def step(self, tokens: Tensor, state: RunningState, read: str | slice = "all") -> SimpleNamespace:
        stop = state.position + tokens.shape[1]
        self.reads.append((state.position, stop, read))
        sums = state.total + tokens.cumsum(1)
        wanted = read if isinstance(read, slice) else slice(0, 0) if read == "none" else slice(None)
        after = RunningState(sums[:, -1:], stop)
        return SimpleNamespace(hidden=sums[:, wanted, None], selections=(), first_chunk=0, state=after)

    def logits(self, hidden: Tensor) -> Tensor:
        self.most_logits = max(self.most_logits, hidden.shape[0] * hidden.shape[1])
        return torch.sin(hidden * torch.arange(1, VOCAB + 1))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (2, 50), generator=generator)
    targets = torch.full_like(tokens, -100)
    targets[0, 20:23] = tokens[0, 21:24]
    targets[1, 22] = tokens[1, 23]
    targets[:, 41] = tokens[:, 42]
    return tokens, targets


@pytest.mark.parametrize("segment", [1, 7, 16, 49, 50, 1000])
def test_segments_score_as_one_forward(batch, segment):
    tokens, targets = batch
    got = score(RunningSum(), tokens, targets, segment)
    logits = RunningSum().logits(tokens.cumsum(1).double()[..., None]).float()
    expected = {
        (row, position): (
            torch.nn.functional.cross_entropy(logits[row, position], targets[row, position]).item(),
            logits[row, position].argmax().item(),
        )
        for row, position in (targets != -100).nonzero().tolist()
    }
    seen = dict(zip(zip(got.rows.tolist(), got.positions.tolist(), strict=True), range(len(got.nll)), strict=True))
    assert seen.keys() == expected.keys()
    for where, (nll, prediction) in expected.items():
        assert got.nll[seen[where]].item() == pytest.approx(nll, rel=1e-5)
        assert got.predictions[seen[where]] == prediction
        assert got.correct[seen[where]] == (prediction == targets[where])
    assert got.nll.dtype == torch.float32 and got.tokens == 100 and got.bytes["device"] == 8


def test_only_what_is_scored_is_read(batch):
    model = RunningSum(chunk_size=5)
    score(model, *batch, segment=13)  # whole chunks: segments of 10
    reads = ["none", "none", slice(0, 3), "none", slice(1, 2)]
    assert model.reads == [(start, start + 10, read) for start, read in zip(range(0, 50, 10), reads, strict=True)]


def test_reading_starts_earlier_on_request(batch):
    model = RunningSum()
    early, plain = score(model, *batch, segment=16, read_from=5), score(RunningSum(), *batch, segment=16)
    assert model.reads == [(0, 16, slice(5, 16)), (16, 32, slice(0, 16)), (32, 48, slice(0, 10)), (48, 50, "none")]
    assert len(early.retrieved) == 3 and torch.equal(early.nll, plain.nll)


def test_logits_come_in_pieces(monkeypatch, batch):
    monkeypatch.setattr(scoring, "LOGIT_ROWS", 8)
    tokens, _ = batch
    model = RunningSum()
    got = score(model, tokens, tokens.roll(-1, 1), segment=30)
    assert model.most_logits == 8 and len(got.nll) == 100


def test_nothing_to_score(batch):
    tokens, _ = batch
    got = score(RunningSum(), tokens, torch.full_like(tokens, -100), segment=16)
    assert len(got.nll) == 0 and got.retrieved == ()


def test_wrong_arguments(batch):
    tokens, targets = batch
    with pytest.raises(ValueError, match="one shape"):
        score(RunningSum(), tokens, targets[:, :-1], segment=16)
    with pytest.raises(ValueError, match="at least 1"):
        score(RunningSum(), tokens, targets, segment=0)


# Chunks of 10: the needle is in chunk 2, the question ends in chunk 6, the answer is in chunk 8; chunks 7 and 8 count.
EPISODE = Episode(torch.zeros(90), torch.zeros(90), ((23, 27),), asked=65, answer=(81, 84), depth=0.3, distance=54)


def retrieved(first_chunk: int, ids: list[list[int]], best: int = 0) -> Retrieved:
    """One group; column j serves first_chunk + j, and slot `best` has the highest weight."""
    weights = torch.full((len(ids), len(ids[0])), 0.1)
    weights[:, best] = 0.9
    return Retrieved(first_chunk, ((torch.tensor([ids]), weights[None]),))


def scored(*parts: Retrieved) -> Score:
    nothing = torch.empty(0)
    return Score(nothing, nothing, nothing, nothing, nothing, parts, 0, 0.0, {})


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([retrieved(7, [[2, 5], [1, 3]])], (True, True)),  # best for chunk 7
        ([retrieved(7, [[5, 2], [1, 3]])], (False, True)),  # selected, not the best
        ([retrieved(7, [[5, 2], [1, 3]], best=1)], (True, True)),
        ([retrieved(7, [[5, 4], [1, 3]])], (False, False)),
        ([retrieved(5, [[2, 1], [2, 1], [0, 1], [0, 1]])], (False, False)),  # serves chunks before the question ends
        ([retrieved(8, [[0, 1], [2, 1]])], (False, False)),  # the second column serves a chunk after the answer's
        ([retrieved(7, [[0, 1]]), retrieved(8, [[2, 1]])], (True, True)),  # in the second of two segments
        ([retrieved(7, [[-1, 2], [-1, -1]])], (True, True)),  # an empty slot is never the best
        ([retrieved(3, [[2, 1]])], (None, None)),  # nothing served there
        ([], (None, None)),
    ],
)
def test_recall(parts, expected):
    assert recall(scored(*parts), EPISODE, chunk_size=10) == expected


def test_recall_needs_every_chunk_of_every_needle():
    two = replace(EPISODE, needles=((23, 27), (38, 42)))  # the second lies in chunks 3 and 4
    assert recall(scored(retrieved(7, [[2, 3], [4, 1]])), two, 10) == (True, True)
    assert recall(scored(retrieved(7, [[2, 0], [4, 1]])), two, 10) == (True, False)
    assert recall(scored(retrieved(7, [[3, 4], [1, 0]])), two, 10) == (False, False)


def test_recall_of_groups_and_rows():
    first, second = retrieved(7, [[0, 1], [0, 1]]), retrieved(7, [[2, 1], [0, 1]])
    groups = scored(Retrieved(7, (first.groups[0], second.groups[0])))
    assert recall(groups, EPISODE, 10) == (True, True)
    (a, weights), (b, _) = first.groups[0], second.groups[0]
    rows = scored(Retrieved(7, ((torch.cat((a, b)), weights.expand(2, -1, -1)),)))
    assert recall(rows, EPISODE, 10, row=0) == (False, False)
    assert recall(rows, EPISODE, 10, row=1) == (True, True)


@pytest.mark.parametrize(
    "episode",
    [
        replace(EPISODE, needles=()),
        replace(EPISODE, needles=((68, 72),)),  # reaches chunk 7; the selection that serves chunk 8 sees up to 6
        replace(EPISODE, asked=82),  # question and answer share a chunk
    ],
)
def test_recall_has_nothing_to_judge(episode):
    assert recall(scored(retrieved(7, [[2, 5], [2, 3]])), episode, 10) == (None, None)
    assert recall(scored(retrieved(7, [[2, 5], [2, 3]])), EPISODE, None) == (None, None)


@pytest.mark.gpu
def test_a_text_stays_on_the_host():
    model = NetworkModule(
        SlidingWindow(window=16),
        DecoderConfig(width=16, heads=1, kv_heads=1, layers=1, mlp_width=16),
        vocab_size=32,
        compile=False,
    )
    model.configure_model()
    model.cuda()
    peaks = []
    for length in (1 << 15, 1 << 23):
        torch.cuda.reset_peak_memory_stats()
        score(model, torch.zeros(1, length, dtype=torch.long), torch.full((1, length), -100), segment=1 << 14)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] < 1 << 22  # the tokens of the longer one take 64 MiB
