"""The data module: its settings, and the loaders of every split."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from gca_lit.data import predict as prediction
from gca_lit.data.curriculum import LengthRule
from gca_lit.data.haystack import BookHaystack
from gca_lit.data.mixture import Mixture, RowMaker, RowTask
from gca_lit.data.order import ShardOrder
from gca_lit.data.pairs import Pairs, PairSet, PairTask
from gca_lit.data.predict import Predict, PredictItems
from gca_lit.data.progress import Pace, Progress, known_stages
from gca_lit.data.shard_cache import Cache
from gca_lit.data.splits import Splits
from gca_lit.data.stream import HORIZON, PREFETCH, Batches, BlockRows, BlockStream, TrainBatches, in_sequence
from gca_lit.data.tokenizers import label, load_tokenizer
from gca_lit.tasks.base import Task

_TEXT_ONLY = Mixture()
_DOCUMENTS = Predict()
_CACHE = Cache()
_ROWS = 0x726F7773  # sets the hash that picks text or task apart from the one that orders blocks


class ArrowDataModule(LightningDataModule):
    """Batches from token shards. Lengths count text tokens.

    Args:
        train: Directory of the training shards, or a remote address such as s3://bucket/path; also val and test.
        val: Directory of the validation shards.
        train_length: Tokens of a training block, the row length of the last stage.
        test: Directory of the test shards.
        tokenizer: "byte", or the path of a tokenizer.json; the one that the shards were made with.
        batch_size: Blocks per batch and rank; a batch has batch_size * train_length tokens at every stage.
        tasks: Tasks for evaluation, and for training rows where mixture.text is below 1.
        mixture: What training rows are made of.
        align: Chunk size to align the questions of training rows and "chunk" episodes to; None asks at the end.
        stages: Row lengths as [[optimizer step, length], ...]; without, all rows have the training length.
        growth: A rule that lengthens rows as the tasks are solved, instead of stages.
        reset_at_document: Also give the document of each token, and no target across the end of a document.
        seed: Seed of the order of blocks and of the training rows.
        shuffle_shards: Train on the blocks of so many shards at a time, shuffled; None shuffles all blocks of an epoch.
        cache: Where shards from remote addresses are kept on this machine.
        num_workers: Worker processes of each loader.
        verify: Compare all of every shard with its checksums when it is opened, not only samples of large ones.
        predict: What prediction runs on.
        pairs: Documents with targets, for training rows where mixture.text is below 1 and for generation.

    Raises ValueError for settings that do not fit each other, from `setup` also for shards that do not fit them.
    """

    def __init__(
        self,
        train: str,
        val: str,
        train_length: int,
        test: str | None = None,
        tokenizer: str = "byte",
        batch_size: int = 1,
        tasks: Sequence[Task] = (),
        mixture: Mixture = _TEXT_ONLY,
        align: int | None = None,
        stages: list[tuple[int, int]] | None = None,
        growth: LengthRule | None = None,
        reset_at_document: bool = False,
        seed: int = 1,
        shuffle_shards: int | None = None,
        cache: Cache = _CACHE,
        num_workers: int = 0,
        verify: bool = False,
        predict: Predict = _DOCUMENTS,
        pairs: Pairs | None = None,
    ) -> None:
        super().__init__()
        if train_length < 2 or batch_size < 1:
            raise ValueError(f"train_length >= 2 and batch_size >= 1 are needed, not {train_length} and {batch_size}")
        if shuffle_shards is not None and shuffle_shards < 1:
            raise ValueError(f"shuffle_shards must be 1 or more, or null to shuffle all blocks, not {shuffle_shards}")
        if not 0 <= num_workers * PREFETCH <= HORIZON:
            raise ValueError(f"data.num_workers must be 0 to {HORIZON // PREFETCH}, not {num_workers}")
        self._stages = known_stages(stages, growth, train_length)
        self.paths = {"train": train, "val": val, "test": test}
        self.train_length = train_length
        self.tokenizer = load_tokenizer(tokenizer)
        self.vocab_size = self.tokenizer.vocab_size
        self.tokenizer_id = label(self.tokenizer.name, self.tokenizer.identity)
        self.batch_size = batch_size
        self._pairs = None if pairs is None else PairTask(pairs, seed)
        row_tasks: list[RowTask] = [task.bind(seed, self.tokenizer.encode, align) for task in tasks]
        row_tasks += [] if self._pairs is None else [self._pairs]
        self.task_names = [task.name for task in row_tasks]
        if growth is not None:
            growth.check_tasks(self.task_names)
        if len(set(self.task_names)) < len(self.task_names):
            raise ValueError(f"tasks must have different names, not {self.task_names}")
        self.align = align
        self.growth = growth
        self.seed = seed
        self._tasks = list(tasks)
        self._shuffle_shards = shuffle_shards
        self._reset_at_document = reset_at_document
        self._num_workers = num_workers
        self._predict = predict
        self._splits = Splits(self.paths, pairs, self.tokenizer, verify, cache)
        self._progress: Progress | None = None
        self._loaders: list[Batches] = []
        self._rows = RowMaker(mixture, row_tasks, seed ^ _ROWS)

    @property
    def stage_length(self) -> int:
        """Tokens of a training row now: in the batch handed out last, or in the first one."""
        return self._stages[0][1] if self._progress is None else self._progress.length

    @property
    def switch_pending(self) -> bool:
        """Whether a switch to another row length is still to come."""
        return self._training().switch_pending

    def switch_length(self, length: int) -> int:
        """Make rows `length` tokens long, as soon as no worker can be ahead. Call it on every rank at the same step.

        Returns the position (blocks consumed) from which it holds. Raises ValueError when `length` does not divide the
        training length.
        """
        return self._training().switch(length)

    @property
    def epoch_steps(self) -> int:
        """Whole optimizer steps that the blocks allow, at least one."""
        return self._training().epoch_steps

    @property
    def steps_done(self) -> int:
        """Optimizer steps that would consume as many blocks as training has consumed, with the settings of this run."""
        return self._training().steps_done

    def tasks(self, placement: Literal["chunk", "end"], seed: int) -> list[Task]:
        """The tasks bound for evaluation. Raises ValueError for "chunk" without `align`."""
        if placement == "chunk" and self.align is None:
            raise ValueError('placement "chunk" needs data.align, the chunk size to align questions to')
        return [
            task.bind(seed, self.tokenizer.encode, self.align if placement == "chunk" else None) for task in self._tasks
        ]

    def haystack(self, split: Literal["train", "val", "test"], seed: int) -> BookHaystack:
        """The documents of a split as text to hide needles in."""
        return BookHaystack(self._splits.reader(split), seed)

    def pairs(self, split: Literal["train", "val", "test"]) -> PairSet:
        """The pairs of a split. Raises ValueError when data.pairs does not name them, or they cannot be used."""
        return self._splits.pairs(split)

    def setup(self, stage: str) -> None:
        """Open and check the splits that `stage` needs, and the rows that it trains on, before anything runs."""
        for _, length in self._stages if stage == "fit" else ():
            self._rows.check_length(length)
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self._splits.blocks(split, self.train_length)
        if stage == "predict" and self._predict.source != "file":
            self._splits.reader("test")
        self._check_tasks(stage)
        if stage == "fit" and self._pairs is not None:
            self._pairs.pairs = self.pairs("train")
        if stage == "fit" and self._progress is None:
            self._progress = self._begin()

    def train_dataloader(self) -> TrainBatches:
        rows = BlockRows(self._splits.reader("train"), self.train_length, self._rows, self._reset_at_document)
        batches = self.epoch_steps * self._pace().accumulate
        rank, world = self._rank_and_world
        loader = TrainBatches(rows, self._training().stream, self.batch_size, rank, world, batches, self._num_workers)
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> Batches:
        return self._in_sequence("val")

    def test_dataloader(self) -> Batches:
        return self._in_sequence("test")

    def predict_dataloader(self) -> PredictItems:
        settings = self._predict
        if settings.source == "file":
            items = prediction.text_file(settings.file or "", self.tokenizer, settings.length)
        elif settings.source == "documents":
            items = prediction.documents(self._splits.reader("test"), settings.count, settings.length)
        else:
            tasks = self.tasks(settings.placement, self.seed)
            length = settings.length or self.train_length
            items = prediction.episodes(tasks, self.haystack("test", self.seed), settings.count, length)
        rank, world = self._rank_and_world
        return items[rank::world]

    def teardown(self, stage: str) -> None:
        """End the worker processes."""
        while self._loaders:
            self._loaders.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """Where training was after its last optimizer step, in plain values; empty unless training was set up."""
        if self._progress is None:
            return {}
        return self._progress.state_dict(self.trainer.global_step if self.trainer is not None else 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with any number of ranks and workers; outside of training nothing is restored.

        What growth has decided is restored; fixed stages come from the settings of this run. Raises ValueError for
        another data set, seed, training length or shuffle_shards.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._training().load_state_dict(state)

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _pace(self) -> Pace:
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return Pace(self.batch_size * self._rank_and_world[1], accumulate)

    def _begin(self) -> Progress:
        """Training at its beginning. Raises ValueError when its order does not suit the cache of a remote data set."""
        reader, blocks = self._splits.reader("train"), self._splits.blocks("train", self.train_length)
        reader.files.check_order(self._shuffle_shards)
        order = None
        if self._shuffle_shards is not None:
            order = ShardOrder(reader.starts, blocks, self.train_length, self._shuffle_shards, self.seed)
        trainer = self.trainer
        steps = None if trainer is None else lambda: trainer.global_step
        stream = BlockStream(blocks, self.train_length, self.seed, steps, order)
        fingerprint = {
            "data set": reader.identity[:16],
            "blocks": blocks,
            "train_length": self.train_length,
            "seed": self.seed,
            "shuffle_shards": self._shuffle_shards,
            **({} if self._pairs is None else {"pairs": self.pairs("train").identity[:16]}),
        }
        return Progress(stream, self._stages, self.growth, fingerprint, self._pace)

    def _training(self) -> Progress:
        if self._progress is None:
            raise RuntimeError('training data is not set up: call setup("fit") first')
        return self._progress

    def _check_tasks(self, stage: str) -> None:
        """Raise ValueError when a task finds no text for its episodes in the split that it is evaluated on."""
        split = {"fit": "val", "validate": "val", "test": "test", "predict": "test"}.get(stage)
        if split is not None and (stage != "predict" or self._predict.source == "episodes"):
            for task in self._tasks:
                task.check_haystack(BookHaystack(self._splits.reader(split), self.seed))

    def _in_sequence(self, split: str) -> Batches:
        reader, blocks = self._splits.reader(split), self._splits.blocks(split, self.train_length)
        text = BlockRows(reader, self.train_length, RowMaker(_TEXT_ONLY, [], self.seed), self._reset_at_document)
        works = in_sequence(blocks, self.train_length, self.batch_size, *self._rank_and_world)
        self._loaders.append(Batches(text, works, len(works), self._num_workers))
        return self._loaders[-1]
