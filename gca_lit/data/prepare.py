"""Text files to token shards: python -m gca_lit.data.prepare --input FILES... --output DIR."""

import argparse
import codecs
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from glob import glob, has_magic
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from gca_lit.data.shards import INDEX, SHARD_TOKENS, ShardReader, ShardWriter, read_manifest
from gca_lit.data.tokenizers import load_tokenizer

PART_BYTES = 16 << 20

T = TypeVar("T")
R = TypeVar("R")


class Part(NamedTuple):
    """What one process encodes at once: a .txt file, the lines that start in bytes [start, stop) of a .jsonl file, or
    the row groups [start, stop) of a .parquet file; `size` is its share of the file, in bytes."""

    path: str
    start: int
    stop: int
    size: int


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: str = "byte",
    text_column: str = "text",
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
) -> str:
    """Write `inputs` (files or globs: .txt, .jsonl, .parquet; documents in this order) as token shards to `output`.

    The shards do not depend on the number of workers. Returns one sentence that says what was done.
    Raises ValueError or FileNotFoundError, and leaves `output` as it was, for inputs or an output that cannot be used.
    """
    files = find_inputs(inputs)
    tokens = load_tokenizer(tokenizer)
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}")
    parallel = workers > 1
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) if parallel else nullcontext() as pool:
        digests = list(in_order(pool, partial(inspect, column=text_column), files, 2 * workers))
        source = hashlib.sha256(json.dumps([text_column, shard_tokens, *digests]).encode()).hexdigest()
        if (Path(output) / INDEX).exists():
            _compare(output, tokens.identity, tokens.name, source)
            if not _damaged(output):
                return f"{output} is up to date"

        parts = [part for path in files for part in split(path)]
        encode = partial(encode_part, tokenizer=tokenizer, column=text_column)
        bar = tqdm(total=sum(part.size for part in parts), unit="B", unit_scale=True, desc="prepare", disable=None)
        with bar, ShardWriter(output, tokens, shard_tokens, source) as writer:
            for part, documents in zip(parts, in_order(pool, encode, parts, 2 * workers), strict=True):
                for document in documents:
                    writer.add(document)
                bar.update(part.size)
    manifest = read_manifest(Path(output))
    return f"{output}: {manifest['documents']} documents, {manifest['tokens']} tokens of tokenizer {tokens.name}"


def find_inputs(patterns: list[str]) -> list[str]:
    """The files that `patterns` name, the matches of a glob sorted. Raises FileNotFoundError or ValueError."""
    files = []
    for pattern in patterns:
        matches = (
            sorted(glob(pattern, recursive=True)) if has_magic(pattern) and not Path(pattern).exists() else [pattern]
        )
        if not matches:
            raise FileNotFoundError(f"no input matches {pattern}")
        files += matches
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"input {file} is not a file")
        if Path(file).suffix not in (".txt", ".jsonl", ".parquet"):
            raise ValueError(f"input {file} is none of .txt, .jsonl, .parquet")
    return files


def inspect(path: str, column: str) -> str:
    """Read a file through: its kind and sha256. Raises ValueError when it is empty, not text, or lacks the column."""
    kind = Path(path).suffix
    size = os.path.getsize(path)
    if not size:
        raise ValueError(f"input {path} is empty")
    if kind == ".parquet":
        _check_parquet(path, column)
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            if kind != ".parquet":
                _check_text(path, piece, at, decoder, last=at + len(piece) == size)
            at += len(piece)
    return f"{kind} {digest.hexdigest()}"


def split(path: str) -> list[Part]:
    """Cut a file into parts of about 16 MB where its kind allows it."""
    size = os.path.getsize(path)
    kind = Path(path).suffix
    if kind == ".parquet":
        groups = pq.ParquetFile(path).num_row_groups
        return [Part(path, i, i + 1, size * (i + 1) // groups - size * i // groups) for i in range(groups)]
    step = PART_BYTES if kind == ".jsonl" else size
    return [Part(path, start, min(start + step, size), min(step, size - start)) for start in range(0, size, step)]


def encode_part(part: Part, tokenizer: str, column: str) -> list[np.ndarray]:
    """The documents of a part as ids, each ended by the end-of-document id."""
    load = _load(tokenizer)
    documents = []
    for place, text in read_part(part, column):
        try:
            documents.append(np.array([*load.encode(text), load.eos], np.uint32))
        except UnicodeEncodeError as error:
            raise ValueError(f"input {part.path}, {place}: the text is not valid Unicode: {error}") from error
    return documents


def read_part(part: Part, column: str) -> Iterator[tuple[str, str]]:
    """The documents of a part, each with its place in the file. Raises ValueError for one that is no text."""
    kind = Path(part.path).suffix
    if kind == ".txt":
        yield "the file", Path(part.path).read_bytes().decode()
        return
    rows = _parquet_rows(part, column) if kind == ".parquet" else _json_rows(part, column)
    for place, text in rows:
        if not isinstance(text, str):
            raise ValueError(f"input {part.path}, {place}: {column!r} holds {type(text).__name__}, not text")
        yield place, text


def in_order(pool: Executor | None, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Map over `items` in order, at most `ahead` items at work or waiting; in this process without a pool."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _compare(output: str, identity: str, name: str, source: str) -> None:
    manifest = read_manifest(Path(output))
    if manifest["tokenizer"]["identity"] != identity:
        raise ValueError(
            f"{output} holds shards of tokenizer {manifest['tokenizer']['name']}, not of {name}: "
            f"choose another --output or remove it"
        )
    if manifest["source"] != source:
        raise ValueError(f"{output} holds shards of other inputs or settings: choose another --output or remove it")


def _damaged(output: str) -> bool:
    """Whether the shards are not what their manifest says: then they are written anew."""
    try:
        ShardReader(output, verify=True)
    except (OSError, ValueError):
        return True
    return False


def _check_parquet(path: str, column: str) -> None:
    try:
        parquet = pq.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"input {path} is not a Parquet file: {error}") from error
    if column not in parquet.schema_arrow.names:
        raise ValueError(f"input {path} has no column {column!r}, only {', '.join(parquet.schema_arrow.names)}")
    if not parquet.metadata.num_rows:
        raise ValueError(f"input {path} is empty")


def _check_text(path: str, piece: bytes, at: int, decoder: codecs.IncrementalDecoder, last: bool) -> None:
    if (zero := piece.find(0)) >= 0:
        raise ValueError(f"input {path} is not text: a NUL byte at byte {at + zero}")
    held = len(decoder.getstate()[0])
    try:
        decoder.decode(piece, final=last)
    except UnicodeDecodeError as error:
        raise ValueError(f"input {path} is not UTF-8: {error.reason} at byte {at - held + error.start}") from error


def _parquet_rows(part: Part, column: str) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(part.path) as parquet:
        for group in range(part.start, part.stop):
            values = parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
            for row, value in enumerate(values):
                yield f"row {row} of row group {group}", value.as_py()


def _json_rows(part: Part, column: str) -> Iterator[tuple[str, Any]]:
    with open(part.path, "rb") as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()
        while (at := file.tell()) < part.stop:
            line = file.readline()
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"input {part.path}, line at byte {at}: not valid JSON: {error}") from error
            if not isinstance(row, dict) or column not in row:
                raise ValueError(f"input {part.path}, line at byte {at}: no field {column!r}")
            yield f"line at byte {at}", row[column]


_load = lru_cache(maxsize=1)(load_tokenizer)


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gca_lit.data.prepare", description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, metavar="FILES", help=".txt, .jsonl, .parquet; or globs")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory of the data set")
    parser.add_argument("--tokenizer", default="byte", help='"byte" (default) or the path of a tokenizer.json')
    parser.add_argument("--text-column", default="text", help="field or column that holds the text (default: text)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens of a shard (default: 2**27)")
    given = parser.parse_args(arguments)
    try:
        print(prepare(given.input, given.output, given.tokenizer, given.text_column, given.workers, given.shard_tokens))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
