"""The order of training blocks, and the loaders that turn it into batches.

Training consumes an endless sequence of blocks, counted by a *position*. A block is `train_length` tokens of the
stream of all tokens. Position p belongs to epoch p // blocks, and every epoch is a seeded permutation (`order`): which
block stands at a position depends on nothing else, so ranks, workers, batch size and resuming never change the order.

At row length L the block at position p is cut into train_length / L rows. The number of a row is that of its first
token among all training tokens since the start, p * train_length + j * L: no two rows of a run share it.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler

from gca_lit.data.curriculum import Switch, length_at
from gca_lit.data.order import EpochOrder, Order
from gca_lit.data.rows import Batch, BlockRows, Made, Work

PREFETCH = 2  # batches that a worker prepares ahead
ORPHANED = 1.0  # seconds until a worker notices that training is gone
HORIZON = 16  # batches between the call of `switch_length` and the switch: more than any set of workers is ahead


class BlockStream:
    """Where training is in the sequence of blocks: `position` of them are handed out, in `batches` global batches.

    Args:
        steps: Tells how many optimizer steps are done, so that batches whose gradients are lost can be repeated.
        order: In which order the blocks come; all blocks of an epoch permuted unless given.
    """

    def __init__(
        self,
        blocks: int,
        train_length: int,
        seed: int,
        steps: Callable[[], int] | None = None,
        order: Order | None = None,
    ) -> None:
        self.blocks = blocks
        self.train_length = train_length
        self.switches: list[Switch] = [(0, train_length)]
        self.position = 0
        self.batches = 0
        self._order = order or EpochOrder(blocks, seed)
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
        return self._order(position)

    def work(self, start: int, batch_size: int, rank: int = 0) -> Work:
        """The share of `rank` in the global batch that begins at position `start`: `batch_size` blocks."""
        first = start + rank * batch_size
        positions = list(range(first, first + batch_size))
        return Work(positions, [self.block(position) for position in positions], length_at(self.switches, start))

    def switch(self, length: int, position: int) -> None:
        """Rows have `length` tokens from `position` on."""
        self.switches = [switch for switch in self.switches if switch[0] < position] + [(position, length)]


class Batches(Sized):
    """A loader of one batch per `Work`. Its length keeps Lightning from fetching a batch ahead of training; being no
    DataLoader, it keeps Lightning from exchanging the sampler. Workers that read a remote data set are started afresh:
    clients of remote storages do not survive a fork."""

    def __init__(self, rows: BlockRows, works: Sequence[Work] | Sampler[Work], length: int, num_workers: int) -> None:
        self._length = length
        self._loader: DataLoader[Made] = DataLoader(
            rows,
            sampler=works,
            batch_size=None,
            collate_fn=_as_it_is,  # the default makes tensors
            num_workers=num_workers,
            multiprocessing_context="spawn" if num_workers and rows.reader.remote else None,
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
                made = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # what was under way from a worker that died
                if (death := self._death()) is None:
                    raise
                raise death from error
            yield made.batch()

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


def _as_it_is(made: Any) -> Any:
    return made


def _leave_signals_to_training(worker: int) -> None:
    """Live on when a terminal or a scheduler signals all processes: training stops in its own time and needs its
    workers until then. Only the SIGTERM of the training process itself ends this one, and that process's own end: a
    worker that fills a pipe which nobody empties any more would stay for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            got = signal.sigtimedwait({signal.SIGTERM}, ORPHANED)
            if got is not None and got.si_pid == parent:
                break
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
