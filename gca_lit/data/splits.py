"""The data sets of each split: its text, and its pairs where there are any."""

from gca_lit.data.pairs import Pairs, PairSet, open_pairs
from gca_lit.data.shard_cache import Cache
from gca_lit.data.shards import ShardReader
from gca_lit.data.tokenizers import Tokenizer


class Splits:
    """Opens and checks the data sets of train, val and test when they are first asked for, and keeps them open.

    Args:
        paths: Directory or remote address of the text of each split, None where there is none.
        pairs: Those of the pairs, and how to read them; None without pairs.
        tokenizer: The one that all of them were made with.
        verify: Compare all of every shard with its checksums.
        cache: Where shards from remote addresses are kept.

    Raises ValueError for a split that is not set, and what `ShardReader` and `open_pairs` raise.
    """

    def __init__(
        self, paths: dict[str, str | None], pairs: Pairs | None, tokenizer: Tokenizer, verify: bool, cache: Cache
    ) -> None:
        self.cache = cache
        self._paths = paths
        self._pairs = pairs
        self._tokenizer = tokenizer
        self._verify = verify
        self._readers: dict[str, ShardReader] = {}
        self._pair_sets: dict[str, PairSet] = {}

    def reader(self, split: str) -> ShardReader:
        """The text of a split."""
        path = self._paths[split]
        if path is None:
            raise ValueError(f"data.{split} is not set: name the directory of its shards")
        if split not in self._readers:
            self._readers[split] = ShardReader(path, self._tokenizer, self._verify, self.cache)
        return self._readers[split]

    def blocks(self, split: str, train_length: int) -> int:
        """Blocks of a split; one more token is needed for the last target. Raises ValueError when there is none."""
        reader = self.reader(split)
        blocks = (reader.total - 1) // train_length
        if blocks < 1:
            raise ValueError(
                f"{reader.place} holds {reader.total} tokens, too few for one block of "
                f"train_length {train_length} and its last target: add text, or take a shorter train_length"
            )
        return blocks

    def pairs(self, split: str) -> PairSet:
        """The pairs of a split."""
        if self._pairs is None or (path := getattr(self._pairs, split)) is None:
            raise ValueError(f"data.pairs.{split} is not set: name the directory of its pairs")
        if split not in self._pair_sets:
            self._pair_sets[split] = open_pairs(path, self._pairs, self._tokenizer, self._verify, self.cache)
        return self._pair_sets[split]
