import subprocess
import sys

import pytest
import torch

from gca_lit.data.mixture import Mixture, RowMaker
from gca_lit.data.shards import ShardReader
from gca_lit.data.stream import Batch, Batches, BlockRows, BlockStream, TrainBatches, in_sequence
from gca_lit.tasks.base import Task

T = 64


@pytest.fixture
def rows(reader: ShardReader, mark_task: Task) -> BlockRows:
    tasks = [mark_task.bind(1, lambda text: list(text.encode()), None)]
    return BlockRows(reader, T, RowMaker(Mixture(text=0.5), tasks, seed=1), reset_at_document=True)


def stream_at(position: int = 0) -> BlockStream:
    stream = BlockStream(2100 // T, T, seed=9)
    stream.switches = [(0, 16), (12, 32), (40, 64)]
    stream.position = position
    return stream


def train(rows: BlockRows, position: int, count: int, batch_size: int = 4, **layout: int) -> list[Batch]:
    settings = {"rank": 0, "world": 1, "num_workers": 0, **layout}
    return list(TrainBatches(rows, stream_at(position), batch_size, length=count, **settings))


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(left, right, strict=True) if x is not None and y is not None)


def test_order_is_a_pure_function() -> None:
    stream = stream_at()
    order = [stream.block(position) for position in range(96)]
    assert [stream_at().block(position) for position in reversed(range(96))] == order[::-1]
    epochs = [order[i : i + 32] for i in (0, 32, 64)]
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_are_unique_and_tokens_per_step_constant(rows: BlockRows) -> None:
    batches = train(rows, 0, 15)
    assert [batch.tokens.shape for batch in batches[:11:5]] == [(16, 16), (8, 32), (4, 64)]
    assert {batch.tokens.numel() for batch in batches} == {4 * T}
    numbers = torch.cat([batch.rows for batch in batches])
    assert numbers.unique().numel() == numbers.numel()


def test_text_rows_are_the_stream(rows: BlockRows, reader: ShardReader) -> None:
    for batch in train(rows, 36, 3):
        assert batch.documents is not None
        for i in torch.nonzero(batch.task < 0).flatten().tolist():
            position, offset = divmod(int(batch.rows[i]), T)
            start = stream_at().block(position) * T + offset
            length = batch.tokens.shape[1]
            text = torch.from_numpy(reader.tokens(start, start + length + 1))
            assert batch.tokens[i].equal(text[:-1])
            ends = batch.tokens[i] == 256
            assert (batch.targets[i] == text[1:].masked_fill(ends, -100)).all()
            assert batch.documents[i].diff().equal(ends[:-1].long())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(rows: BlockRows, workers: int) -> None:
    assert_equal(train(rows, 4, 12), train(rows, 4, 12, num_workers=workers))


def test_ranks_change_nothing(rows: BlockRows) -> None:
    ranks = [train(rows, 0, 12, batch_size=2, rank=rank, world=2) for rank in range(2)]
    joined = [
        Batch(*(torch.cat(parts) for parts in zip(*pair, strict=True)))  # type: ignore[arg-type]
        for pair in zip(*ranks, strict=True)
    ]
    assert_equal(train(rows, 0, 12), joined)


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_at_any_position(rows: BlockRows, workers: int) -> None:
    unbroken = train(rows, 0, 14)
    for done in range(0, 14, 3):
        assert_equal(unbroken[done:], train(rows, 4 * done, 14 - done, num_workers=workers))


def test_next_epoch_goes_on_where_the_last_one_stopped(rows: BlockRows) -> None:
    loader = TrainBatches(rows, stream_at(), 4, rank=0, world=1, length=5, num_workers=2)
    assert len(loader) == 5
    assert_equal(train(rows, 0, 10), [*loader, *loader])


@pytest.mark.parametrize("world, batch_size", [(1, 4), (2, 3), (3, 1), (5, 2)])
def test_evaluation_takes_every_block_once(reader: ShardReader, world: int, batch_size: int) -> None:
    rows = BlockRows(reader, T, RowMaker(Mixture(), [], 1))
    lengths, seen, scored = set(), [], 0
    for rank in range(world):
        works = in_sequence(32, T, batch_size, rank, world)
        batches = list(Batches(rows, works, len(works), 0))
        lengths.add(len(batches))
        seen += [number for batch in batches for number in batch.rows.tolist() if number >= 0]
        scored += sum(int((batch.targets >= 0).sum()) for batch in batches)
    assert len(lengths) == 1 and sorted(seen) == [block * T for block in range(32)] and scored == 32 * T


ORPHAN = """
import multiprocessing, os, signal
from gca_lit.data.stream import _leave_signals_to_training

def work(writing):
    _leave_signals_to_training(0)
    print("at work", flush=True)
    while True:
        os.write(writing, bytes(65536))  # the reading end is open here, too: this blocks for ever

_, writing = os.pipe()
multiprocessing.get_context("fork").Process(target=work, args=(writing,)).start()
signal.pause()
"""


def test_a_worker_ends_with_a_training_that_was_killed() -> None:
    training = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE)
    assert training.stdout is not None and training.stdout.readline() == b"at work\n"
    training.kill()
    training.communicate(timeout=20)  # until the worker has closed its end of the output
