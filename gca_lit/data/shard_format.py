"""What a data set of token shards is made of: names, Arrow files of one column, and the manifest that vouches for them.

A directory holds `tokens-00000.arrow`, `tokens-00001.arrow`, ... (one column `tokens`, uint16 or uint32, uncompressed,
record batches of 2**20 tokens), `documents.arrow` (one column `end`, int64, one record batch: where each document ends
in the whole stream) and `index.json`, which is written last: a directory without it is not a data set. The manifest
holds a crc32 of every 4 MiB of every file, and one of itself.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gca_lit.whole_file import WholeFile

FORMAT = 2
INDEX = "index.json"
DOCUMENTS = "documents.arrow"
BATCH = 1 << 20
SHARD_TOKENS = 1 << 27
PREPARE = "python -m gca_lit.data.prepare --input FILES --tokenizer TOKENIZER --output"


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.arrow"


def is_shard(name: str) -> bool:
    return name.startswith("tokens-") and name.endswith(".arrow")


class ColumnFile:
    """Writes one column to an Arrow file that appears when it is committed.

    `begins`, the crc32 of the first record batch, is in the metadata of the file: a file that was replaced agrees with
    its own metadata, one that was damaged with the manifest.
    """

    def __init__(self, path: Path, column: str, dtype: np.dtype, head: dict[str, Any]) -> None:
        self.path = path
        self.values = 0
        self._column = column
        self._head = head
        self._buffer = np.empty(BATCH, dtype)
        self._filled = 0
        self._begins = ""
        self._file = WholeFile(path)
        self._writer: Any = None

    def append(self, values: np.ndarray) -> None:
        """Add values; they are gathered to batches of BATCH."""
        self.values += len(values)
        while len(values):
            piece, values = np.split(values, [len(self._buffer) - self._filled])
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == len(self._buffer):
                self._flush()

    def append_batch(self, values: np.ndarray) -> None:
        """Add values as one record batch, without a copy."""
        self.values += len(values)
        self._write(values)

    def commit(self, **counts: int) -> dict[str, Any]:
        """Finish the file; returns its entry in the manifest, with `counts` in it."""
        self._flush()
        self._writer.close()
        self._file.commit()
        checks = {"begins": self._begins, "crc32": " ".join(f"{check:08x}" for check in self._file.checks)}
        return {"name": self.path.name, "bytes": self._file.bytes, **counts, **checks}

    def discard(self) -> None:
        self._file.discard()

    def _flush(self) -> None:
        if self._filled:
            self._write(self._buffer[: self._filled])
            self._filled = 0

    def _write(self, values: np.ndarray) -> None:
        if self._writer is None:
            self._begins = f"{zlib.crc32(values.data):08x}"
            metadata = file_metadata(self._head, self.path.name, str(values.dtype), self._begins)
            field = pa.field(self._column, pa.from_numpy_dtype(values.dtype), nullable=False)
            self._schema = pa.schema([field], metadata)
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self._schema)
        self._writer.write_batch(pa.record_batch([pa.array(values)], schema=self._schema))


def file_metadata(head: dict[str, Any], name: str, dtype: str, begins: str) -> dict[bytes, bytes]:
    """The metadata of an Arrow file of the data set with the tokenizer in `head`."""
    tokenizer = head["tokenizer"]
    values = {"format": head["format"], "tokenizer": tokenizer["name"], "identity": tokenizer["identity"]}
    values |= {"dtype": dtype, "name": name, "begins": begins}
    return {key.encode(): str(value).encode() for key, value in values.items()}


def read_column(path: Path) -> tuple[dict[bytes, bytes], list[np.ndarray]]:
    """Metadata and record batches of an Arrow file, mapped without a copy. Raises ValueError when it is none."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(i).column(0).to_numpy() for i in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ValueError(f"shard {path} is not an Arrow file: {error}") from error
    return reader.schema.metadata or {}, batches


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write `index.json`, with its own crc32 in it."""
    with WholeFile(directory / INDEX) as file:
        file.write((json.dumps({**manifest, "crc32": _check(manifest)}, indent=1) + "\n").encode())


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of `index.json`. Raises FileNotFoundError without one, ValueError for one that is damaged."""
    path = directory / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so {directory} is no finished data set: run {PREPARE} {directory}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest: {error!r}; prepare the data set again") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}: prepare the data set again")
    if manifest.pop("crc32", None) != _check(manifest):
        raise ValueError(f"{path} is damaged: its content does not fit its crc32; prepare the data set again")
    return manifest


def _check(manifest: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"
