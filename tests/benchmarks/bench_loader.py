"""How fast the train loader is, how fast a data set of many shards opens, and in how much memory.

    python tests/benchmarks/bench_loader.py --tokens 2e9 --workers 0 1 2 4 --rows 16384 --output FILE.jsonl

Shards of random ids (uint16) are made in a temporary folder. What is measured runs in processes of its own, one after
the other; a JSON line each is appended to FILE:

loader: tokens per second of ArrowDataModule's train loader, plain text, after the first batches; `copy` is a plain copy
of the same rows from the same shards to int64 in the same process just after it, and `ratio` the one over the other.
With `--documents` each row also tells its documents.
opening: seconds to open a data set of `--shards` small shards, names and sizes checked and samples read.

Memory is looked at after a quarter of the time and at the end, in bytes of all processes together: `own_bytes` without
the pages of files, shared ones counted once; this must not grow. `rss_bytes` is the sum of the resident memory, with
the pages of the shards in it, which the system takes back when it needs them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from gca_lit import provenance
from gca_lit.data.datamodule import ArrowDataModule
from gca_lit.data.shards import ShardReader, ShardWriter

VOCAB = 50_000
DOCUMENT = 1_000_000
SECONDS = 8.0
FIRST = 20  # batches that are not counted: workers start, pages come from the disk


class RandomTokenizer:
    """Stands for a tokenizer of 50,000 ids."""

    name, vocab_size, eos, identity = "random", VOCAB, 0, "random"


def write_shards(folder: Path, tokens: int, shard_tokens: int, document: int) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCAB, 1 << 24, dtype=np.uint16)
    with ShardWriter(folder, RandomTokenizer(), shard_tokens) as writer:  # type: ignore[arg-type]
        for start in range(0, tokens, len(ids)):
            piece = np.roll(ids, start // len(ids))[: tokens - start]
            writer.write(piece, np.append(np.arange(document, len(piece), document), len(piece)))


def memory() -> tuple[int, int]:
    """`own_bytes` and `rss_bytes` of this process and its children."""
    own = resident = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    for pid in ["self", *children]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines()[1:]}
        own += sizes["Pss"] - sizes["Pss_File"]
        resident += sizes["Rss"]
    return own, resident


def measure_loader(folder: str, row: int, batch_size: int, workers: int, documents: bool) -> dict[str, Any]:
    with patch("gca_lit.data.datamodule.load_tokenizer", return_value=RandomTokenizer()):
        data = ArrowDataModule(
            folder, folder, row, batch_size=batch_size, num_workers=workers, reset_at_document=documents
        )
    data.setup("fit")
    batches = chain.from_iterable(repeat(data.train_dataloader()))  # epoch after epoch
    for _ in islice(batches, FIRST):
        pass
    handed, found, start = 0, [], time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        next(batches)
        handed += 1
        if not found and passed > SECONDS / 4:
            found.append(memory())
    found.append(memory())
    data.teardown("fit")
    speed = handed * batch_size * row / passed
    copy = copy_speed(data, row, batch_size)
    own, resident = zip(*found, strict=True)
    result = {"tokens_per_second": round(speed), "copy": round(copy), "ratio": round(speed / copy, 4)}
    return result | {"own_bytes": own, "rss_bytes": resident}


def copy_speed(data: ArrowDataModule, row: int, batch_size: int) -> float:
    """Tokens per second of a plain copy of rows to int64."""
    reader = ShardReader(data.paths["train"] or "")
    shards = [reader._views(shard) for shard in range(len(reader.starts))]
    pieces = [batch for shard in shards for batch in shard if len(batch) >= row]
    places = np.random.default_rng(0)
    out = np.empty((batch_size, row), np.int64)
    copied, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS / 4:
        for target, piece in zip(out, places.integers(0, len(pieces), batch_size), strict=True):
            place = int(places.integers(0, len(pieces[piece]) - row + 1))
            target[:] = pieces[piece][place : place + row]
        copied += 1
    return copied * batch_size * row / passed


def measure_opening(folder: str) -> dict[str, Any]:
    start = time.perf_counter()
    reader = ShardReader(folder)
    seconds = time.perf_counter() - start
    own, resident = memory()
    return {"seconds": round(seconds, 3), "shards": len(reader.starts), "own_bytes": own, "rss_bytes": resident}


def in_process(kind: str, *arguments: Any) -> dict[str, Any]:
    """The result of a measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps([kind, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the measurement {kind} {arguments} ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=2e9, help="size of the data set (default: 2e9)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="default: 0 1 2 4")
    parser.add_argument("--rows", type=int, nargs="+", default=[16384], help="tokens of a row (default: 16384)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="rows of a batch (default: 1 8)")
    parser.add_argument("--shards", type=int, default=10_000, help="small shards to open (default: 10000)")
    parser.add_argument("--documents", action="store_true", help="also with the documents of each row")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines are appended to it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, *arguments = json.loads(given.measure)
        print(json.dumps({"loader": measure_loader, "opening": measure_opening}[kind](*arguments)))
        return
    if given.output is None:
        parser.error("--output FILE is needed")
    origin = {
        "command": provenance.command(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }

    def write(result: dict[str, Any]) -> None:
        print(json.dumps(result))
        given.output.parent.mkdir(parents=True, exist_ok=True)
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result | origin) + "\n")

    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        write_shards(small, given.shards * 5000, 5000, 1000)
        write({"measured": "opening", **in_process("opening", str(small))})
        shutil.rmtree(small)
        write_shards(large, int(given.tokens), 1 << 27, DOCUMENT)
        for row in given.rows:
            for batch_size in given.batch_sizes:
                for workers in given.workers:
                    for documents in (False, True) if given.documents else (False,):
                        setting = {"row": row, "batch_size": batch_size, "workers": workers, "documents": documents}
                        found = in_process("loader", str(large), *setting.values())
                        write({"measured": "loader", "tokens": int(given.tokens), **setting, **found})


if __name__ == "__main__":
    main()
