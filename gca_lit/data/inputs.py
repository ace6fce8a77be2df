"""Input files of prepare: they are checked and cut into parts, and the text of each part is read on its own."""

import hashlib
import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

PART_BYTES = 8 << 20
ROWS = 1 << 16  # of a part of a .parquet file, at most


class Part(NamedTuple):
    """What one process encodes at once.

    Args:
        path: The file.
        start: First byte, or first row of the row group of a .parquet file.
        stop: The byte or row behind the last one.
        group: The row group.
        last: Whether the file ends with this part: the document of a .txt file then does.
        size: Bytes of the file that this part is, about.
        digest: Fingerprint of the content and of how it is read.
    """

    path: str
    start: int
    stop: int
    group: int
    last: bool
    size: int
    digest: str


def find_inputs(patterns: list[str]) -> list[str]:
    """The files that `patterns` name, each once, the matches of a glob sorted.

    Raises FileNotFoundError or ValueError.
    """
    files = []
    for pattern in patterns:
        matches = (
            sorted(glob(pattern, recursive=True)) if has_magic(pattern) and not Path(pattern).exists() else [pattern]
        )
        if not matches:
            raise FileNotFoundError(f"no input matches {pattern}")
        files += matches
    once: dict[Path, str] = {}
    for file in files:
        once.setdefault(Path(file).resolve(), file)
        if not Path(file).is_file():
            raise FileNotFoundError(f"input {file} is not a file")
        if Path(file).suffix not in (".txt", ".jsonl", ".parquet"):
            raise ValueError(f"input {file} is none of .txt, .jsonl, .parquet")
    return list(once.values())


def inspect(path: str, columns: Sequence[str], part_bytes: int) -> list[Part]:
    """Read a file through and cut it into parts of about `part_bytes`, each with whole characters, lines or rows.

    The parts depend on the file alone, and each only on the bytes up to its end. Raises ValueError when the file is
    empty, not text, or lacks a column, and for a .txt file of which several columns are asked for.
    """
    cut = _parquet_parts if Path(path).suffix == ".parquet" else _text_parts
    parts = list(cut(path, columns, part_bytes))
    if not parts:
        raise ValueError(f"input {path} is empty")
    return parts


def read_part(part: Part, columns: Sequence[str]) -> list[str]:
    """The documents of a part, those of a row in the order of `columns`; of a .txt file the piece of one that it is.

    Where a row has several, one that is null is empty. Raises ValueError, naming the place in the file, for one that is
    no text.
    """
    kind = Path(part.path).suffix
    if kind == ".parquet":
        values = _parquet_values(part, columns)
    else:
        with open(part.path, "rb") as file:
            file.seek(part.start)
            content = file.read(part.stop - part.start)
        if kind == ".txt":
            return [content.decode()]
        values = _json_values(part, content, columns)
    absent = "" if len(columns) > 1 else None
    return [_text(part, at, column, absent if text is None else text) for at, column, text in values]


def _text_parts(path: str, columns: Sequence[str], part_bytes: int) -> Iterator[Part]:
    kind = Path(path).suffix
    if kind == ".txt" and len(columns) > 1:
        raise ValueError(f"input {path} has no columns {', '.join(columns)}: give .jsonl or .parquet files")
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        file.seek(start)
        while start < size:
            block = file.read(part_bytes)
            block += file.readline(-1 if kind == ".jsonl" else part_bytes // 128)
            if start + len(block) < size and not block.endswith(b"\n"):
                block = _whole_characters(block)
                file.seek(start + len(block))
            if (zero := block.find(0)) >= 0:
                raise ValueError(f"input {path} is not text: a NUL byte at byte {start + zero}")
            try:
                block.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"input {path} is not UTF-8: {error.reason} at byte {start + error.start}") from error
            stop = start + len(block)
            last = stop >= size
            digest = hashlib.sha256(f"{kind} {' '.join(columns)} {last} ".encode() + block).hexdigest()
            yield Part(path, start, stop, 0, last, len(block), digest)
            start = stop


def _whole_characters(block: bytes) -> bytes:
    """Leave out a character that is cut at the end."""
    for i in range(1, min(4, len(block))):
        if block[-i] >= 0xC0:
            return block[:-i]
        if block[-i] < 0x80:
            break
    return block


def _parquet_parts(path: str, columns: Sequence[str], part_bytes: int) -> Iterator[Part]:
    try:
        parquet = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"input {path} is not a Parquet file: {error}") from error
    with parquet, open(path, "rb") as file:
        names = parquet.schema_arrow.names
        for column in columns:
            if column not in names:
                raise ValueError(f"input {path} has no column {column!r}, only {', '.join(names)}")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = Path(path).stat().st_size / max(1, parquet.metadata.num_rows)
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            bytes_of = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
            sizes = [bytes_of[column].total_uncompressed_size for column in columns if column in bytes_of]
            total = sum(sizes) if len(sizes) == len(columns) else group.total_byte_size
            step = min(ROWS, max(1, group.num_rows * part_bytes // max(1, total)))
            for start in range(0, group.num_rows, step):
                stop = min(start + step, group.num_rows)
                of = hashlib.sha256(f"{digest} {' '.join(columns)} {number} {start}".encode()).hexdigest()
                yield Part(path, start, stop, number, True, round(size * (stop - start)), of)


def _text(part: Part, at: int, column: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{_place(part, at)}: {column!r} holds {type(text).__name__}, not text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{_place(part, at)}: the text is not valid Unicode: {error}") from error
    return text


def _place(part: Part, at: int) -> str:
    parquet = Path(part.path).suffix == ".parquet"
    return f"input {part.path}, " + (f"row {at} of row group {part.group}" if parquet else f"line at byte {at}")


def _parquet_values(part: Part, columns: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
    """Row number, column and value in each row of a part; the rows before it in the row group are read and dropped."""
    rows = min(part.stop - part.start, 1024)
    at = 0
    with pq.ParquetFile(part.path, buffer_size=1 << 20) as parquet:
        for batch in parquet.iter_batches(rows, row_groups=[part.group], columns=list(columns), use_threads=False):
            wanted = slice(max(0, part.start - at), max(0, part.stop - at))
            found = [batch.column(column)[wanted].to_pylist() for column in columns]
            for number, row in enumerate(zip(*found, strict=True), max(at, part.start)):
                for column, value in zip(columns, row, strict=True):
                    yield number, column, value
            at += len(batch)
            if at >= part.stop:
                return


def _json_values(part: Part, content: bytes, columns: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
    """The byte of the file at which a line begins, column and value, in each line of a part."""
    at = part.start
    for line in io.BytesIO(content):
        if not line.isspace():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{_place(part, at)}: not valid JSON: {error}") from error
            for column in columns:
                if not isinstance(row, dict) or column not in row:
                    found = f"only {', '.join(row) or 'none'}" if isinstance(row, dict) else "the line is no object"
                    raise ValueError(f"{_place(part, at)}: no field {column!r}, {found}")
                yield at, column, row[column]
        at += len(line)
