"""Reads the token stream of a data set through memory maps."""

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gca_lit.data.remote import is_remote
from gca_lit.data.shard_cache import Cache, RemoteFiles
from gca_lit.data.shard_format import BATCH, DOCUMENTS, PREPARE, read_column, read_manifest
from gca_lit.data.tokenizers import Tokenizer, label
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
_CACHE = Cache()


class LocalFiles:
    """The files of a data set in a directory of this machine. Any number of them may be mapped."""

    mapped = sys.maxsize

    def __init__(self, directory: str | Path) -> None:
        self.place = str(directory)
        self._directory = Path(directory)
        if self._directory.is_file():
            raise ValueError(
                f"data set {directory} is a file, not a directory of shards: run {PREPARE} DIRECTORY and name that"
            )
        if not self._directory.is_dir():
            raise FileNotFoundError(f"data set {directory} does not exist: run {PREPARE} {directory}")
        self.manifest = read_manifest(self._directory)

    def check(self, everything: bool) -> None:
        """Compare names and sizes with the manifest, then the content, or samples of it where there is much.

        Raises FileNotFoundError or ValueError, naming the file and what is wrong with it.
        """
        sizes = file_sizes(self._directory)
        files = self.manifest["files"]
        for file in files:
            _raise_first(size_errors(self._directory / file["name"], file, sizes.get(file["name"])))
        _raise_first(foreign_errors(self._directory, self.manifest, sizes))
        if everything or sum(file["bytes"] for file in files) <= VERIFY_BYTES:
            _raise_first(all_errors(self.manifest, self._directory.joinpath))
        else:
            _raise_first(sample_errors(self.manifest, self._directory.joinpath, SAMPLES))

    def check_order(self, shuffle_shards: int | None) -> None:
        """Any order suits."""

    @contextmanager
    def hold(self, name: str) -> Iterator[Path]:
        """Where a file lies."""
        yield self._directory / name


class ShardReader:
    """The token stream of a data set: `total` tokens, `documents` = their (starts, ends), int64 [documents] each.

    Opening compares names and sizes with the manifest. A data set of up to 64 MB, or any with `verify=True`, is also
    read through; of a larger one 16 pieces of 4 MiB are compared with their checksums, and, when a shard is first read,
    its footer, its metadata, its last piece and another one. Files are mapped when they are first read, in each process
    on its own. Of a remote data set only names and sizes are compared on opening, unless `verify` is true; `cache` says
    where its shards are kept on this machine, where they are compared as a whole when they come. `place` is the
    directory or address to show.

    Raises FileNotFoundError or ValueError, naming the file and what is wrong with it; also when `tokenizer` is given
    and is not the one that the data set was made with. From a remote address also OSError; see `Storage`.
    """

    def __init__(
        self,
        directory: str | Path,
        tokenizer: Tokenizer | None = None,
        verify: bool = False,
        cache: Cache = _CACHE,
    ) -> None:
        self.remote = is_remote(str(directory))
        self.files = RemoteFiles(str(directory), cache) if self.remote else LocalFiles(directory)
        self.place = self.files.place
        self.manifest = self.files.manifest
        self._maps: dict[int, list[np.ndarray]] = {}
        if tokenizer is not None and tokenizer.identity != self.manifest["tokenizer"]["identity"]:
            made_with = self.manifest["tokenizer"]
            raise ValueError(
                f"data set {self.place} was made with tokenizer {label(made_with['name'], made_with['identity'])}, but "
                f"tokenizer {label(tokenizer.name, tokenizer.identity)} is asked for: "
                "set data.tokenizer to the file of the first, or prepare the data with the second"
            )
        self.total: int = self.manifest["tokens"]
        self.identity: str = self.manifest["content"]
        self._shards = [file for file in self.manifest["files"] if file["name"] != DOCUMENTS]
        counts = [file["tokens"] for file in self._shards]
        self.starts: list[int] = np.concatenate([[0], np.cumsum(counts)[:-1]]).tolist()  # first token of each shard
        self.files.check(verify)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the stream, int64 [stop - start]. Raises IndexError outside 0 .. total."""
        return self.rows([start], stop - start)[0].astype(np.int64)

    def rows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """The `length` tokens from each of `starts` on, uint16 or uint32 [rows, length] as they are stored.

        Raises IndexError outside 0 .. total.
        """
        out = np.empty((len(starts), max(0, length)), self.manifest["dtype"])
        for start, row in zip(starts, out, strict=True):
            if not 0 <= start <= start + length <= self.total:
                raise IndexError(
                    f"tokens {start} to {start + length} are outside {self.place}, which holds {self.total}"
                )
            self._read(start, row)
        return out

    @cached_property
    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        (entry,) = (file for file in self.manifest["files"] if file["name"] == DOCUMENTS)
        with self.files.hold(DOCUMENTS) as path:
            _raise_first(file_errors(path, entry, self.manifest))
            ends = read_column(path)[1][0]
            _raise_first(end_errors(path, ends, self.total))
        return np.concatenate([[0], ends[:-1]]), ends

    def __getstate__(self) -> dict[str, Any]:
        return {**{name: value for name, value in self.__dict__.items() if name != "documents"}, "_maps": {}}

    def _read(self, start: int, out: np.ndarray) -> None:
        """Fill `out` with the tokens from `start` on."""
        done = 0
        while done < len(out):
            at = start + done
            shard = bisect_right(self.starts, at) - 1
            batch, offset = divmod(at - self.starts[shard], BATCH)
            piece = self._views(shard)[batch][offset : offset + len(out) - done]
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _views(self, shard: int) -> list[np.ndarray]:
        """The record batches of a shard, mapped and looked at when it is first read."""
        views = self._maps.pop(shard, None)
        if views is None:
            file = self._shards[shard]
            pieces = len(file["crc32"].split())
            with self.files.hold(file["name"]) as path:
                _raise_first(file_errors(path, file, self.manifest, {shard % pieces, pieces - 1}))
                views = read_column(path)[1]
            if len(self._maps) == self.files.mapped:
                del self._maps[next(iter(self._maps))]  # the one read the longest time ago
        self._maps[shard] = views
        return views


def _raise_first(errors: Iterable[Exception]) -> None:
    for error in errors:
        raise error
