"""Reads the token stream of a data set through memory maps."""

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gca_lit.data.shard_format import BATCH, DOCUMENTS, PREPARE, read_column, read_manifest
from gca_lit.data.tokenizers import Tokenizer
from gca_lit.data.verify import (
    all_errors,
    end_errors,
    file_errors,
    file_sizes,
    foreign_errors,
    sample_errors,
    size_errors,
)

VERIFY_BYTES = 64 << 20
SAMPLES = 16  # pieces of a large data set


class ShardReader:
    """The token stream of a data set: `total` tokens, `documents` = their (starts, ends), int64 [documents] each.

    Opening compares names and sizes with the manifest. A data set of up to 64 MB, or any with `verify=True`, is also
    read through; of a larger one 16 pieces of 4 MiB are compared with their checksums, and, when a shard is first read,
    its footer, its metadata, its last piece and another one. Files are mapped when they are first read, in each process
    on its own.

    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it; also when `tokenizer` is given
    and is not the one that the data set was made with.
    """

    def __init__(self, directory: str | Path, tokenizer: Tokenizer | None = None, verify: bool = False) -> None:
        self.directory = Path(directory)
        self._maps: dict[int, list[np.ndarray]] = {}
        if not self.directory.is_dir():
            raise FileNotFoundError(f"data set {directory} does not exist: run {PREPARE} {directory}")
        self.manifest = read_manifest(self.directory)
        if tokenizer is not None and tokenizer.identity != self.manifest["tokenizer"]["identity"]:
            raise ValueError(
                f"data set {directory} was made with tokenizer {_label(self.manifest['tokenizer'])}, but tokenizer "
                f"{_label({'name': tokenizer.name, 'identity': tokenizer.identity})} is asked for: prepare it again"
            )
        self.total: int = self.manifest["tokens"]
        self.identity: str = self.manifest["content"]
        self._files = [file for file in self.manifest["files"] if file["name"] != DOCUMENTS]
        counts = [file["tokens"] for file in self._files]
        self._starts: list[int] = np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist()
        self._check(verify or sum(file["bytes"] for file in self.manifest["files"]) <= VERIFY_BYTES)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the stream, int64 [stop - start]. Raises IndexError outside 0 .. total."""
        if not 0 <= start <= stop <= self.total:
            raise IndexError(f"tokens {start} to {stop} are outside {self.directory}, which holds {self.total}")
        out = np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            shard = bisect_right(self._starts, at) - 1
            batch, offset = divmod(at - self._starts[shard], BATCH)
            piece = self._views(shard)[batch][offset : offset + stop - at]
            out[at - start : at - start + len(piece)] = piece
            at += len(piece)
        return out

    @cached_property
    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        (entry,) = (file for file in self.manifest["files"] if file["name"] == DOCUMENTS)
        path = self._path(DOCUMENTS)
        _raise_first(file_errors(path, entry, self.manifest))
        ends = read_column(path)[1][0]
        _raise_first(end_errors(path, ends, self.total))
        return np.concatenate([[0], ends[:-1]]), ends

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in self.__dict__.items() if name != "documents"}, "_maps": {}}

    def _path(self, name: str) -> Path:
        """Where a file of the data set lies on this machine."""
        return self.directory / name

    def _sizes(self) -> dict[str, int]:
        """Name and size in bytes of every file where the data set is kept."""
        return file_sizes(self.directory)

    def _views(self, shard: int) -> list[np.ndarray]:
        """The record batches of a shard, mapped and looked at when it is first read."""
        if shard not in self._maps:
            file = self._files[shard]
            pieces = len(file["crc32"].split())
            path = self._path(file["name"])
            _raise_first(file_errors(path, file, self.manifest, {shard % pieces, pieces - 1}))
            self._maps[shard] = read_column(path)[1]
        return self._maps[shard]

    def _check(self, everything: bool) -> None:
        sizes = self._sizes()
        for file in self.manifest["files"]:
            _raise_first(size_errors(self.directory / file["name"], file, sizes.get(file["name"])))
        _raise_first(foreign_errors(self.directory, self.manifest, sizes))
        if everything:
            _raise_first(all_errors(self.manifest, self._path))
        else:
            _raise_first(sample_errors(self.manifest, self._path, SAMPLES))


def _raise_first(errors: Iterable[Exception]) -> None:
    for error in errors:
        raise error


def _label(tokenizer: dict[str, str]) -> str:
    return f"{tokenizer['name']} ({tokenizer['identity'][:12]})"
