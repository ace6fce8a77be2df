"""Text files to token shards: python -m gca_lit.data.prepare --input FILES... --output DIR, or --verify DIR..."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from gca_lit.arguments import Arguments, interrupted, said
from gca_lit.data.inputs import PART_BYTES, Part, find_inputs, inspect, read_part
from gca_lit.data.journal import Journal
from gca_lit.data.shard_format import INDEX, SHARD_TOKENS, read_manifest
from gca_lit.data.shard_writer import ELSEWHERE, ShardWriter
from gca_lit.data.tokenizers import load_tokenizer
from gca_lit.data.verify import file_sizes, foreign_errors, verify

T = TypeVar("T")
R = TypeVar("R")


def prepare(
    inputs: list[str],
    output: str,
    tokenizer: str = "byte",
    text_column: str = "text",
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    target_column: str | None = None,
) -> str:
    """Write `inputs` (files or globs: .txt, .jsonl, .parquet; documents in this order) as token shards to `output`.

    With `target_column` each row gives two documents, its text and then the target that belongs to it: pairs.
    The shards do not depend on the number of workers. A run that was interrupted is gone on with by the same call,
    behind its last whole shard. Returns one sentence that says what was done.

    Raises ValueError or FileNotFoundError for inputs or an output that cannot be used, OSError for a full disk, and
    RuntimeError when a worker is killed.
    """
    files = find_inputs(inputs)
    tokens = load_tokenizer(tokenizer)
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, not {workers}")
    if target_column == text_column:
        raise ValueError(f"--text-column and --target-column are both {text_column!r}: a pair needs two columns")
    columns = [text_column] if target_column is None else [text_column, target_column]
    parallel = workers > 1
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) if parallel else nullcontext() as pool:
            cut = partial(inspect, columns=columns, part_bytes=PART_BYTES)
            parts = list(chain.from_iterable(in_order(pool, cut, files, 2 * workers)))
            writer = ShardWriter(output, tokens, shard_tokens, [part.digest for part in parts], target_column)
            if (Path(output) / INDEX).exists() and _up_to_date(output, writer):
                return f"{output} is up to date"
            encode = partial(encode_part, tokenizer=tokenizer, columns=columns)
            with writer, _bar(parts, writer.begun) as bar:
                before = len(writer.entries)
                rest = parts[writer.begun :]
                for part, (ids, ends) in zip(rest, in_order(pool, encode, rest, 2 * workers), strict=True):
                    writer.write(ids, ends)
                    bar.update(part.size)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, likely for want of memory: give the same command with fewer --workers, "
            "it goes on behind the last whole shard"
        ) from error
    manifest = read_manifest(Path(output))
    documents = f"{manifest['documents']} documents"
    if target_column is not None:
        documents = f"{manifest['documents'] // 2} pairs ({documents})"
    done = f"{output}: {documents}, {manifest['tokens']} tokens of tokenizer {tokens.name}"
    return f"{done}; the first {before} shards were there from an earlier run" if before else done


def encode_part(part: Part, tokenizer: str, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a part in the type of the vocabulary, and behind which of them a document ends."""
    load = _load(tokenizer)
    ids, sizes = load.encode_batch(read_part(part, columns))
    if Path(part.path).suffix == ".txt" and not part.last:
        return ids, np.empty(0, np.int64)
    return np.insert(ids, np.cumsum(sizes), load.eos), np.cumsum(sizes + 1)


def in_order(pool: Executor | None, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Map over `items` in order, at most `ahead` items at work or waiting; in this process without a pool."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    try:
        for item in items:
            with _interrupts_later():
                waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """An interrupt waits for the end of the block; a process that starts in it inherits that, and never has one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _up_to_date(output: str, writer: ShardWriter) -> bool:
    """Whether `output` holds these shards whole, not damaged. Raises ValueError when it holds others."""
    directory = Path(output)
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        raise ValueError(f"{error}: {ELSEWHERE}") from error
    writer.check_tokenizer(manifest["tokenizer"])
    if manifest["source"] != writer.source:
        raise ValueError(f"{output} holds shards of other inputs or settings: {ELSEWHERE}")
    for foreign in foreign_errors(directory, manifest, file_sizes(directory)):
        raise foreign
    if verify(directory):
        return False
    Journal(directory).remove()
    return True


def _bar(parts: list[Part], begun: int) -> tqdm:
    sizes = [part.size for part in parts]
    return tqdm(total=sum(sizes), initial=sum(sizes[:begun]), unit="B", unit_scale=True, desc="prepare", disable=None)


_load = lru_cache(maxsize=1)(load_tokenizer)


def _begin_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _print_verified(directories: list[str]) -> bool:
    """Print a line for each data set and one for each damage in it; whether all are whole."""
    whole = True
    for directory in directories:
        damages = verify(directory)
        print(f"{directory}: {'damaged' if damages else 'whole'}", *damages, sep="\n")
        whole = whole and not damages
    return whole


def main(arguments: list[str] | None = None) -> None:
    parser = Arguments(prog="python -m gca_lit.data.prepare", description=__doc__)
    parser.add_argument("--input", nargs="+", metavar="FILES", help=".txt, .jsonl, .parquet; or globs")
    parser.add_argument("--output", metavar="DIR", help="directory of the data set")
    parser.add_argument("--tokenizer", default="byte", help='"byte" (default) or the path of a tokenizer.json')
    parser.add_argument("--text-column", default="text", help="field or column that holds the text (default: text)")
    parser.add_argument("--target-column", help="field or column of a target that belongs to the text: prepare pairs")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens of a shard (default: 2**27)")
    parser.add_argument("--verify", nargs="+", metavar="DIR", help="read data sets through and print what is damaged")
    given = parser.parse_args(arguments)
    if (given.verify is None) == (given.input is None or given.output is None):
        parser.error("give --input and --output, or --verify")
    if given.verify:
        raise SystemExit(0 if _print_verified(given.verify) else 1)
    try:
        settings = given.tokenizer, given.text_column, given.workers, given.shard_tokens, given.target_column
        print(prepare(given.input, given.output, *settings))
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(said(error))
    except KeyboardInterrupt:
        interrupted(", the same command goes on behind the last whole shard")


if __name__ == "__main__":
    main()
