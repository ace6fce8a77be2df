"""Batches of training rows: blocks cut into rows, each row text or task.

Workers send arrays of small types by value, through a pipe: for batches of some ten thousand tokens that is faster than
tensors in shared memory, and needs none of it. Tensors are made where the batch is used.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gca_lit.data.mixture import RowMaker
from gca_lit.data.shards import ShardReader
from gca_lit.tasks.base import IGNORED


class Batch(NamedTuple):
    """tokens: int64 [B, T]. targets: int64 [B, T], -100 where there is none. rows: int64 [B], the numbers of the rows.
    task: int64 [B], index into the data module's `task_names`, -1 for plain text. documents: int64 [B, T], the document
    of each token (-1 in task rows), or None unless attention is reset at documents."""

    tokens: Tensor
    targets: Tensor
    rows: Tensor
    task: Tensor
    documents: Tensor | None


class Work(NamedTuple):
    """What a worker needs to make a batch: the blocks at these positions, cut into rows of `length` tokens.

    Block -1 stands for a row without targets, which fills up a rank in evaluation.
    """

    positions: list[int]
    blocks: list[int]
    length: int


class Made(NamedTuple):
    """What a worker makes of a `Work`: the fields of a `Batch` as arrays of small types.

    ids: uint16 or uint32 [B, T + 1], the tokens of a row and the one after it. targets: None where they are just the
    following tokens of all rows.
    """

    ids: np.ndarray
    targets: np.ndarray | None
    rows: np.ndarray
    task: np.ndarray
    documents: np.ndarray | None

    def batch(self) -> Batch:
        """The tensors."""
        return Batch(
            _tensor(self.ids[:, :-1]),
            _tensor(self.ids[:, 1:] if self.targets is None else self.targets),
            _tensor(self.rows),
            _tensor(self.task),
            None if self.documents is None else _tensor(self.documents),
        )

    def own_targets(self) -> np.ndarray:
        """Targets that can be changed, [B, T] in a type that holds IGNORED too."""
        if self.targets is not None:
            return self.targets
        return self.ids[:, 1:].astype(np.promote_types(self.ids.dtype, np.int8))


class BlockRows(Dataset[Made]):
    """Makes the rows of a `Work`."""

    def __init__(self, reader: ShardReader, train_length: int, rows: RowMaker, reset_at_document: bool = False) -> None:
        self.reader = reader
        self.train_length = train_length
        self.rows = rows
        self.reset_at_document = reset_at_document

    def __getitem__(self, work: Work) -> Made:
        cuts = np.arange(0, self.train_length, work.length)
        starts, numbers = (
            (np.array(of)[:, None] * self.train_length + cuts).ravel() for of in (work.blocks, work.positions)
        )
        blank = starts < 0
        ids = self.reader.rows(starts.clip(0).tolist(), work.length + 1)
        made = Made(ids, None, numbers, np.full(len(ids), -1), None)
        if self.reset_at_document:
            made = self._with_documents(made, starts)
        if self.rows.mixture.has_tasks:
            made = self._with_tasks(made)
        return _with_blanks(made, blank) if blank.any() else made

    def _with_documents(self, made: Made, starts: np.ndarray) -> Made:
        """Tell the document of each token, and take out the targets in another document than their token."""
        ends = self.reader.documents[1]
        begins = np.zeros(made.ids.shape, bool)
        documents = np.empty(made.ids[:, 1:].shape, np.min_scalar_type(-len(ends)))
        for begin, document, start in zip(begins, documents, starts.tolist(), strict=True):
            first, last = np.searchsorted(ends, [start, start + len(document)], "right").tolist()
            begin[ends[first:last] - start] = True
            np.cumsum(begin[:-1], out=document)
            document += first
        targets = made.own_targets()
        targets[begins[:, 1:]] = IGNORED
        return made._replace(targets=targets, documents=documents)

    def _with_tasks(self, made: Made) -> Made:
        """Put task rows where the mixture wants them."""
        targets = made.own_targets()
        for i, number in enumerate(made.rows.tolist()):
            tokens, asked, task = self.rows(number, _tensor(made.ids[i]))
            if task >= 0:
                made.ids[i, :-1], targets[i], made.task[i] = tokens, asked, task
                if made.documents is not None:
                    made.documents[i] = -1
        return made._replace(targets=targets)


def _with_blanks(made: Made, blank: np.ndarray) -> Made:
    """Rows without targets where `blank`, bool [B], is true."""
    targets = made.own_targets()
    made.ids[blank], targets[blank], made.rows[blank] = 0, IGNORED, -1
    if made.documents is not None:
        made.documents[blank] = -1
    return made._replace(targets=targets)


def _tensor(array: np.ndarray) -> Tensor:
    """int64, and a copy where the array is of another type."""
    return torch.from_numpy(array.astype(np.int64, copy=False))
