"""Token shards: Arrow IPC files that are read through a memory map, and the manifest that vouches for them.

A directory holds `tokens-00000.arrow`, `tokens-00001.arrow`, ... (one column `tokens`, uint16 or uint32, uncompressed,
record batches of 2**20 tokens), `documents.arrow` (one column `end`, int64: where each document ends in the whole
stream) and `index.json`, which is written last: a directory without it is not a data set.
"""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from gca_lit.data.tokenizers import Tokenizer

FORMAT = 1
INDEX = "index.json"
DOCUMENTS = "documents.arrow"
BATCH = 1 << 20
SHARD_TOKENS = 1 << 27
VERIFY_BYTES = 64 << 20
PREPARE = "python -m gca_lit.data.prepare --input FILES --output"


class ShardWriter:
    """Writes a data set to `directory`, one document after the other. Use it as a context manager.

    The manifest appears when the block ends; if the block raises, all that was written is removed.
    `source` is kept in the manifest: a fingerprint of what the data set was made from.

    Raises ValueError for a vocabulary beyond 32 bits, no document, an empty one, or an id outside the vocabulary.
    """

    def __init__(
        self, directory: str | Path, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS, source: str = ""
    ) -> None:
        if tokenizer.vocab_size > 1 << 32:
            raise ValueError(f"a vocabulary of {tokenizer.vocab_size} ids does not fit 32 bits: use a smaller one")
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens must be at least 1, not {shard_tokens}")
        self.directory = Path(directory)
        self.tokenizer = tokenizer
        self.source = source
        self._buffer = np.empty(shard_tokens, np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._filled = 0
        self._total = 0
        self._ends = array("q")
        self._ended_before = 0
        self._files: list[dict[str, Any]] = []
        self._content = hashlib.sha256(tokenizer.identity.encode())

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._total:
            self._finish()
            return
        for path in [*self.directory.glob("*.part"), *(self.directory / file["name"] for file in self._files)]:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()
        if kind is None:
            raise ValueError(f"there is no document to write to {self.directory}")

    def add(self, ids: list[int] | np.ndarray) -> None:
        """Append one document; `ids` ends with the end-of-document id."""
        document = np.asarray(ids)
        if not len(document):
            raise ValueError("a document must have at least one token")
        low, high = int(document.min()), int(document.max())
        if low < 0 or high >= self.tokenizer.vocab_size:
            raise ValueError(
                f"id {low if low < 0 else high} is outside the vocabulary of tokenizer {self.tokenizer.name} "
                f"({self.tokenizer.vocab_size} ids)"
            )
        document = document.astype(self._buffer.dtype)
        self._content.update(document.tobytes())
        while len(document):
            piece, document = np.split(document, [len(self._buffer) - self._filled])
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            self._total += len(piece)
            if not len(document):
                self._ends.append(self._total)
            if self._filled == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        name = f"tokens-{len(self._files):05d}.arrow"
        self._write(name, "tokens", self._buffer[: self._filled], documents=len(self._ends) - self._ended_before)
        self._filled, self._ended_before = 0, len(self._ends)

    def _finish(self) -> None:
        if self._filled:
            self._flush()
        ends = np.array(self._ends, np.int64)
        self._content.update(ends.tobytes())
        self._write(DOCUMENTS, "end", ends, documents=len(ends))
        manifest = {
            "format": FORMAT,
            "tokenizer": {"name": self.tokenizer.name, "identity": self.tokenizer.identity},
            "vocab_size": self.tokenizer.vocab_size,
            "dtype": str(self._buffer.dtype),
            "tokens": self._total,
            "documents": len(ends),
            "content": self._content.hexdigest(),
            "source": self.source,
            "files": self._files,
        }
        part = self.directory / f"{INDEX}.part"
        part.write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(self.directory / INDEX)

    def _write(self, name: str, column: str, values: np.ndarray, documents: int) -> None:
        counts = {"tokens": len(values) if column == "tokens" else 0, "documents": documents}
        metadata = _metadata(self.tokenizer.name, self.tokenizer.identity, str(values.dtype), **counts)
        schema = pa.schema([pa.field(column, pa.from_numpy_dtype(values.dtype), nullable=False)], metadata)
        part = self.directory / f"{name}.part"
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for start in range(0, len(values), BATCH):
                writer.write_batch(pa.record_batch([pa.array(values[start : start + BATCH])], schema=schema))
        digests = {"sha256": _sha256(part), "sample": _sample(part)}
        self._files.append({"name": name, "bytes": part.stat().st_size, **counts, **digests})
        part.rename(self.directory / name)


class ShardReader:
    """The token stream of a data set: `total` tokens, `documents` = their (starts, ends), int64 [documents] each.

    Opening compares names, sizes, Arrow footers and metadata with the manifest. A data set of up to 64 MB, or any with
    `verify=True`, is also read through and compared with its sha256; of a larger one only 64 KB at 16 places of every
    file are. Files are mapped when they are first read, in each process on its own.

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
        ends = np.concatenate(self._open(DOCUMENTS))
        self.documents = (np.concatenate([[0], ends[:-1]]), ends)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def _views(self, shard: int) -> list[np.ndarray]:
        if shard not in self._maps:
            self._maps[shard] = self._open(self._files[shard]["name"])
        return self._maps[shard]

    def _open(self, name: str) -> list[np.ndarray]:
        """The record batches of one file, without a copy."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.directory / name)))
        return [reader.get_batch(i).column(0).to_numpy() for i in range(reader.num_record_batches)]

    def _check(self, everything: bool) -> None:
        tokenizer = self.manifest["tokenizer"]
        for file in self.manifest["files"]:
            path = self.directory / file["name"]
            if not path.is_file():
                raise FileNotFoundError(f"shard {path} is missing: run {PREPARE} {self.directory} again")
            if path.stat().st_size != file["bytes"]:
                raise ValueError(
                    f"shard {path} is truncated or was replaced: it has {path.stat().st_size} bytes, "
                    f"{INDEX} says {file['bytes']}; prepare the data set again"
                )
            same = _sha256(path) == file["sha256"] if everything else _sample(path) == file["sample"]
            if not same:
                raise ValueError(
                    f"shard {path} is damaged: its content is not what {INDEX} recorded; prepare the data set again"
                )
            try:
                metadata = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata
            except pa.ArrowInvalid as error:
                raise ValueError(f"shard {path} is not an Arrow file: {error}") from error
            dtype = "int64" if file["name"] == DOCUMENTS else self.manifest["dtype"]
            if metadata != _metadata(
                tokenizer["name"], tokenizer["identity"], dtype, tokens=file["tokens"], documents=file["documents"]
            ):
                raise ValueError(f"shard {path} belongs to another data set than {self.directory / INDEX}")
            if everything and file["name"] != DOCUMENTS:
                self._check_ids(path, self._open(file["name"]))

    def _check_ids(self, path: Path, batches: Iterable[np.ndarray]) -> None:
        largest = max(int(batch.max()) for batch in batches)
        if largest >= self.manifest["vocab_size"]:
            raise ValueError(
                f"shard {path} holds id {largest}, outside the vocabulary of {self.manifest['vocab_size']} ids "
                f"of tokenizer {self.manifest['tokenizer']['name']}"
            )


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of `index.json`. Raises FileNotFoundError without one, ValueError when it is not readable."""
    path = directory / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so {directory} is no finished data set: run {PREPARE} {directory}")
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}; prepare the data set again") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: prepare the data set again")
    return manifest


def _metadata(name: str, identity: str, dtype: str, tokens: int, documents: int) -> dict[bytes, bytes]:
    values = {"format": FORMAT, "tokenizer": name, "identity": identity, "dtype": dtype}
    return {
        key.encode(): str(value).encode() for key, value in {**values, "tokens": tokens, "documents": documents}.items()
    }


def _label(tokenizer: dict[str, str]) -> str:
    return f"{tokenizer['name']} ({tokenizer['identity'][:12]})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sample(path: Path) -> str:
    """sha256 of 64 KB at 16 places, evenly spread from the first byte to the last."""
    size = 64 * 1024
    digest = hashlib.sha256()
    with path.open("rb") as file:
        last = max(0, path.stat().st_size - size)
        for i in range(16):
            file.seek(last * i // 15)
            digest.update(file.read(size))
    return digest.hexdigest()
