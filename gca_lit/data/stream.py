"""The order of training blocks, and the loaders that turn it into batches.

Training consumes an endless sequence of blocks, counted by a *position*. A block is `train_length` tokens of the
stream of all tokens. Position p belongs to epoch p // blocks, and every epoch is a seeded permutation: which block
stands at a position depends on nothing else, so ranks, workers, batch size and resuming never change the order.

At row length L the block at position p is cut into train_length / L rows. The number of a row is that of its first
token among all training tokens since the start, p * train_length + j * L: no two rows of a run share it.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gca_lit.data.curriculum import Switch, length_at
from gca_lit.data.hashing import permutation
from gca_lit.data.mixture import RowMaker
from gca_lit.data.shards import ShardReader
from gca_lit.tasks.base import IGNORED

PREFETCH = 2  # batches that a worker prepares ahead
HORIZON = 16  # batches between the call of `switch_length` and the switch: more than any set of workers is ahead


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


class BlockStream:
    """Where training is in the sequence of blocks: `position` of them are handed out, in `batches` global batches.

    Args:
        steps: Tells how many optimizer steps are done, so that batches whose gradients are lost can be repeated.
    """

    def __init__(self, blocks: int, train_length: int, seed: int, steps: Callable[[], int] | None = None) -> None:
        self.blocks = blocks
        self.train_length = train_length
        self.seed = seed
        self.switches: list[Switch] = [(0, train_length)]
        self.position = 0
        self.batches = 0
        self._epoch = (-1, np.empty(0, np.int64))
        self._steps = steps
        self._window = (0, 0)  # optimizer steps done, and position, when the first batch of the next step was asked for

    def go_on(self, position: int, step: int, batches: int) -> None:
        """Stand where optimizer step `step` has used the blocks before `position`."""
        self.position, self.batches, self._window = position, batches, (step, position)

    def hand_out(self, blocks: int) -> None:
        """Count the next global batch. It is asked for when all earlier ones have been trained on."""
        if self._steps is not None and self._steps() != self._window[0]:
            self._window = (self._steps(), self.position)
        self.position += blocks
        self.batches += 1

    @property
    def used(self) -> int:
        """The position behind the blocks that optimizer steps have used."""
        step, start = self._window
        return self.position if self._steps is None or self._steps() != step else start

    def block(self, position: int) -> int:
        """The block that stands at `position`."""
        epoch, place = divmod(position, self.blocks)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, permutation(self.blocks, self.seed, epoch))
        return int(self._epoch[1][place])

    def work(self, start: int, batch_size: int, rank: int = 0) -> Work:
        """The share of `rank` in the global batch that begins at position `start`: `batch_size` blocks."""
        first = start + rank * batch_size
        positions = list(range(first, first + batch_size))
        return Work(positions, [self.block(position) for position in positions], length_at(self.switches, start))

    def switch(self, length: int, position: int) -> None:
        """Rows have `length` tokens from `position` on."""
        self.switches = [switch for switch in self.switches if switch[0] < position] + [(position, length)]


class BlockRows(Dataset[Batch]):
    """Makes the batch of a `Work`: its blocks cut into rows, each row text or task."""

    def __init__(self, reader: ShardReader, train_length: int, rows: RowMaker, reset_at_document: bool = False) -> None:
        self.reader = reader
        self.train_length = train_length
        self.rows = rows
        self.reset_at_document = reset_at_document

    def __getitem__(self, work: Work) -> Batch:
        made = []
        for position, block in zip(work.positions, work.blocks, strict=True):
            for offset in range(0, self.train_length, work.length):
                number = position * self.train_length + offset
                made.append(self._row(number, block * self.train_length + offset, work.length))
        tokens, targets, numbers, task, documents = zip(*made, strict=True)
        return Batch(
            torch.stack(tokens),
            torch.stack(targets),
            torch.tensor(numbers),
            torch.tensor(task),
            torch.stack(documents) if self.reset_at_document else None,
        )

    def _row(self, number: int, start: int, length: int) -> tuple[Tensor, Tensor, int, int, Tensor]:
        if start < 0:
            blank = torch.zeros(length, dtype=torch.int64)
            return blank, torch.full_like(blank, IGNORED), -1, -1, torch.full_like(blank, -1)
        text = torch.from_numpy(self.reader.tokens(start, start + length + 1))
        tokens, targets, task = self.rows(number, text)
        documents = torch.full_like(tokens, -1)
        if self.reset_at_document and task < 0:
            of = torch.from_numpy(
                np.searchsorted(self.reader.documents[1], np.arange(start, start + length + 1), "right")
            )
            documents = of[:-1]
            targets = targets.masked_fill(of[1:] != documents, IGNORED)
        return tokens, targets, number, task, documents


class Batches(Sized):
    """A loader of one batch per `Work`. Its length keeps Lightning from fetching a batch ahead of training; being no
    DataLoader, it keeps Lightning from exchanging the sampler."""

    def __init__(self, rows: BlockRows, works: Sequence[Work] | Sampler[Work], length: int, num_workers: int) -> None:
        self._length = length
        self._loader: DataLoader[Batch] = DataLoader(
            rows,
            sampler=works,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCH if num_workers else None,
            worker_init_fn=_leave_signals_to_training,
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # what was under way from a worker that died
                if (death := self._death()) is None:
                    raise
                raise death from error
            yield batch

    def _death(self) -> RuntimeError | None:
        """The death of a worker in the words of PyTorch, where one is dead."""
        for worker in getattr(self._loader._iterator, "_workers", ()):
            worker.join(timeout=1)
            if worker.exitcode:
                return RuntimeError(f"DataLoader worker (pid {worker.pid}) ended with exit code {worker.exitcode}")
        return None

    def close(self) -> None:
        """End the worker processes now: left to the garbage collector, that can take seconds for each."""
        workers = self._loader._iterator
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None


def _leave_signals_to_training(worker: int) -> None:
    """Live on when a terminal or a scheduler signals all processes: training stops in its own time and needs its
    workers until then. Only the SIGTERM of the training process itself ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def dead_worker(error: RuntimeError) -> str | None:
    """What to say about a worker process that died, None when `error` tells of something else."""
    found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
    if found is None:
        return None
    return (
        f"the data-loader worker with pid {found[1]} {found[2].rstrip('. ')}. Most likely the host ran out of memory: "
        "take fewer workers (data.num_workers) or smaller batches, and look for the pid in the kernel's log"
    )


class TrainBatches(Batches):
    """The batches of one rank from the stream's position on; `length` of them are one epoch in Lightning's eyes.

    The position moves on when a batch is handed out. It is saved by the data module, not here: the two state methods
    only tell Lightning that training can go on in the middle of an epoch.
    """

    def __init__(
        self,
        rows: BlockRows,
        stream: BlockStream,
        batch_size: int,
        rank: int,
        world: int,
        length: int,
        num_workers: int,
    ) -> None:
        self._stream = stream
        self._step = batch_size * world
        super().__init__(rows, _TrainWorks(stream, batch_size, rank, world), length, num_workers)

    def __iter__(self) -> Iterator[Batch]:
        for batch in islice(super().__iter__(), self._length):
            self._stream.hand_out(self._step)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _TrainWorks(Sampler[Work]):
    def __init__(self, stream: BlockStream, batch_size: int, rank: int, world: int) -> None:
        self._stream, self._batch_size, self._rank, self._world = stream, batch_size, rank, world

    def __iter__(self) -> Iterator[Work]:
        position = self._stream.position
        while True:
            yield self._stream.work(position, self._batch_size, self._rank)
            position += self._batch_size * self._world


def in_sequence(blocks: int, train_length: int, batch_size: int, rank: int, world: int) -> list[Work]:
    """All blocks once, in order, rank r taking every world-th: the same number of batches on every rank.

    Ranks without a last block of their own get a row without targets in its place: nothing is counted twice.
    """
    mine = [block if block < blocks else -1 for block in range(rank, -(-blocks // world) * world, world)]
    cuts = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return [Work(cut, cut, train_length) for cut in cuts]
