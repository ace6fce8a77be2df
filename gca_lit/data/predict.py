"""What `predict` runs on: task episodes, a text file, or documents of the test split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import Tokenizer
from gca_lit.tasks.base import IGNORED, Haystack, Task


@dataclass(frozen=True)
class Predict:
    """What prediction runs on.

    Args:
        source: Episodes of every task, documents of the test split, or the text in `file`.
        count: Episodes of each task, or documents.
        length: Tokens of an episode (default: the training length); longest part taken of a document or file.
        placement: Where episodes ask: at the end, or on a chunk border.
        file: A text file, with source "file".
    """

    source: Literal["episodes", "documents", "file"] = "documents"
    count: int = 4
    length: int | None = None
    placement: Literal["chunk", "end"] = "end"
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.source == "file") != (self.file is not None):
            raise ValueError('data.predict.file names the text of data.predict.source "file": give both, or neither')
        if self.count < 1 or (self.length is not None and self.length < 2):
            raise ValueError(f"predict needs count >= 1 and length >= 2, not {self.count} and {self.length}")


Item = dict[str, Any]


class PredictItems(Sequence[Item]):
    """Items that are made when they are asked for. An item is a dict of

    tokens, targets: int64 [1, T], targets shifted, -100 where there is none; kind: the task's name, "document" or
    "file"; index: number of the episode or document; for episodes also needles, asked, answer, depth and distance.
    """

    def __init__(self, makers: Sequence[Callable[[], Item]]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, i: Any) -> Any:
        return PredictItems(self._makers[i]) if isinstance(i, slice) else self._makers[i]()


def episodes(tasks: Sequence[Task], haystack: Haystack, count: int, length: int) -> PredictItems:
    """`count` episodes of `length` tokens of every task. Raises ValueError for no task, or one that does not fit."""
    if not tasks:
        raise ValueError('predict.source is "episodes", but data.tasks is empty: add a task')
    for task in tasks:
        if length < task.min_length():
            raise ValueError(f"predict.length is {length}, but the shortest {task.name} has {task.min_length()} tokens")
    return PredictItems([partial(_episode, task, haystack, i, length) for task in tasks for i in range(count)])


def documents(reader: ShardReader, count: int, length: int | None) -> PredictItems:
    """The first `count` documents, cut after `length` tokens."""
    return PredictItems([partial(_document, reader, i, length) for i in range(min(count, len(reader.documents[0])))])


def text_file(path: str, tokenizer: Tokenizer, length: int | None) -> PredictItems:
    """The text of one file, cut after `length` tokens.

    Raises FileNotFoundError; ValueError when it is not UTF-8, or has nothing to predict.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"predict.file {path} does not exist")
    try:
        ids = tokenizer.encode(Path(path).read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"predict.file {path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if len(ids) < 2:
        raise ValueError(f"predict.file {path} has {len(ids)} tokens, at least 2 are needed: write more text into it")
    return PredictItems([partial(_text, torch.tensor(ids[:length], dtype=torch.int64), "file", 0)])


def _episode(task: Task, haystack: Haystack, index: int, length: int) -> Item:
    item = dict(vars(task.episode(length, index, haystack)))
    item.update(tokens=item["tokens"].unsqueeze(0), targets=item["targets"].unsqueeze(0), kind=task.name, index=index)
    return item


def _document(reader: ShardReader, index: int, length: int | None) -> Item:
    start, stop = (int(bounds[index]) for bounds in reader.documents)
    tokens = reader.tokens(start, stop if length is None else min(stop, start + length))
    return _text(torch.from_numpy(tokens), "document", index)


def _text(tokens: Tensor, kind: str, index: int) -> Item:
    targets = tokens.roll(-1)
    targets[-1:] = IGNORED
    return {"tokens": tokens.unsqueeze(0), "targets": targets.unsqueeze(0), "kind": kind, "index": index}
