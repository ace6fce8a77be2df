from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gca_lit.data.mixture import Mixture, RowMaker
from gca_lit.data.rows import BlockRows, Work
from gca_lit.data.shards import ShardReader
from gca_lit.tasks.base import Task

T = 64
WORK = Work([7, 8, -1, 9], [0, 31, -1, 11], 16)


@pytest.fixture
def reader(write: Callable[..., str]) -> ShardReader:
    return ShardReader(write(sizes=(700, 1, 1, 898, 17, 483)))


def test_documents_are_those_of_every_token(reader: ShardReader) -> None:
    batch = BlockRows(reader, T, RowMaker(Mixture(), [], 1), reset_at_document=True)[WORK].batch()
    assert batch.documents is not None
    ends = reader.documents[1]
    for i, number in enumerate(batch.rows.tolist()):
        if number < 0:
            assert (batch.documents[i] == -1).all() and (batch.targets[i] == -100).all()
            continue
        block, offset = divmod(number, T)
        start = dict(zip(WORK.positions, WORK.blocks, strict=True))[block] * T + offset
        of = np.searchsorted(ends, np.arange(start, start + 17), "right")
        following = reader.tokens(start + 1, start + 17)
        assert batch.documents[i].tolist() == of[:-1].tolist()
        assert batch.targets[i].tolist() == np.where(of[1:] == of[:-1], following, -100).tolist()
    assert len(batch.documents.unique()) > 2


def test_plain_text_sends_ids_alone(reader: ShardReader) -> None:
    made = BlockRows(reader, T, RowMaker(Mixture(), [], 1))[WORK._replace(positions=[7, 8], blocks=[0, 31])]
    assert made.targets is None and made.documents is None and made.ids.dtype == np.uint16
    batch = made.batch()
    assert batch.tokens[:, 1:].equal(batch.targets[:, :-1])
    assert batch.tokens.flatten().tolist() == [*reader.tokens(0, 64), *reader.tokens(31 * T, 32 * T)]


@pytest.mark.parametrize("text", [1.0, 0.5])
@pytest.mark.parametrize("documents", [False, True])
def test_tensors_are_contiguous_int64(reader: ShardReader, mark_task: Task, text: float, documents: bool) -> None:
    tasks = [mark_task.bind(1, lambda text: list(text.encode()), None)]
    batch = BlockRows(reader, T, RowMaker(Mixture(text=text), tasks, 1), documents)[WORK].batch()
    tensors = [field for field in batch if isinstance(field, Tensor)]
    assert len(tensors) == 4 + documents
    assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in tensors)
    if documents:
        assert batch.documents is not None and (batch.documents[batch.task >= 0] == -1).all()
        assert (batch.documents[(batch.task < 0) & (batch.rows >= 0)] >= 0).all()
    assert bool((batch.task >= 0).any()) == (text < 1)
    assert batch.tokens.shape == batch.targets.shape == (16, 16) and batch.rows.shape == batch.task.shape == (16,)
