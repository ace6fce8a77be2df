"""What is wrong with a data set of token shards, and where."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gca_lit.data.shard_format import (
    BATCH,
    DOCUMENTS,
    INDEX,
    file_metadata,
    is_shard,
    read_column,
    read_manifest,
)
from gca_lit.whole_file import PIECE_BYTES

Head = dict[str, Any]  # of a manifest or journal: format, tokenizer, vocab_size, dtype
PathOf = Callable[[str], Path]  # where a file of the data set lies


def verify(directory: str | Path) -> list[str]:
    """Read a data set through: all that is wrong with it, a sentence each."""
    directory = Path(directory)
    try:
        manifest = read_manifest(directory)
    except (ValueError, OSError) as error:
        return [str(error)]
    foreign = foreign_errors(directory, manifest, file_sizes(directory))
    return [str(error) for error in chain(foreign, all_errors(manifest, directory.joinpath))]


def all_errors(manifest: dict[str, Any], path_of: PathOf) -> Iterator[Exception]:
    """Check sizes, checksums, footers, metadata, ids and document ends of all files of the manifest."""
    for entry in manifest["files"]:
        path = path_of(entry["name"])
        found = False
        for error in file_errors(path, entry, manifest):
            found = True
            yield error
        if not found:
            yield from value_errors(path, entry, manifest)


def file_sizes(directory: Path) -> dict[str, int]:
    """Name and size of every file in `directory`."""
    with os.scandir(directory) as found:
        return {file.name: file.stat().st_size for file in found if file.is_file()}


def foreign_errors(directory: Path, manifest: dict[str, Any], names: Iterable[str]) -> Iterator[Exception]:
    """Shards that the manifest does not name."""
    ours = {entry["name"] for entry in manifest["files"]}
    for name in sorted(names):
        if is_shard(name) and name not in ours:
            yield ValueError(f"shard {directory / name} is foreign: {INDEX} does not name it; move it elsewhere")


def size_errors(path: Path, entry: dict[str, Any], size: int | None) -> Iterator[Exception]:
    """A file that is missing (`size` is None) or has another size than its entry in the manifest."""
    if size is None:
        yield FileNotFoundError(f"shard {path} is missing: prepare {path.parent} again, with the command that made it")
    elif size != entry["bytes"]:
        fault = "is truncated" if size < entry["bytes"] else "was replaced"
        yield ValueError(
            f"shard {path} {fault}: it has {size} bytes, {INDEX} says {entry['bytes']}; prepare the data set again"
        )


def file_errors(
    path: Path, entry: dict[str, Any], head: Head, pieces: Iterable[int] | None = None
) -> Iterator[Exception]:
    """Compare a file with its entry: its size, then the crc32 of `pieces` (default: all), then what Arrow reads."""
    size = path.stat().st_size if path.is_file() else None
    wrong = list(size_errors(path, entry, size))
    if wrong:
        yield from wrong
        return
    damaged = _damaged_pieces(path, entry, pieces)
    dtype = "int64" if entry["name"] == DOCUMENTS else head["dtype"]
    try:
        metadata, batches = read_column(path)
    except ValueError as error:
        metadata, batches = {}, []
        if not damaged:
            yield error
            return
    expected = file_metadata(head, entry["name"], dtype, entry["begins"])
    if metadata != expected and (not damaged or _is_another(entry, metadata, batches)):
        yield ValueError(f"shard {path} was replaced: it belongs to another data set than {path.parent / INDEX}")
        return
    if damaged:
        for first, last in _runs(damaged):
            stop = min((last + 1) * PIECE_BYTES, entry["bytes"])
            yield ValueError(
                f"shard {path} is damaged in bytes {first * PIECE_BYTES} to {stop - 1}; prepare the data set again"
            )
    elif [len(batch) for batch in batches] != _batch_sizes(entry):
        yield ValueError(f"shard {path} does not hold the tokens that {INDEX} says; prepare the data set again")


def value_errors(path: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> Iterator[Exception]:
    """Ids outside the vocabulary, or document ends that do not increase from the first token to the last."""
    batches = read_column(path)[1]
    if entry["name"] == DOCUMENTS:
        yield from end_errors(path, batches[0], manifest["tokens"])
        return
    largest = max(int(batch.max()) for batch in batches)
    if largest >= manifest["vocab_size"]:
        yield ValueError(
            f"shard {path} holds id {largest}, outside the vocabulary of {manifest['vocab_size']} ids "
            f"of tokenizer {manifest['tokenizer']['name']}"
        )


def end_errors(path: Path, ends: np.ndarray, total: int) -> Iterator[Exception]:
    """Document ends that do not increase, or do not end with the last of `total` tokens."""
    if ends[0] < 1 or not np.all(ends[1:] > ends[:-1]):
        yield ValueError(f"{path} is damaged: the ends of its documents do not increase; prepare the data set again")
    if ends[-1] != total:
        yield ValueError(f"{path} ends at token {ends[-1]}, but the shards hold {total}; prepare the data set again")


def sample_errors(manifest: dict[str, Any], path_of: PathOf, count: int) -> Iterator[Exception]:
    """Compare `count` pieces of the data set, evenly spread over all files."""
    counts = [-(-entry["bytes"] // PIECE_BYTES) for entry in manifest["files"]]
    starts = np.cumsum([0, *counts])
    chosen = np.unique(np.linspace(0, starts[-1] - 1, count).astype(np.int64))
    files = np.searchsorted(starts, chosen, side="right") - 1
    for file, piece in zip(files.tolist(), (chosen - starts[files]).tolist(), strict=True):
        entry = manifest["files"][file]
        yield from file_errors(path_of(entry["name"]), entry, manifest, [piece])


def _is_another(entry: dict[str, Any], metadata: dict[bytes, bytes], batches: list[np.ndarray]) -> bool:
    """Whether a file that is not the one of `entry` agrees with itself."""
    begins = metadata.get(b"begins", b"").decode(errors="replace")
    return bool(batches) and begins == f"{zlib.crc32(batches[0].data):08x}" != entry["begins"]


def _damaged_pieces(path: Path, entry: dict[str, Any], pieces: Iterable[int] | None) -> list[int]:
    checks = entry["crc32"].split()
    damaged = []
    with path.open("rb") as file:
        for piece in range(len(checks)) if pieces is None else pieces:
            file.seek(piece * PIECE_BYTES)
            if zlib.crc32(file.read(PIECE_BYTES)) != int(checks[piece], 16):
                damaged.append(piece)
    return damaged


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of successive numbers."""
    first = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != number + 1:
            yield first, number
            first = following


def _batch_sizes(entry: dict[str, Any]) -> list[int]:
    if entry["name"] == DOCUMENTS:
        return [entry["documents"]]
    whole, rest = divmod(entry["tokens"], BATCH)
    return [BATCH] * whole + [rest] * (rest > 0)
