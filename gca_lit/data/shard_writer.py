"""Writes a data set of token shards; an interrupted run goes on behind its last whole shard."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, takewhile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gca_lit.data.journal import Entry, Journal
from gca_lit.data.shard_format import (
    DOCUMENTS,
    FORMAT,
    INDEX,
    SHARD_TOKENS,
    ColumnFile,
    is_shard,
    read_column,
    shard_name,
    write_manifest,
)
from gca_lit.data.tokenizers import Tokenizer, id_type, label
from gca_lit.data.verify import file_errors
from gca_lit.whole_file import is_full

ELSEWHERE = "choose another --output or remove it"


class ShardWriter:
    """Writes a data set to `directory`. Use it as a context manager; the manifest appears when the block ends.

    `parts` are fingerprints of what each call of `write` will be made from. With them an interrupted run is gone on
    with: `begun` says how many calls to leave out, and of the next one is skipped what is written already. If the block
    raises, whole shards stay for the next run; if there is none, nothing stays. A finished data set in `directory` is
    written anew. With `target_column` every second document is the target of the one before, and the manifest says so.

    Raises ValueError for a vocabulary beyond 32 bits, no document, an empty one, an id outside the vocabulary, or a
    directory that holds shards without a manifest or that another process is writing to; OSError when the
    disk does not take it.
    """

    def __init__(
        self,
        directory: str | Path,
        tokenizer: Tokenizer,
        shard_tokens: int = SHARD_TOKENS,
        parts: Sequence[str] = (),
        target_column: str | None = None,
    ) -> None:
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, not {shard_tokens}")
        self.directory = Path(directory)
        self.tokenizer = tokenizer
        self.begun = 0
        self.entries: list[Entry] = []
        self._dtype = id_type(tokenizer.vocab_size)
        self._head = {
            "format": FORMAT,
            "tokenizer": {"name": tokenizer.name, "identity": tokenizer.identity},
            "vocab_size": tokenizer.vocab_size,
            "dtype": str(self._dtype),
        }
        if target_column is not None:
            self._head["target_column"] = target_column
        self._shard_tokens = shard_tokens
        settings = json.dumps([FORMAT, tokenizer.identity, shard_tokens])
        self._sources = list(accumulate(parts, _chain, initial=_chain("", settings)))
        self._journal = Journal(self.directory)
        self._content = hashlib.sha256(tokenizer.identity.encode())
        self._calls = 0  # of `write`, those left out included
        self._skip = 0  # tokens of the next call that are written already
        self._taken = 0  # tokens of the last call
        self._total = 0
        self._ends: list[np.ndarray] = []
        self._open: ColumnFile | None = None

    @property
    def source(self) -> str:
        """Fingerprint of the settings and of all parts."""
        return self._sources[-1]

    def check_tokenizer(self, made_with: dict[str, str]) -> None:
        """Raise ValueError when `made_with`, of a manifest or journal in `directory`, is another tokenizer."""
        if made_with["identity"] != self.tokenizer.identity:
            held = label(made_with["name"], made_with["identity"])
            wanted = label(self.tokenizer.name, self.tokenizer.identity)
            raise ValueError(f"{self.directory} holds shards of tokenizer {held}, not of {wanted}: {ELSEWHERE}")

    def __enter__(self) -> Self:
        try:
            with self._disk():
                self._begin()
        except BaseException:
            self._journal.unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._total:
                with self._disk():
                    self._finish()
        finally:
            if self._open:
                self._open.discard()
            if not self.entries:
                self._remove_all_but([])
                self._journal.remove()
                with suppress(OSError):
                    self.directory.rmdir()
            self._journal.unlock()
        if kind is None and not self._total:
            raise ValueError(f"there is no document to write to {self.directory}")

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append one document; `ids` ends with the end-of-document id."""
        if not len(ids):
            raise ValueError("a document must have at least one token")
        self.write(np.asarray(ids), np.array([len(ids)]))

    def write(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Append tokens; documents end behind the first ends[0], ends[1], ... of them. The last one may go on."""
        start = self._skip
        low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
        if low < 0 or high >= self.tokenizer.vocab_size:
            raise ValueError(
                f"id {low if low < 0 else high} is outside the vocabulary of tokenizer {self.tokenizer.name} "
                f"({self.tokenizer.vocab_size} ids)"
            )
        self._calls += 1
        self._skip = 0
        ids = np.ascontiguousarray(ids, self._dtype)
        with self._disk():
            while start < len(ids):
                stop = min(len(ids), start + self._room())
                self._append(ids[start:stop], ends[(start < ends) & (ends <= stop)] - start)
                start = self._taken = stop
                if not self._room():
                    self._flush()

    def _room(self) -> int:
        return self._shard_tokens - (self._open.values if self._open else 0)

    def _append(self, ids: np.ndarray, ends: np.ndarray) -> None:
        if self._open is None:
            self._open = ColumnFile(self.directory / shard_name(len(self.entries)), "tokens", self._dtype, self._head)
        self._open.append(ids)
        self._content.update(ids.data)
        self._ends.append(self._total + ends)
        self._total += len(ids)

    def _flush(self) -> None:
        assert self._open is not None
        ends = np.concatenate(self._ends).astype(np.int64)
        file = self._open.commit(tokens=self._open.values, documents=len(ends))
        source = self._sources[self._calls] if self._calls < len(self._sources) else ""
        entry = Entry(file, self._calls, self._taken, source, zlib.crc32(ends.data))
        self._journal.append(entry, ends)
        self.entries.append(entry)
        self._open, self._ends = None, []

    def _finish(self) -> None:
        if self._open:
            self._flush()
        ends = self._journal.ends()
        self._content.update(ends.data)
        self._open = ColumnFile(self.directory / DOCUMENTS, "end", ends.dtype, self._head)
        self._open.append_batch(ends)
        documents = self._open.commit(tokens=0, documents=len(ends))
        manifest = {
            **self._head,
            "tokens": self._total,
            "documents": len(ends),
            "content": self._content.hexdigest(),
            "source": self.source,
            "files": [*(entry.file for entry in self.entries), documents],
        }
        write_manifest(self.directory, manifest)
        self._journal.remove()

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._journal.exists():
            self._journal.lock()
        if (self.directory / INDEX).exists():
            self._journal.rewrite(self._head, [])
            (self.directory / INDEX).unlink()
        if self._journal.exists():
            self._go_on()
        elif any(is_shard(path.name) for path in self.directory.iterdir()):
            raise ValueError(f"{self.directory} holds shards of another run: {ELSEWHERE}")
        self._journal.rewrite(self._head, self.entries)
        self._journal.lock()

    def _go_on(self) -> None:
        """Take over the whole shards that were made from the same parts, up to the first one that is not as it was."""
        head, entries = self._journal.read()
        if entries:
            self.check_tokenizer(head["tokenizer"])
            self._head = head
        same = list(takewhile(self._from_same_parts, entries))
        if entries and not same:
            raise ValueError(f"{self.directory} holds unfinished shards of other inputs or settings: {ELSEWHERE}")
        for entry in takewhile(self._is_whole, same):
            for batch in read_column(self.directory / entry.file["name"])[1]:
                self._content.update(batch.data)
            self._total += entry.file["tokens"]
            self.entries.append(entry)
        if self.entries:
            self._taken = self._skip = self.entries[-1].taken
            self._calls = self.begun = self.entries[-1].calls - 1
        self._remove_all_but([entry.file["name"] for entry in self.entries])

    def _from_same_parts(self, entry: Entry) -> bool:
        at_the_end = entry.calls == len(self._sources) - 1
        full = entry.file["tokens"] == self._shard_tokens
        return entry.calls < len(self._sources) and entry.source == self._sources[entry.calls] and (full or at_the_end)

    def _is_whole(self, entry: Entry) -> bool:
        return not any(file_errors(self.directory / entry.file["name"], entry.file, self._head))

    def _remove_all_but(self, names: list[str]) -> None:
        for path in self.directory.iterdir():
            ours = is_shard(path.name) or path.name == DOCUMENTS or path.suffix == ".part"
            if ours and path.name not in names:
                path.unlink()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full(error):
                cause = error.strerror or error
                raise OSError(f"--output {self.directory} cannot be used: {cause}; choose another one") from error
            whole = sum(entry.file["bytes"] for entry in self.entries)
            raise OSError(
                f"the disk of {self.directory} is full ({error.strerror}): {len(self.entries)} whole shards of {whole} "
                f"bytes are written, the next one takes up to {self._shard_tokens * self._dtype.itemsize} bytes; "
                f"make room and give the same command again: it goes on behind the whole shards"
            ) from error


def _chain(before: str, part: str) -> str:
    return hashlib.sha256(f"{before} {part}".encode()).hexdigest()
