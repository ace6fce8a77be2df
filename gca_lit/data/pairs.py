"""Pairs of a document and its target, such as an article and its summary: read from shards, made into training rows."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from gca_lit.data.remote import is_remote
from gca_lit.data.shard_cache import Cache
from gca_lit.data.shard_format import INDEX, PREPARE
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import Tokenizer
from gca_lit.tasks.base import IGNORED, Episode

TooLong = Literal["refuse", "cut"]
PREPARE_PAIRS = PREPARE.replace(" --output", " --target-column NAME --output")


@dataclass(frozen=True)
class Pairs:
    """Pairs to train on, where mixture.text is below 1, and to generate for. Lengths count text tokens.

    Args:
        train: Directory of the training pairs, as data.prepare makes it with --target-column, or its remote address.
        val: The same of the validation pairs.
        test: The same of the test pairs.
        separator: Text between a document and its target.
        max_length: Most tokens of a pair: document, separator, target and end of text.
        too_long: Refuse longer pairs, or cut their documents from the left.
    """

    train: str
    val: str
    test: str | None = None
    separator: str = "\n\nSummary: "
    max_length: int = 4096
    too_long: TooLong = "refuse"

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("pairs.separator must not be empty: the model learns from it that the document has ended")
        if self.too_long not in get_args(TooLong):
            raise ValueError(f'pairs.too_long must be "refuse" or "cut", not {self.too_long!r}')
        if self.max_length < 1:
            raise ValueError(f"pairs.max_length must be at least 1 token, got {self.max_length}")


class PairSet:
    """The pairs of a data set: `prompt` (document and separator) and `target` (which ends with end of text) of each.

    Pairs whose document or target is empty are left out; they have no number. Raises ValueError for a data set without
    pairs, and for pairs longer than `max_length` unless they are to be cut. How many are left out or cut is said aloud.
    """

    def __init__(self, reader: ShardReader, settings: Pairs, separator: list[int]) -> None:
        if "target_column" not in reader.manifest:
            raise ValueError(f"{reader.place} holds no pairs: run {PREPARE_PAIRS} {reader.place}")
        self.identity = reader.identity
        self._reader = reader
        self._separator = torch.tensor(separator)
        starts, ends = reader.documents
        self._documents = np.stack([starts[::2], ends[::2] - 1], 1)
        self._targets = np.stack([starts[1::2], ends[1::2]], 1)
        self._leave_out_empty()
        room = settings.max_length - len(separator) - np.diff(self._targets)[:, 0]
        over = np.diff(self._documents)[:, 0] - room
        if (worst := int(room.min())) < 0:
            raise ValueError(
                f"a target of {reader.place} has {settings.max_length - worst:,} tokens with its separator, more than "
                f"pairs.max_length = {settings.max_length:,}: raise it, or prepare the pairs without such targets"
            )
        if (long := int((over > 0).sum())) and settings.too_long == "refuse":
            raise ValueError(
                f"{long:,} of {len(over):,} pairs of {reader.place} are longer than pairs.max_length = "
                f"{settings.max_length:,}, the longest has {settings.max_length + int(over.max()):,} tokens: raise it, "
                "or set pairs.too_long to cut, to leave out the beginnings of their documents"
            )
        if long:
            rank_zero_info(f"{reader.place}: {long:,} of {len(over):,} documents are cut from the left")
        self._documents[:, 0] += over.clip(0)

    def _leave_out_empty(self) -> None:
        whole = (np.diff(self._documents)[:, 0] > 0) & (np.diff(self._targets)[:, 0] > 1)
        empty = f"{self._reader.place}: {int((~whole).sum()):,} of {len(whole):,} pairs have no document or no target"
        if not whole.any():
            raise ValueError(f"{empty}: prepare others")
        if not whole.all():
            rank_zero_info(f"{empty}, and are left out")
            self._documents, self._targets = self._documents[whole], self._targets[whole]

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self._documents).max()) + len(self._separator)

    def prompt(self, number: int) -> Tensor:
        """int64 [P]: the document of pair `number`, and the separator."""
        document = self._reader.tokens(*self._documents[number].tolist())
        return torch.cat((torch.from_numpy(document), self._separator))

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return int((np.diff(self._documents) + np.diff(self._targets)).max()) + len(self._separator)

    def target(self, number: int) -> Tensor:
        """int64 [A]: the target of pair `number`, and end of text."""
        return torch.from_numpy(self._reader.tokens(*self._targets[number].tolist()))

    def asked(self, number: int) -> tuple[Tensor, Tensor]:
        """The tokens [1, T] of pair `number` but the last, and of each the next one where that is of the target, else
        IGNORED."""
        prompt, target = self.prompt(number), self.target(number)
        targets = torch.cat((torch.full((len(prompt) - 1,), IGNORED), target))
        return torch.cat((prompt, target))[None, :-1], targets[None]


def open_pairs(path: str, settings: Pairs, tokenizer: Tokenizer, verify: bool, cache: Cache) -> PairSet:
    """The pairs in a directory or at a remote address.

    Raises FileNotFoundError where no data set was prepared, and what `ShardReader` and `PairSet` raise.
    """
    folder = Path(path)
    if not is_remote(path) and not (folder / INDEX).is_file():
        fault = "is no finished data set" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"data set {path} {fault}: run {PREPARE_PAIRS} {path}")
    return PairSet(ShardReader(path, tokenizer, verify, cache), settings, tokenizer.encode(settings.separator))


class PairTask:
    """Training rows of pairs. A row holds as many as are drawn before one does not fit, and then plain text.

    Pairs are drawn evenly and with replacement, by `seed` and the number of the row. `pairs` must be set before rows
    are made.
    """

    name = "pairs"

    def __init__(self, settings: Pairs, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.pairs: PairSet | None = None

    def min_length(self) -> int:
        return self.settings.max_length

    def row(self, length: int, index: int, text: Tensor) -> Episode:
        """A row of exactly `length` tokens whose targets ask for the targets of its pairs; text: int64 [length]."""
        assert self.pairs is not None
        random = Random(f"{self.seed}/{self.name}/{index}")
        tokens, targets = text.clone(), torch.full((length,), IGNORED)
        begin = stop = 0
        while True:
            number = random.randrange(len(self.pairs))
            prompt, target = self.pairs.prompt(number), self.pairs.target(number)
            if stop + len(prompt) + len(target) > length:
                break
            begin = stop + len(prompt)
            tokens[stop:begin] = prompt
            stop = begin + len(target)
            tokens[begin:stop] = target
            targets[begin - 1 : stop - 1] = target
        return Episode(tokens, targets, (), begin - 1, (begin, stop), None, 0)
